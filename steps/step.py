"""What a step is: a module of this package with the attributes below. Those that a module leaves out have the defaults here.

    KIND            TRAINING (one network, resumable by training step), IMAGES (one artifact per image) or SCORE
    VERSION         to be raised whenever the results change for the same settings
    Settings        a `StepSettings` with its keys under `conf/`, where each number has its source; of a training
                    `steps.runtime.schedule.TrainingSettings`. `split` names the list of its ids
    run(context)    does the work; returns a JSON-able dict that goes into the step's manifest. "title" in it is shown as the
                    title of the main results instead of its own
    reader(folder, n_classes)
                    reads and checks the artifacts of a finished step; for IMAGES it returns the function that does so for one
                    image id. Raises ArtifactError with the file

Optional, with the defaults at the end of this file: what it makes (`MAPS`, `MASKS`, `INSTANCES`, `MEASURES`), what its results
depend on (`LOG_ONLY`, `INSTEAD`, `identity`, `added`, `seen_by`, `unused`, `corrected`), lists (`lists`, `TRUTH`, `UNLABELLED`),
checks (`check`), cost (`needs`), its scores and what the report shows and says (`scores`, `tables`, `shown`, `named`, `advice`,
`remarks`), and what the actions do with it (`OFFICIAL`, `classify`, `COMMON`, `soft`, `tune`). `prepare(context)` makes the files
`COMMON`, which all images need, before several shards run at once.

The planner imports the module of a step too, so slow imports, above all torch, are inside its functions.
A step reads artifacts through `context.input(role)` and writes only into `context.folder`. It uses neither the run folder nor
the Hydra config.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from steps.parts.outcome import Advice, Change, Outcome, Remark, noun, plural
from steps.parts.pieces import Adjustable, Column, Curve, Matrix, Sheet, Table
from steps.runtime.context import StepContext, require, settings_of
from steps.runtime.setup import Setup
from wsss.families import BaseMethod

TRAINING, IMAGES, SCORE = "training", "images", "score"
Lists = dict[str, tuple[str, ...]]   # purpose -> ids


class StepSettings:
    """Base of the settings of a step. Each row of `pipeline/order.py` has a subclass of its own with its name as `step`."""

    step: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "step" not in cls.__dict__:
            cls.step = cls.__module__.rpartition(".")[2]

    def require(self, condition: bool, key: str, expected: str) -> None:
        """Check one of the settings; raises ConfigError as `steps.runtime.context.require`."""
        require(condition, f"{self.step}.{key}", getattr(self, key), expected)


# Metadata of a dictionary field that has a key for each kind of map that some step makes; None where `conf/` gives no value. The
# maps by a further method have, where none is set, None or with AS_MAIN the value of the main maps of the step.
PER_MAP, AS_MAIN = {"per_map": "null"}, {"per_map": "as_main"}


@dataclass(frozen=True)
class Needs:
    """The expected disk space and memory of a step."""

    disk_mb: float      # MiB of the step's folder when complete
    memory_mb: float    # MiB, peak resident memory of the process (host) during the step
    gpu_mb: float | None = None   # MiB, peak memory of torch's tensors on the GPU; None: the step computes on the CPU


@dataclass(frozen=True)
class Score:
    """The scores of one kind of result.

    `values` is JSON-able: the `measures` in [0, 1] or None, "images" (their number) and as far as known "threshold",
    "threshold_source", "threshold_key" (the setting), "oracle" ({"threshold", the main measure}), "iou" (by label, background
    first). Other values are shown as further columns if they are in `columns`.
    """

    kind: str                                # what is scored: the step that made it, with its sub-folder
    measures: Mapping[str, str]              # name -> heading; the first is the main one
    values: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)   # name -> heading
    about: str = ""                          # what else is scored of a kind that another step scores, such as "boxes"

    @property
    def key(self) -> str:
        """Of the score among those of a run."""
        return "/".join(filter(None, (self.kind, self.about)))


# The defaults.

# What a step makes that can be scored is one of the next three: sub-folder -> title; "" are the main results.
# Maps: for each image SUB-FOLDER/ID.npy, float16 (K, P), and as its facts for the index at least height, width, classes and
# grids, as `steps.runtime.artifacts.Maps` describes. Masks in the size of the image: SUB-FOLDER/ID.png, and height and width.
MAPS: Mapping[str, str] = {}
MASKS: Mapping[str, str] = {}
INSTANCES: Mapping[str, str] = {}
UNLABELLED = False                           # whether it works on images whose labels are not known
MEASURES: Mapping[str, str] = {}             # name -> heading of what a SCORE step measures
TRUTH = "masks"                              # the ground truth of "val", "scored" and "truth": "masks", "instances", "boxes",
#                                              or "boxes or masks"
LOG_ONLY: frozenset[str] = frozenset()       # settings that change no result, or name a list, which counts by its content
INSTEAD: Mapping[str, str] = {}              # role -> the settings to set if no step has that role
COMMON: tuple[str, ...] = ()                 # files that all images need, made by `prepare`
OFFICIAL: Any = None                         # the files of the official code (`steps.parts.official`)


def lists(setup: Setup) -> Lists:
    """The ids of the step by purpose: "ids" (to make or train on), and as needed "val" (to choose by), "scored", "prototypes",
    "log" (measured for the log only). Raises ConfigError for a list that cannot be used."""
    return {"ids": setup.read_ids()}


def facts(setup: Setup, *names: str) -> dict[str, Any]:
    """The settings of the step under its name, and values of the configuration ("seed", "precision") or chosen methods ("cam"),
    for `identity`."""
    values = {name: setup.methods.get(name) or getattr(setup.config, name) for name in names}
    return {setup.name: settings_of(setup.settings)} | {
        name: settings_of(value.facts if isinstance(value, BaseMethod) else value) for name, value in values.items()}


def backbone_facts(setup: Setup, from_weights: bool) -> dict[str, Any]:
    """The layers of the backbone and, if a training starts `from_weights`, its ImageNet weights, for `identity`."""
    backbone = setup.methods["backbone"]
    return {"backbone": backbone.facts, **({"initial_weights": backbone.digest()} if from_weights else {})}


def identity(setup: Setup) -> dict[str, Any]:
    """What the results depend on, in addition to the data and to what it reads. The planner removes `LOG_ONLY` and `split`."""
    return facts(setup)


def seen_by(name: str, identity: dict[str, Any], reader: Setup) -> dict[str, Any]:
    """The part of the identity of the step `name` that the results of `reader` depend on."""
    return identity


def added(setup: Setup) -> Mapping[str, Any]:
    """The kinds of results that can be added to finished images (`for_each_image`): sub-folder -> JSON-able facts that they
    depend on besides the identity. The journal line of an image has them as "by" among the facts of the kind, in "added"."""
    return {}


def unused(setup: Setup) -> dict[str, str]:
    """The roles that the step does not read with these settings and this data set, each with the setting that says so."""
    return {}


def corrected(settings: Any) -> bool:
    """Whether the results depend on the masks corrected by hand (`Dataset.corrections`) of the step's images."""
    return False


def check(setup: Setup) -> None:
    """Raise WsssError before any work for what the settings alone do not show: a missing package, a file that does not fit."""


def needs(setup: Setup) -> Needs | None:
    """The expected disk space and memory; None: unknown. `steps.runtime.needs.Estimate` has the parts of an estimate."""
    return None


def scores(folder: Any) -> list[Score]:
    """The scores of a finished SCORE step."""
    return []


def tables(folder: Any) -> Iterable[Table]:
    """Tables of a finished SCORE step that are printed beside the scores, for what is not a score of one kind of result."""
    return ()


def shown(context: StepContext) -> Iterable[Curve | Table | Matrix | Column | Adjustable | Sheet]:
    """What the report shows of a step, as far as it is made: its folder may lack files, or not exist.

    A generator keeps what it has yielded before an error.
    """
    return ()


def soft(context: StepContext, image_id: str) -> Mapping[str, np.ndarray]:
    """Maps (K, H, W) float32 in [0, 1] of an image, in its size, by name, that a finished IMAGES step uses but does not write."""
    return {}


def saved(settings: Any) -> Collection[str] | None:
    """The sub-folders of its results that are written with these settings; None: all."""
    return None


def named(title: str, score: Mapping[str, Any]) -> tuple[str, str]:
    """The name of a result in a headline, and the beginning of a sentence about it, from its score."""
    return title, f"{noun(title)} {'are' if plural(title) else 'is'}"


def advice(change: Change) -> list[Advice]:
    """What to try when a result of the step is worse than the maps that it was made from, most promising first."""
    return []


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """Remarks about the results of the step `name`, besides changes and thresholds."""
    return []


# Without a default: None means that the step does not do it.
prepare: Callable[[StepContext], None] | None = None
classify: Callable[[StepContext, str], np.ndarray] | None = None   # (context, image id) -> probabilities (C,) of the classes
tune: Callable[..., Any] | None = None   # (context, `steps.parts.tuning.Tuning`) -> `Tuned`, or None if it cannot
