"""Score the segmentations of the trained network.

Reads the masks of infer_seg, of each kind that it makes, and the ground truth; writes `scores.json`: of each kind the measures of
eval_sem_seg, and the boundary IoU. As in deeplab-pytorch, classes that the ground truth does not have are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.corrections import columns_of, told_apart
from steps.parts.outcome import Outcome, Remark
from steps.parts.pieces import Matrix
from steps.parts.thresholds import SCORES
from steps.runtime.artifacts import Labels, check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.runtime.schedule import GROUND_TRUTH, TRAINED_ON, WEIGHTS
from steps.runtime.setup import Setup, val_with_masks
from steps.step import SCORE, Lists, Needs, Score, StepSettings
from wsss.metrics.boundary import BoundaryIoU
from wsss.metrics.semantic import MEASURES, Confusion
from wsss.networks.facts import read_metadata

VERSION = 3
KIND = SCORE
BOUNDARY = {"boundary_iou": "boundary IoU"}


@dataclass
class Settings(StepSettings):
    """`eval_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: val


def lists(setup: Setup) -> Lists:
    return {"scored": val_with_masks(setup.dataset) if setup.settings.split is None else setup.ids_with_masks()}


def corrected(settings: Settings) -> bool:
    return True


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import scoring

    return scoring(setup)


def run(context: StepContext) -> dict[str, Any]:
    dataset, source, scored = context.dataset, context.inputs["masks"][0], context.lists["scored"]
    n_classes = len(dataset.classes)
    read = {kind: Labels(source.folder, n_classes, folder) for kind, folder in source.kinds.items()}
    measured = {kind: (Confusion(n_classes), BoundaryIoU(n_classes)) for kind in read}
    corrected = {kind: Confusion(n_classes) for kind in read}   # images with a mask corrected by hand: the network has seen it
    for number, image_id in enumerate(context.runtime.part(scored), start=1):
        context.runtime.check_stop()
        truth = dataset.mask(image_id)
        for kind, measures in measured.items():
            mask = read[kind](image_id, truth.shape)
            for measure in (corrected[kind],) if image_id in dataset.corrections else measures:
                measure.update(mask, truth)
        context.runtime.progress(number, len(scored), "segmentations")
    scores = {}
    for kind, (confusion, boundary) in measured.items():
        confusion.counts, boundary.counts, corrected[kind].counts = (
            context.runtime.reduce(each.counts) for each in (confusion, boundary, corrected[kind]))
        scores[kind] = {**confusion.scores(only_present=True).as_dict(), "boundary_iou": boundary.mean(confusion.present),
                        "boundary_iou_by_label": boundary.scores(confusion.present),
                        **told_apart(dataset, scored, (confusion + corrected[kind]).scores(only_present=True).miou),
                        "confusion": confusion.counts.tolist()}
    if context.runtime.group.is_main:
        facts = read_metadata(context.input("network") / WEIGHTS)
        common = {TRAINED_ON: facts.get(TRAINED_ON, "a file"), "scored_by": context.name}
        write_json(context.folder / SCORES, {"of": source.step, "scores": {
            kind: {**common, "result": source.kinds[kind], **each} for kind, each in scores.items()}})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("of", "scores"))


def scores(folder: Path) -> list[Score]:
    return [Score(kind, MEASURES | BOUNDARY, values, {TRAINED_ON: "trained on"} | columns_of(values, MEASURES["miou"]))
            for kind, values in read_json(folder / SCORES)["scores"].items()]


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """What share of the fully supervised bound the segmentations reach, if a network was trained on the ground truth too."""
    bounds = {score["result"]: score for score in outcome.scores.values() if score.get(TRAINED_ON) == GROUND_TRUTH}
    found = []
    for kind, score in outcome.scores.items():
        bound = bounds.get(score.get("result", "")) if score.get("scored_by") == name else None
        if bound and score is not bound and bound["miou"] and score["images"] == bound["images"]:
            found.append(Remark(kind, "bound", f"{score['title']}: {100 * score['miou'] / bound['miou']:.1f} % of the fully "
                                f"supervised bound (mIoU {100 * score['miou']:.1f}; of the network trained on the ground "
                                f"truth {100 * bound['miou']:.1f})"))
    return found


def shown(context: StepContext) -> Iterator[Matrix]:
    """The confusion matrix of the main masks."""
    if (path := context.folder / SCORES).exists():
        content = read_json(path)
        counts = np.array(content["scores"][content["of"]]["confusion"])
        yield Matrix("Confusion matrix of the segmentations", counts, "segmentation")
