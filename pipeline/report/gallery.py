"""The images that a report shows and the tiles of its galleries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report import thumbnails
from pipeline.report.images import LITTLE, ImageScores
from pipeline.runfolder.recorded import RecordedRun
from steps.runtime.artifacts import Labels
from wsss.seeding import generator

TAGS = ("best", "worst", "random")
SIDE = 160            # pixels of the longer side of a picture
MOST_BY_CLASS = 800   # tiles shown only for a class; limits the page size with many classes


class MaskReader:
    """Reads the masks of a step, by default those of the run."""

    def __init__(self, run: RecordedRun, step: str | None = None):
        place = run.place(step or run.masks)
        self._read = Labels(place, len(run.dataset.classes)) if place else None
        self.made = set(self._read.index) if place else set()

    def __call__(self, image_id: str) -> np.ndarray | None:
        return self._read(image_id) if image_id in self.made else None


def gallery_tile(run: RecordedRun, read: MaskReader, scores: ImageScores, place: int | None, image_id: str) -> dict[str, Any]:
    """An image with its available ground truth, pseudo mask and errors, its IoU and the IoU of its classes, and the share of its
    pixels that was scored."""
    mask, shown = read(image_id), {"image": thumbnails.image(run.dataset.image(image_id), SIDE)}
    truth = run.dataset.mask(image_id) if image_id in run.dataset.mask_files else None
    if truth is not None:
        shown["ground truth"] = thumbnails.label(truth, SIDE)
    if mask is not None:
        shown["pseudo mask"] = thumbnails.label(mask, SIDE)
    if mask is not None and truth is not None:
        shown["errors"] = thumbnails.errors(mask, truth, SIDE)
    iou = scores.iou[place] if place is not None else {index + 1: None for index in run.dataset.labels[image_id]}
    miou, scored = (float(values[place]) if place is not None else None for values in (scores.miou, scores.scored))
    return {"id": image_id, "pictures": shown, "miou": miou, "scored": scored, "little": scored is not None and scored < LITTLE,
            "iou": {value: score for value, score in iou.items() if value}}


def choose_shown(run: RecordedRun, scores: ImageScores, available: Sequence[str]) -> dict[str, set[str]]:
    """The images of the galleries: id -> "best", "worst", "random", "class"; without scores only the last two.

    The sample size is bounded, so the page stays small for any data set; it is drawn with the seed of the run.
    """
    settings, draws = run.config.report, generator(run.config.seed, "report", "gallery")
    order = [scores.ids[place] for place in np.argsort(-scores.miou, kind="stable")]
    everything = order or list(available)
    chosen: dict[str, set[str]] = {}

    def add(ids: Sequence[str], tag: str) -> None:
        for image_id in ids:
            chosen.setdefault(image_id, set()).add(tag)
    n = settings.images
    good = scores.best_first()
    add(good[:n], "best")
    add(order[::-1][:n], "worst")
    add([everything[i] for i in draws.permutation(len(everything))[:n]], "random")
    n_classes, enough = len(run.dataset.classes), set(good or everything)
    each, places = min(settings.images_per_class, MOST_BY_CLASS // n_classes), scores.place()
    for index in range(n_classes):
        showing = [image_id for image_id in everything if index in run.dataset.labels[image_id]]
        if scores.ids:
            showing.sort(key=lambda image_id, value=index + 1: -scores.iou[places[image_id]].get(value, 0.0))
        third, drawn = -(-each // 3), [showing[i] for i in draws.permutation(len(showing))]
        best = [image_id for image_id in showing if image_id in enough]
        add(list(dict.fromkeys([*best[:third], *showing[::-1][:third], *drawn]))[:each], "class")
    return chosen


def choose_traces(run: RecordedRun, scores: ImageScores, available: Sequence[str]) -> list[str]:
    """The images to trace: spread over the IoU from good to bad, with as many different classes as possible."""
    wanted, usable = run.config.report.traces, set(available)
    order = [image_id for image_id in scores.best_first() if image_id in usable]
    order = [image_id for image_id in order or available if run.dataset.labels[image_id]] or list(available)
    chosen: list[str] = []
    seen: set[int] = set()
    for position in np.linspace(0.05, 0.95, wanted) * (len(order) - 1):
        near = sorted(range(len(order)), key=lambda place, centre=position: abs(place - centre))
        near = [order[place] for place in near[:max(1, len(order) // wanted)] if order[place] not in chosen]
        if near:
            best = max(near, key=lambda image_id: len(set(run.dataset.labels[image_id]) - seen))
            chosen.append(best)
            seen |= set(run.dataset.labels[best])
    return chosen
