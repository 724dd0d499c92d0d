"""Score the boxes of each kind of maps against boxes of the ground truth, and the maps against masks.

Official files: `evaluation.py` of wsolevaluation (Choe et al., CVPR 2020), which F-CAM uses too, and the box generator of the CAM
paper (Zhou et al., CVPR 2016). Reads the maps and the boxes, without boxes those of the components of the masks; writes
`scores.json`. The unit is a class of an image with a box. Two baselines see no image: centred boxes, and a centred Gaussian.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.localisation import BASELINES, Localiser, Truth, all_measures, count, has_truth
from steps.parts.pieces import Column, Curve, Kind, Line, Table
from steps.parts.scored_maps import read_maps
from steps.parts.thresholds import FALLBACK, SCORES, Chosen
from steps.runtime.artifacts import check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.step import SCORE, Lists, Needs, Score, Setup, StepSettings
from wsss.errors import ConfigError
from wsss.metrics.boxes import thresholds_at

VERSION = 1
KIND = SCORE
TRUTH = "boxes or masks"
MEASURES = {"box_acc": "box accuracy", "max_box_acc": "MaxBoxAcc", "max_box_acc_v2": "MaxBoxAccV2", "pxap": "PxAP",
            "top1_cls": "top-1 class", "top5_cls": "top-5 class", "top1_loc": "top-1 box", "top5_loc": "top-5 box",
            "five_guesses": "five guesses"}
SHOWN = tuple(MEASURES)        # in tables of scores; those of the report have the next ones besides
MORE = {"max_top1_loc": "top-1 box, best threshold", "max_top5_loc": "top-5 box, best threshold",
        "iou30": "any box, IoU 0.3, best threshold", "iou50": "IoU 0.5", "iou70": "IoU 0.7"}
MEASURES |= MORE
MEASURES |= {f"{name}_error": f"{heading}, error" for name, heading in MEASURES.items()}   # as papers print them
FOUND, TRUE = (255, 255, 255), (0, 200, 80)   # colours of boxes in the report


class Boxes(Enum):
    contours = "contours"      # of wsolevaluation: in 256 levels, the largest contour
    component = "component"    # of the CAM paper: the largest component
    dt_box = "dt_box"          # of the program released with it; without a threshold


class Resize(Enum):
    bilinear = "bilinear"
    bicubic = "bicubic"


class Normalise(Enum):
    before = "before"
    after = "after"


@dataclass
class Settings(StepSettings):
    """`eval_loc.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train, or val if only val has boxes or masks
    boxes: Boxes
    threshold: float | None      # share of a map's maximum; null: chosen on the boxes of val, else `fallback`
    fallback: float
    interval: float              # between two thresholds of the curve, of the choice on val and of the best one
    frame: list[int] | None      # [height, width] in which maps and boxes are compared; null: that of each image
    resize: Resize               # of maps
    normalise: Normalise         # maps to [0, 1], before or after they are resized

    def __post_init__(self) -> None:
        for key in ("threshold", "fallback"):
            value = getattr(self, key)
            self.require(value is None or 0 <= value < 1, key, f"{'null or ' if key == 'threshold' else ''}from 0 to below 1")
        self.require(0.001 <= self.interval <= 0.5, "interval", "from 0.001 to 0.5")
        self.require(self.frame is None or len(self.frame) == 2 and min(self.frame) >= 1, "frame",
                     "null or [height, width], at least 1 each")


def lists(setup: Setup) -> Lists:
    """The list to score, () if the default one has no truth, and val to choose by. Raises ConfigError for a list that cannot be
    used."""
    dataset, settings = setup.dataset, setup.settings
    scored = setup.ids(next((dataset.lists[name] for name in ("train", "val") if has_truth(dataset, dataset.lists[name])), ()))
    if not scored or not has_truth(dataset, scored):
        if settings.split is not None:
            raise ConfigError(f"{setup.name}.split={settings.split!r} is to be scored, but not all of its {len(scored)} images "
                              f"have boxes, nor have all of them masks, in {dataset.root}. Add them or choose another list")
        return {"scored": (), "val": ()}
    val = dataset.lists["val"]
    if settings.threshold is not None or settings.boxes is Boxes.dt_box or not has_truth(dataset, val) \
            or settings.split is None and scored == val:
        return {"scored": scored, "val": ()}
    setup.refuse_choosing_on_scored(setup.name, scored, val, "threshold")
    return {"scored": scored, "val": val}


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate, images = Estimate(setup), [Estimate(setup).images(purpose, original=True) for purpose in ("scored", "val")]
    kinds = sum(len(source.kinds) for source in setup.sources.get("maps", ())) + len(BASELINES)
    grid = 1 if setup.settings.boxes is Boxes.dt_box else len(thresholds_at(setup.settings.interval))
    pixels = max(each.most(40, 12) for each in images)   # a map at full size, its grey levels and parts
    return estimate.finish(kinds * (60 * grid + 24 * len(setup.dataset.classes)),
                           estimate.on_host(8.0 * kinds * (len(setup.dataset.classes) + 6) * grid), estimate.on_host(pixels))


def run(context: StepContext) -> dict[str, Any]:
    kinds = read_maps(context)
    scored, val = context.lists["scored"], context.lists["val"]
    total, scores, chosen, classes = len(scored) * (len(kinds) + len(BASELINES)) + len(val) * len(kinds), {}, {}, {}
    grid, done, predicting = _grid(context), 0, tuple(kinds.values())
    for name in [*kinds, *BASELINES]:
        localiser, on_val = Localiser(context, grid, kinds.get(name), name, predicting), None
        if val and name in kinds:
            on_val, done = count(localiser, val, done, total).boxes.accuracy(), done + len(val)
        counted, done = count(localiser, scored, done, total), done + len(scored)
        curve = counted.boxes.accuracy()
        choice = _choose(context, on_val, grid) if name in kinds else Chosen(_best(grid, curve), "the best on the scored images")
        at = int(np.argmin(np.abs(grid - choice.threshold)))
        chosen[name] = choice.as_dict()
        scores[name] = {**all_measures(counted, at), "images": len(scored), "units": int(counted.boxes.counts["units"].sum()),
                        **_threshold(context, choice, grid, curve)}
        classes[name] = [None if np.isnan(value) else float(value) for value in counted.boxes.of_classes(at)]
    if context.runtime.group.is_main:
        write_json(context.folder / SCORES, {"truth": Truth(context.dataset, scored).words,
                                             "units": counted.boxes.counts["units"].tolist(),   # the same of all maps
                                             "chosen": chosen, "scores": scores, "classes": classes})
    return {}


def _grid(context: StepContext) -> np.ndarray:
    """The thresholds (T,), with the one of the settings; one alone if the rule has none."""
    settings = context.settings
    if settings.boxes is Boxes.dt_box:
        return np.zeros(1)
    wanted = [settings.threshold if settings.threshold is not None else settings.fallback]
    return np.unique(np.concatenate([thresholds_at(settings.interval), wanted]).round(6))


def _choose(context: StepContext, on_val: np.ndarray | None, grid: np.ndarray) -> Chosen:
    settings = context.settings
    if settings.boxes is Boxes.dt_box:
        return Chosen(0.0, f"none: {context.name}.boxes=dt_box has its own levels")
    if settings.threshold is not None:
        return Chosen(settings.threshold, f"{context.name}.threshold in the configuration")
    if on_val is not None and not np.isnan(on_val).any():
        return Chosen(_best(grid, on_val), f"best box accuracy on {len(context.lists['val'])} val images")
    return Chosen(settings.fallback, FALLBACK.replace("masks", "boxes"))


def _threshold(context: StepContext, chosen: Chosen, grid: np.ndarray, curve: np.ndarray) -> dict[str, Any]:
    """What scores say about the threshold: none for a rule without one."""
    if context.settings.boxes is Boxes.dt_box:
        return {"threshold": None, "threshold_source": chosen.source}
    found = {"threshold": chosen.threshold, "threshold_source": chosen.source, "threshold_key": f"{context.name}.threshold"}
    if np.isnan(curve).any():   # no class of an image has a box
        return found
    return {**found, "oracle": {"threshold": _best(grid, curve), "box_acc": float(curve.max())},
            "curve": {"threshold": grid.tolist(), "box_acc": curve.tolist()}}


def _best(grid: np.ndarray, curve: np.ndarray) -> float:
    """The first of the best thresholds."""
    return float(grid[np.argmax(curve)])


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("truth", "units", "chosen", "scores", "classes"))


def scores(folder: Path) -> list[Score]:
    content = read_json(folder / SCORES)
    found = {kind: values for kind, values in content["scores"].items() if kind not in BASELINES}
    names = [name for name in SHOWN if any(values[name] is not None for values in found.values())] or ["box_acc"]
    baselines = {name: _percent(content["scores"][name]["max_box_acc"]) for name in BASELINES}
    return [Score(kind, {name: MEASURES[name] for name in names}, {**values, **baselines, "truth": content["truth"]},
                  {**BASELINES, "truth": "truth"}, about="boxes") for kind, values in found.items()]


def shown(context: StepContext) -> Iterator[Curve | Table | Column]:
    """The accuracy at every threshold, all scores with the baselines, that of each class, and the boxes on the maps."""
    if not (context.folder / SCORES).exists():
        return
    content = read_json(context.folder / SCORES)
    lines = [Line(curve["threshold"], curve["box_acc"], BASELINES.get(kind, ""), None if kind in BASELINES else kind,
                  [] if kind in BASELINES else [(values["oracle"]["threshold"], False), (values["threshold"], True)],
                  control=kind in BASELINES)
             for kind, values in content["scores"].items() if (curve := values.get("curve"))]
    if lines:
        yield Curve("Boxes on the scored images", "threshold, share of the maximum", "box accuracy, percent", lines, percent=True,
                    section="localisation")
    yield _scores_table(content)
    yield _class_table(content, context.dataset.classes)
    for kind, maps in read_maps(context).items():
        if kind in content["chosen"] and maps:
            localiser = Localiser(context, np.array([content["chosen"][kind]["threshold"]]), maps)
            yield Column("box found (white), true (green)", "pictures", context.lists["scored"],
                         partial(localiser.pictures, found_colour=FOUND, true_colour=TRUE), kind=kind)


def _scores_table(content: dict[str, Any]) -> Table:
    found, heads = content["scores"], {name: MEASURES[name] for name in (*SHOWN, *MORE)}
    names = [name for name in heads if any(each[name] is not None for each in found.values())]
    rows = [(BASELINES.get(kind, Kind(kind)), "–" if values["threshold"] is None else f"{values['threshold']:.3g}",
             *(_percent(values[name]) for name in names)) for kind, values in found.items()]
    return Table(f"All scores of boxes, percent (truth: {content['truth']})",
                 ("maps", "threshold", *(heads[name] for name in names)), rows, "localisation")


def _class_table(content: dict[str, Any], classes: tuple[str, ...]) -> Table:
    kinds = content["classes"]
    rows = [(name, str(content["units"][index]), *(_percent(kinds[kind][index]) for kind in kinds))
            for index, name in enumerate(classes) if content["units"][index]]
    heads = ("class", "images", *(BASELINES.get(kind, Kind(kind)) for kind in kinds))
    return Table("Box accuracy of the classes, percent", heads, rows, "localisation")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
