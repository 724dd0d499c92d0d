"""The closed, typed schema of the configuration, assembled from the settings of the run, the steps and the actions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from pipeline import actions
from pipeline.cluster.distributed import DistributedSettings
from pipeline.cluster.jobs import SubmitSettings
from pipeline.order import BY_NAME, SEEDS, STEPS, sources
from pipeline.plan.selection import check_steps
from pipeline.report.published import Published
from pipeline.tracking import Logger
from steps.runtime.context import own_methods, require
from steps.runtime.store import ArtifactSettings
from wsss.data.ids import check_id
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError, WsssError
from wsss.families import FAMILIES, BaseMethod
from wsss.files import user_path

_OF_ACTIONS = {name: module.Settings for name in actions.names() if hasattr(module := actions.load(name), "Settings")}
_SETTINGS = tuple(dict.fromkeys(_OF_ACTIONS.values()))   # two actions may share a class
KEYS_OF_ACTIONS = {item.name: [name for name, settings in _OF_ACTIONS.items() if item.name in settings.__dataclass_fields__]
                   for settings in _SETTINGS for item in fields(settings)}


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class GpuFallback(Enum):
    error = "error"
    cpu = "cpu"


class Precision(Enum):
    auto = "auto"        # bf16 if the device supports it natively, else float32; the run records the choice
    float32 = "float32"
    bf16 = "bf16"


Action = Enum("Action", {name: name for name in actions.names()})
Action.__module__ = __name__


class LogLevel(Enum):
    debug = "debug"      # progress of every image and step; tracebacks of errors
    info = "info"
    warning = "warning"  # warnings, errors and results
    error = "error"      # errors and results


@dataclass
class ReportSettings:
    """`report.`: the content of the report of a run. The values are in `conf/config.yaml`."""

    write: bool                  # at the end of every run
    images: int                  # in each of the galleries best, worst and random
    images_per_class: int        # in addition, of every class
    traces: int                  # images that are traced through the steps
    changes: int                 # images with the largest gain, and as many with the largest loss, between stages

    def __post_init__(self) -> None:
        for key in ("images", "images_per_class", "traces", "changes"):
            require(0 <= getattr(self, key) <= 200, f"report.{key}", getattr(self, key), "from 0 to 200: all are in one file")


@dataclass
class MultirunSettings:
    """`multirun.`: set by `-m` for the members of a sweep."""

    name: str | None             # of the whole sweep
    over: list[str]              # the keys whose values are in the member's name


@dataclass
class RunSettings:
    """The settings of a run that do not belong to a step. The values are in `conf/config.yaml`."""

    action: Action
    from_step: str | None        # the first step to run; null: the experiment's first
    to_step: str | None          # the last one; null: the experiment's last
    name: str | None             # of the run folder below `outputs`; null: the experiment's, else data-recipe
    outputs: str
    experiment_name: str | None
    recipe_name: str
    seed: int
    device: Device
    gpu_fallback: GpuFallback    # what becomes of an image for which the GPU has too little memory
    precision: Precision
    threads: int | None          # null: all cores this process may use
    workers: int | None          # loader processes of the training steps; null: as many as cores with a GPU, none without
    force: bool                  # also run steps that are up to date
    replace: bool                # allow a finished training to be replaced
    reuse_from: list[str]        # runs whose results are reused if the fingerprints are equal
    log_level: LogLevel
    logger: Logger | None        # where training curves are also sent; null: only log.jsonl and log.csv
    pictures_every: int          # training steps between the pictures sent to the logger
    report: ReportSettings
    steps: list[str]             # of the experiment, in order
    seed_maps: str               # the step whose maps are the seeds of the later steps
    published: Published | None  # the scores of the paper that the experiment reproduces
    data: Any                    # a class of steps.runtime.datasets
    artifacts: ArtifactSettings
    distributed: DistributedSettings
    submit: SubmitSettings
    multirun: MultirunSettings
    shard: str | None            # I/N: only the I-th of N parts of one step; prepare: the work common to all parts

    further: ClassVar[Mapping[str, Mapping[str, Any]]] = {}   # step -> its further methods by name, read from their files

    def __post_init__(self) -> None:
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "null or at least 1")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "null, or 0 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.pictures_every >= 1, "pictures_every", self.pictures_every, "at least 1")
        require(self.shard in (None, "prepare") or self.part is not None, "shard", self.shard,
                "I/N with I from 0 to N-1, or prepare")
        for key in ("name", "outputs", "from_step", "to_step"):
            require(getattr(self, key) != "", key, "", "a value; leave the key out for the default")
        check_steps("steps", self.steps, BY_NAME)
        ordered = [name for name in BY_NAME if name in self.steps]
        require(self.steps == ordered and len(self.steps) > 0, "steps", self.steps, f"each step once and in order: {ordered}")
        for key in ("from_step", "to_step"):
            check_steps(key, [getattr(self, key)] if getattr(self, key) else [], self.steps)
        first, last = self._ends()
        require(first <= last, "from_step", self.from_step, f"a step not after to_step={self.to_step} (in order: "
                f"{', '.join(self.steps)})")
        self._check_seeds()
        self._check_methods()
        try:
            for part in self.run_name.split("/"):   # a member of a sweep is NAME/KEY=VALUE
                check_id(part)
        except WsssError as error:
            raise ConfigError(f"name={self.run_name!r} is not possible: {error}") from error
        _check_action(self)

    def _check_seeds(self) -> None:
        """Raise ConfigError if a step reads the seed maps and they are not of an earlier step of the experiment."""
        for name in self.steps:
            earlier = [row.name for row in STEPS[:STEPS.index(BY_NAME[name])] if row.MAPS and row.name in self.steps]
            seeds = {read for role, names in sources(self, name).items() if BY_NAME[name].reads[role] == SEEDS for read in names}
            require(seeds <= set(earlier), "seed_maps", self.seed_maps,
                    f"a step of this experiment before {name} that makes maps ({', '.join(earlier) or 'there is none'})"
                    f"{did_you_mean(self.seed_maps, earlier)}")

    def _check_methods(self) -> None:
        """Raise ConfigError if a family's file names no method, or another one is set by its key `method`."""
        places = [(family, family, getattr(self, family)) for family in FAMILIES]
        places += [(f"{row.name}.{family}", family, own) for row in STEPS for family in own_methods(row.settings_type)
                   if (own := getattr(getattr(self, row.name), family)) is not None]
        for key, family, chosen in places:
            own = "" if key == family else f"{family}@{key}"
            require(isinstance(chosen, BaseMethod), key, chosen, f"{f'{own}=NAME, with ' if own else ''}a file of conf/{family}/ "
                    f"that names its method: in its defaults the line /schema/{family}@_here_: METHOD")
            require(chosen.method == type(chosen).method, f"{key}.method", chosen.method, f"{type(chosen).method}; choose the "
                    f"method by {own or family}=NAME")

    def _ends(self) -> tuple[int, int]:
        """The positions of the first and the last step to run in `steps`."""
        return (self.steps.index(self.from_step) if self.from_step else 0,
                self.steps.index(self.to_step) if self.to_step else len(self.steps) - 1)

    @property
    def in_range(self) -> list[str]:
        """The steps from `from_step` to `to_step`."""
        first, last = self._ends()
        return self.steps[first:last + 1]

    @property
    def part(self) -> tuple[int, int] | None:
        """(I, N) of `shard`; None if it has another form."""
        numbers = re.fullmatch(r"(\d+)/(\d+)", self.shard or "")
        index, count = map(int, numbers.groups()) if numbers else (0, 0)
        return (index, count) if index < count else None

    @property
    def run_name(self) -> str:
        return self.name or self.experiment_name or f"{self.data.name}-{self.recipe_name}"

    @property
    def folder(self) -> Path:
        return user_path(self.outputs) / self.run_name


def _check_action(config: Any) -> None:
    """Raise ConfigError for settings the action refuses and for keys of other actions, except keys that always have a value."""
    for key, owners in KEYS_OF_ACTIONS.items():
        value = getattr(config, key)
        require(config.action.value in owners or not (value and isinstance(value, (str, list, bool))), key, value,
                f"{'false' if value is True else 'no value'}, except with action={' or '.join(owners)}")
    if check := getattr(actions.load(config.action.value), "check", None):
        check(config)


Config = make_dataclass(
    "Config",
    [(family, Any) for family in FAMILIES] + [(row.name, row.settings_type) for row in STEPS]   # a family: its chosen method
    + [(row.flag, bool | None, field(default=None)) for row in STEPS],
    bases=(*_SETTINGS, RunSettings), namespace={"__post_init__": RunSettings.__post_init__})
Config.__module__ = __name__   # so that a launcher can unpickle it
