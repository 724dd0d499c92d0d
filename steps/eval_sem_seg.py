"""Score the pseudo masks.

Official file: `step/eval_sem_seg.py` (IRN, LPCAM). Reads the pseudo masks and the ground truth; writes `scores.json`.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.runtime.artifacts import Labels, check_keys, write_json
from steps.runtime.context import StepContext
from wsss.metrics.semantic import Confusion

VERSION = 1
SCORES = "scores.json"


class Ignore(Enum):
    error = "error"              # a predicted 255 raises an error
    background = "background"    # it counts as background (official, VOC)
    ignore = "ignore"            # it is not counted


@dataclass
class Settings:
    """`eval_sem_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    ignore: Ignore               # what a 255 in a pseudo mask counts as


def run(context: StepContext) -> dict[str, Any]:
    dataset, folder = context.dataset, context.inputs["make_sem_seg_labels"]
    confusion, scored = Confusion(len(dataset.classes)), context.lists["scored"]
    read = Labels(folder, len(dataset.classes))
    for number, image_id in enumerate(context.part(scored), start=1):
        context.check_stop()
        truth = dataset.mask(image_id)
        confusion.update(read(image_id, truth.shape), truth, prediction_ignore=context.settings.ignore.value)
        context.progress(number, len(scored), "pseudo masks")
    confusion.counts = context.reduce(confusion.counts)
    if not context.group.is_main:
        return {}
    chosen = read_chosen(folder / THRESHOLD)
    write_json(context.folder / SCORES, {**confusion.scores().as_dict(), "threshold": chosen["threshold"],
                                         "threshold_source": chosen["source"], "refiner": chosen.get("refiner"),
                                         "images": len(scored),
                                         "confusion": confusion.counts.tolist()})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("miou", "threshold", "threshold_source", "images"))
