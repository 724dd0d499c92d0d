"""Score the segmentations of the trained network.

Reads the masks of infer_seg and the ground truth; writes `scores.json`: the measures of eval_sem_seg, and the boundary IoU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.thresholds import SCORES
from steps.runtime.artifacts import Labels, check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.runtime.setup import Setup, val_with_masks
from steps.step import SCORE, Lists, Matrix, Needs, Score, StepSettings
from wsss.metrics.boundary import BoundaryIoU
from wsss.metrics.semantic import MEASURES, Confusion

VERSION = 1
KIND = SCORE
BOUNDARY = {"boundary_iou": "boundary IoU"}


@dataclass
class Settings(StepSettings):
    """`eval_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: val


def lists(setup: Setup) -> Lists:
    return {"scored": val_with_masks(setup.dataset) if setup.settings.split is None else setup.ids_with_masks()}


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import scoring

    return scoring(setup)


def run(context: StepContext) -> dict[str, Any]:
    dataset, source, scored = context.dataset, context.inputs["masks"][0], context.lists["scored"]
    confusion, boundary = Confusion(len(dataset.classes)), BoundaryIoU(len(dataset.classes))
    read = Labels(source.folder, len(dataset.classes))
    for number, image_id in enumerate(context.runtime.part(scored), start=1):
        context.runtime.check_stop()
        truth = dataset.mask(image_id)
        mask = read(image_id, truth.shape)
        confusion.update(mask, truth)
        boundary.update(mask, truth)
        context.runtime.progress(number, len(scored), "segmentations")
    confusion.counts, boundary.counts = (context.runtime.reduce(each.counts) for each in (confusion, boundary))
    if context.runtime.group.is_main:
        write_json(context.folder / SCORES, {
            "kind": source.step, **confusion.scores().as_dict(), "boundary_iou": boundary.mean(),
            "boundary_iou_by_label": boundary.scores(), "images": len(scored), "confusion": confusion.counts.tolist()})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("kind", "miou", "boundary_iou", "images"))


def scores(folder: Path) -> list[Score]:
    values = read_json(folder / SCORES)
    return [Score(values["kind"], MEASURES | BOUNDARY, values)]


def shown(context: StepContext) -> Iterator[Matrix]:
    """The confusion matrix."""
    if (path := context.folder / SCORES).exists():
        yield Matrix("Confusion matrix of the segmentations", np.array(read_json(path)["confusion"]), "segmentation")
