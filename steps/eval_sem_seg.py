"""Score the pseudo masks.

Official file: `step/eval_sem_seg.py` (IRN, LPCAM). Reads the pseudo masks and the ground truth; writes `scores.json`.
A mask corrected by hand is no pseudo mask: its image counts only in a second score, of the labels that a network is trained on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.corrections import columns_of, told_apart
from steps.parts.pieces import Matrix
from steps.parts.thresholds import SCORES, THRESHOLD, read_chosen
from steps.runtime.artifacts import Labels, check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.step import SCORE, Lists, Needs, Score, Setup, StepSettings
from wsss.metrics.semantic import MEASURES, Confusion

VERSION = 1
KIND = SCORE


class Ignore(Enum):
    error = "error"              # a predicted 255 raises an error
    background = "background"    # it counts as background (official, VOC)
    ignore = "ignore"            # it is not counted


@dataclass
class Settings(StepSettings):
    """`eval_sem_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    ignore: Ignore               # what a 255 in a pseudo mask counts as


def lists(setup: Setup) -> Lists:
    return {"scored": setup.ids_with_masks()}


def corrected(settings: Settings) -> bool:
    return True


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import scoring

    return scoring(setup)


def run(context: StepContext) -> dict[str, Any]:
    dataset, source = context.dataset, context.inputs["masks"][0]
    confusion, corrected, scored = Confusion(len(dataset.classes)), Confusion(len(dataset.classes)), context.lists["scored"]
    read = Labels(source.folder, len(dataset.classes))
    for number, image_id in enumerate(context.runtime.part(scored), start=1):
        context.runtime.check_stop()
        truth = dataset.mask(image_id)
        if image_id in dataset.corrections:
            corrected.update(dataset.correction(image_id), truth, prediction_ignore="ignore")
        else:
            confusion.update(read(image_id, truth.shape), truth, prediction_ignore=context.settings.ignore.value)
        context.runtime.progress(number, len(scored), "pseudo masks")
    confusion.counts, corrected.counts = map(context.runtime.reduce, (confusion.counts, corrected.counts))
    if not context.runtime.group.is_main:
        return {}
    chosen = read_chosen(source.folder / THRESHOLD)
    write_json(context.folder / SCORES, {"kind": source.step, **confusion.scores().as_dict(), "threshold": chosen["threshold"],
                                         "threshold_source": chosen["source"], "threshold_key": f"{source.step}.bg_threshold",
                                         "refiner": chosen.get("refiner"), "confusion": confusion.counts.tolist(),
                                         **told_apart(dataset, scored, (confusion + corrected).scores().miou)})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("kind", "miou", "threshold", "threshold_source", "images"))


def scores(folder: Path) -> list[Score]:
    values = read_json(folder / SCORES)
    return [Score(values["kind"], MEASURES, values, columns_of(values, MEASURES["miou"]))]


def shown(context: StepContext) -> Iterator[Matrix]:
    """The confusion matrix."""
    if (path := context.folder / SCORES).exists():
        yield Matrix("Confusion matrix", np.array(read_json(path)["confusion"]), "pseudo mask")
