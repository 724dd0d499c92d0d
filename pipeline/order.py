"""The steps of the pipeline in order: a row for each, with its flag and what it reads and writes. Imports no step."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import ModuleType
from typing import Any

from pipeline.presets import presets

# What a role reads, besides the step of a name:
SEEDS = "the seed maps"          # the step that the key seed_maps names
ALL_MAPS = "all maps"            # every earlier step that makes maps
CLASSIFIER = "the classifier"    # the last earlier step that trains one
LABELS = ("amn_ir_label", "cam_to_ir_label")   # the confident labels: the first of these that is in the experiment


@dataclass(frozen=True, eq=False)
class Row:
    """One step. It has the attributes of its module, with the defaults of `steps.step`.

    `reads`: role -> the name of a step, `SEEDS`, `ALL_MAPS`, `CLASSIFIER` or `LABELS`. Several rows may have the same file, with
    folders and settings of their own; settings that are not set are those of the row that is named like the file.
    """

    file: str                        # of the module in steps/
    writes: str
    reads: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    name: str = ""                   # of the step, of its folder and of its settings; by default that of the file
    flag: str = ""                   # by default NAME_pass
    official: str = ""               # the name of its official files; by default that of the file (`steps.step.OFFICIAL`)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.file)
        object.__setattr__(self, "flag", self.flag or f"{self.name}_pass")

    @cached_property
    def module(self) -> ModuleType:
        return importlib.import_module(f"steps.{self.file}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        from steps import step

        return vars(self.module)[name] if name in vars(self.module) else getattr(step, name)

    @property
    def OFFICIAL(self) -> Any:
        files = self.module.OFFICIAL if hasattr(self.module, "OFFICIAL") else None
        return replace(files, name=self.official) if self.official else files

    @cached_property
    def settings_type(self) -> type:
        """The class of its settings, which knows the name of the step."""
        settings = type(f"{self.name}_settings", (self.module.Settings,), {"step": self.name, "__module__": __name__})
        globals()[settings.__name__] = settings   # so that a launcher can unpickle it
        return settings

    @property
    def like(self) -> str | None:
        """The step whose values this one has where none are set, if it is a second row of a file."""
        return self.file if self.name != self.file and self.file in BY_NAME else None

    @property
    def results(self) -> Mapping[str, str]:
        """What it can make for each image that can be scored: sub-folder -> title."""
        own = self.MAPS or self.MASKS or self.INSTANCES
        return {**own, **presets(self.further[1])} if self.further else own

    @cached_property
    def further(self) -> tuple[str, str] | None:
        """The setting that lists further methods, and their family (`steps.runtime.context.further`)."""
        return next(((item.name, item.metadata["further"]) for item in fields(self.settings_type) if "further" in item.metadata),
                    None)

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of its results: kind -> sub-folder. The kind of the main results is the name of the step."""
        return {"_".join(filter(None, (self.name, folder))): folder for folder in self.results}

    @property
    def map_kinds(self) -> dict[str, str]:
        """`kinds` of a step that makes maps."""
        return self.kinds if self.MAPS else {}


STEPS: tuple[Row, ...] = (
    Row("train_cam", "the image classifier"),
    Row("train_cam", "the classifier, trained further by ReCAM", {"init": "train_cam"}, name="train_recam",
        official="res50_recam_4.pth"),
    Row("make_cam", "CAMs at every scale", {"classifier": CLASSIFIER}),
    Row("make_lpcam", "prototypes and LPCAMs at every scale", {"classifier": CLASSIFIER, "cams": "make_cam"}),
    Row("imported", "maps imported from files"),
    Row("eval_cam", "scores of the maps at every threshold; the thresholds chosen on val", {"maps": ALL_MAPS}),
    Row("eval_faithfulness", "how well the maps say what the classifier looks at", {"maps": ALL_MAPS, "classifier": CLASSIFIER}),
    Row("eval_loc", "scores of the boxes of the maps", {"maps": ALL_MAPS}),
    Row("cam_to_ir_label", "confident labels, 255 (ignore) elsewhere", {"seeds": SEEDS, "thresholds": "eval_cam"}),
    Row("train_amn", "the activation manipulation network", {"labels": "cam_to_ir_label"}),
    Row("make_amn", "its maps", {"network": "train_amn", "labels": "cam_to_ir_label"}),
    Row("make_lpcam", "prototypes and LPCAMs of its features", {"amn": "train_amn", "cams": "make_amn"}, name="make_amn_lpcam",
        official="amn_lpcam"),
    Row("eval_cam", "scores of the maps from it; their thresholds chosen on val", {"maps": ALL_MAPS}, name="eval_amn"),
    Row("cam_to_ir_label", "confident labels by these maps", {"seeds": SEEDS, "thresholds": "eval_amn"}, name="amn_ir_label",
        official="amn_ir_label"),
    Row("train_irn", "the edge and displacement network", {"labels": LABELS, "classifier": CLASSIFIER}),
    Row("affinity_label", "confident labels for the affinity network, 255 (ignore) elsewhere",
        {"seeds": SEEDS, "thresholds": "eval_cam"}),
    Row("train_psa", "the affinity network", {"labels": "affinity_label", "classifier": CLASSIFIER}),
    Row("make_sem_seg_labels", "pseudo masks", {"seeds": SEEDS, "irn": "train_irn", "affinity": "train_psa"},
        flag="make_sem_seg_pass"),
    Row("eval_sem_seg", "scores of the pseudo masks", {"masks": "make_sem_seg_labels"}),
    Row("train_seg", "the segmentation network", {"labels": "make_sem_seg_labels"}),
    Row("infer_seg", "segmentations", {"network": "train_seg"}),
    Row("eval_seg", "scores of the segmentations", {"masks": "infer_seg", "network": "train_seg"}),
    Row("train_seg", "the same network, trained on the ground truth", {"labels": "make_sem_seg_labels"}, name="train_seg_gt"),
    Row("infer_seg", "segmentations by that network", {"network": "train_seg_gt"}, name="infer_seg_gt"),
    Row("eval_seg", "the fully supervised bound", {"masks": "infer_seg_gt", "network": "train_seg_gt"}, name="eval_seg_gt"),
    Row("make_ins_seg_labels", "instances", {"seeds": SEEDS, "irn": "train_irn"}, flag="make_ins_seg_pass"),
    Row("eval_ins_seg", "average precision of the instances", {"instances": "make_ins_seg_labels"}),
)
BY_NAME = {row.name: row for row in STEPS}


def sources(config: Any, name: str) -> dict[str, tuple[str, ...]]:
    """The steps that a step of the experiment reads, by role. A named step need not be among the steps of the experiment.

    Before the step that `seed_maps` names, the seed maps are those of the last earlier step that makes maps. A second step that
    scores all maps scores those that the first one does not read.
    """
    step = BY_NAME[name]
    earlier = [row for row in STEPS[:STEPS.index(step)] if row.name in config.steps]
    maps = [row.name for row in earlier if row.MAPS]
    scored = {read for row in earlier if row.file == step.file and ALL_MAPS in row.reads.values()
              for names in sources(config, row.name).values() for read in names}
    seeds_later = config.seed_maps in config.steps and STEPS.index(BY_NAME[config.seed_maps]) > STEPS.index(step)
    chosen = {SEEDS: tuple(maps[-1:]) if seeds_later and maps else (config.seed_maps,),
              ALL_MAPS: tuple(each for each in maps if each not in scored),
              CLASSIFIER: _last(earlier, lambda row: bool(row.classify)),
              LABELS: (next((each for each in LABELS if each in config.steps), LABELS[-1]),)}
    return {role: chosen.get(source, (source,)) for role, source in step.reads.items()}


def _last(earlier: Sequence[Row], wanted: Callable[[Row], bool]) -> tuple[str]:
    """The last of the earlier steps that is `wanted`; without one the first of all steps."""
    return (next((row.name for row in reversed(earlier) if wanted(row)), next(row.name for row in STEPS if wanted(row))),)


def made_kinds(config: Any, name: str) -> dict[str, str]:
    """The kinds of results that a step makes with its settings: kind -> sub-folder."""
    row = BY_NAME[name]
    saved = row.saved(getattr(config, name))
    return {kind: folder for kind, folder in row.kinds.items() if saved is None or folder in saved}


def made_from(config: Any, kind: str) -> str | None:
    """The kind of maps that the main results of a step were made from: the main maps of the one step with maps that it reads.

    None for the results in a sub-folder, and for a step that reads no maps or those of several steps.
    """
    names = sources(config, kind).values() if kind in BY_NAME else ()
    read = {name for group in names for name in group if "" in BY_NAME[name].MAPS}
    return read.pop() if len(read) == 1 else None


def titles(further: bool = True) -> dict[str, str]:
    """The titles of all kinds of results that can be scored, in the order of the steps; with `further` also of further methods.

    A title that several steps have is followed by the name of the step, but for the first of them.
    """
    found: dict[str, str] = {}
    for row in STEPS:
        known = set(found.values())
        own = row.MAPS or row.MASKS or row.INSTANCES
        found |= {kind: f"{title} ({row.name})" if title in known else title
                  for (kind, folder), title in zip(row.kinds.items(), row.results.values()) if further or folder in own}
    return found


def segmenting(names: Iterable[str]) -> list[str]:
    """Those of the steps that make masks without labels of the images, by a trained network."""
    return [name for name in names if BY_NAME[name].MASKS and BY_NAME[name].UNLABELLED]


def main_masks(names: Sequence[str]) -> str | None:
    """Of some steps, in their order, the one whose masks are those of a run: the first that segments by a trained network,
    because others are compared with it; else the last with masks. None if no step makes masks."""
    return next(iter([*segmenting(names), *(name for name in reversed(names) if BY_NAME[name].MASKS)]), None)


def scored_kind(key: str) -> str:
    """The kind of result that a score of a summary is of, from its key: KIND, or KIND/ABOUT (`steps.step.Score`)."""
    return key.partition("/")[0]


def maker(key: str) -> Row:
    """The step that makes a kind of result, or what a score is of."""
    return next(row for row in STEPS if scored_kind(key) in (row.name, *row.kinds))
