"""The boxes of stored maps and of baselines, counted against the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from steps.parts.predictions import rank_of
from steps.runtime.artifacts import Maps
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext
from steps.runtime.memory import trim_heap
from wsss.data.dataset import Dataset
from wsss.metrics.boxes import Found, boxes_above, clipped, component_boxes, contour_boxes, dt_boxes, scaled
from wsss.metrics.localisation import IOUS, BoxAccuracy, PixelPrecision, centre_box, centre_gaussian, nearest
from wsss.overlays import overlay_map
from wsss.palette import IGNORE

BASELINES = {"centre_box": "centre box", "centre_gaussian": "centre Gaussian"}   # maps that see no image
_BASELINE_MAPS = {"centre_box": centre_box, "centre_gaussian": centre_gaussian}
PIXELS = 2**18    # of an image, for the number that is worked on at once
Size = tuple[int, int]


def has_truth(dataset: Dataset, ids: Sequence[str]) -> bool:
    """Whether all images of a list have boxes, or all have masks."""
    return dataset.has_boxes(ids) or dataset.has_masks(ids)


class Truth:
    """The boxes of a list: its own or, without, those of the 8-connected components of each class in the masks."""

    def __init__(self, dataset: Dataset, ids: Sequence[str]):
        self._dataset, self._boxes, self.masks = dataset, dataset.has_boxes(ids), dataset.has_masks(ids)
        self.words = "boxes" if self._boxes else "boxes of masks"

    def of(self, image_id: str, classes: Sequence[int]) -> tuple[dict[int, np.ndarray], np.ndarray | None]:
        """The boxes (M, 4) of each of the `classes` that has some, in the frame of the file; and the mask (H, W), if there are
        masks."""
        mask = self._dataset.mask(image_id) if self.masks else None
        if self._boxes:
            boxes, of = self._dataset.boxes(image_id)
            found = {index: boxes[of == index] for index in classes}
        else:
            found = {index: component_boxes(np.asarray(mask) == index + 1).astype(np.float64) for index in classes}
        return {index: boxes for index, boxes in found.items() if len(boxes)}, mask


@dataclass
class Counted:
    """What was counted of one kind of maps on a list. `guesses`: whether the five guesses are those of the CAM paper."""

    boxes: BoxAccuracy
    pixels: PixelPrecision | None
    guesses: bool


class Localiser:
    """The boxes of one kind of maps, or without maps of one of the `BASELINES`, by the settings of eval_loc.

    `grid`: the thresholds (T,). `predicting`: maps whose index has the predicted classes of the images, if one has.
    """

    def __init__(self, context: StepContext, grid: np.ndarray, maps: Maps | None, baseline: str = "",
                 predicting: Sequence[Maps] = ()):
        self.context, self.settings, self.grid, self.maps, self.baseline = context, context.settings, grid, maps, baseline
        self.predicting, self.rule = predicting, context.settings.boxes.value
        self._baseline = lru_cache(8)(self._made_baseline)   # of images of one size

    def score_maps(self, maps: Maps, image_id: str, size: Size) -> np.ndarray:
        """(K, H, W) float32 in [0, 1], the maps of the classes of an image."""
        from wsss.cams.maps import in_frame, unpack

        facts = maps.facts(image_id)
        grids = unpack(maps.packed(image_id), facts["grids"])
        if facts.get("merge") == "stored":   # the first is the full map
            grids = grids[:1]
        return in_frame(grids, (facts["height"], facts["width"]), size, pad=facts.get("pad", 1),
                        cubic=self.settings.resize.value == "bicubic",
                        normalise_first=self.settings.normalise.value == "before").numpy()

    def found(self, score: np.ndarray) -> Found:
        """The boxes of a map (H, W) at every threshold, in its frame."""
        if self.rule == "dt_box":
            found = dt_boxes(score)
        elif self.rule == "contours":
            found = boxes_above(score, self.grid, contour_boxes, grey=True)
        else:
            found = boxes_above(score, self.grid, component_boxes, grey=False)
        return clipped(found, score.shape) if self.settings.frame and self.rule != "dt_box" else found

    def frame(self, size: Size) -> Size:
        """The frame in which an image of `size` is scored."""
        return (self.settings.frame[0], self.settings.frame[1]) if self.settings.frame else size

    def classes(self, image_id: str) -> Sequence[int]:
        return self.maps.classes(image_id) if self.maps else self.context.dataset.labels[image_id]

    def each(self, image_id: str, size: Size) -> tuple[np.ndarray, list[Found]]:
        """The maps (K, H, W) of the classes of an image in its frame, and their boxes."""
        frame = self.frame(size)
        if not self.maps:
            score, found = self._baseline(frame)
            number = len(self.classes(image_id))
            return np.broadcast_to(score, (number, *frame)), [found] * number
        scores = self.score_maps(self.maps, image_id, frame)
        return scores, [self.found(score) for score in scores]

    def rank(self, image_id: str, index: int) -> int | None:
        ranks = (rank_of(index, maps.index[image_id]) for maps in self.predicting if image_id in maps.index)
        return next((rank for rank in ranks if rank is not None), None)

    def pictures(self, image_id: str, found_colour: tuple[int, int, int], true_colour: tuple[int, int, int]) -> np.ndarray:
        """The maps on the image, (K, H, W, 3) uint8, with the main box at the first threshold and those of the ground truth."""
        dataset, image = self.context.dataset, self.context.dataset.image(image_id)
        size, classes, drawn = dataset.size(image_id), self.classes(image_id), []
        truth, _ = Truth(dataset, self.context.lists["scored"]).of(image_id, classes)
        scores, found = self.each(image_id, size)
        height, width = image.shape[:2]
        for index, score, boxes in zip(classes, scores, found, strict=True):
            shown = Image.fromarray(score).resize((width, height), Image.Resampling.BILINEAR)
            picture = Image.fromarray(overlay_map(image, np.asarray(shown), 0.6))
            _rectangles(picture, truth.get(index, np.zeros((0, 4))), size, true_colour)
            _rectangles(picture, boxes.boxes[boxes.at[0]][:1], score.shape, found_colour)
            drawn.append(np.asarray(picture))
        return np.array(drawn, np.uint8).reshape(len(drawn), height, width, 3)

    def _made_baseline(self, size: Size) -> tuple[np.ndarray, Found]:
        score = _BASELINE_MAPS[self.baseline](size)
        return score, self.found(score)


def count(localiser: Localiser, ids: Sequence[str], before: int, total: int) -> Counted:
    """Count the classes of the images of a list, over all processes. `before`, `total`: for `context.runtime.progress`."""
    context, dataset, truth = localiser.context, localiser.context.dataset, Truth(localiser.context.dataset, ids)
    n_classes = len(dataset.classes)
    counted = Counted(BoxAccuracy(n_classes, len(localiser.grid)), PixelPrecision(n_classes) if truth.masks else None,
                      localiser.rule == "dt_box")

    def make(image_id: str) -> tuple[Any, ...]:
        size, classes = dataset.size(image_id), localiser.classes(image_id)
        return size, classes, *truth.of(image_id, classes), *localiser.each(image_id, size)

    at_once = max_concurrent(context.runtime.device, PIXELS)
    with closing(ordered_map(context, make, context.runtime.part(ids), at_once)) as results:
        for number, (image_id, result) in enumerate(results, start=1):
            size, classes, boxes, mask, scores, found = result()
            frame = localiser.frame(size)
            if mask is not None:
                mask = nearest(mask, frame)
            for index, score, each in zip(classes, scores, found, strict=True):
                if index in boxes:
                    true = scaled(boxes[index], size, frame) if localiser.settings.frame else boxes[index]
                    counted.boxes.update(index, each, true, localiser.rank(image_id, index))
                if mask is not None and counted.pixels is not None:
                    counted.pixels.update(index, score, mask == index + 1, mask != IGNORE)
            context.runtime.progress(before + number, total, "images")
            trim_heap()
    counted.boxes.counts = {name: context.runtime.reduce(counts) for name, counts in counted.boxes.counts.items()}
    if counted.pixels is not None:
        counted.pixels.counts = context.runtime.reduce(counted.pixels.counts)
    return counted


def all_measures(counted: Counted, at: int) -> dict[str, float | None]:
    """All measures in [0, 1], None where not defined, and their errors; `at`: the index of the threshold in use."""
    boxes, accuracy = counted.boxes, counted.boxes.accuracy()
    top, top_boxes, any_box = boxes.top(), boxes.top_accuracy(), boxes.accuracy_any().max(1)
    found: dict[str, Any] = {
        "box_acc": accuracy[at], "max_box_acc": accuracy.max(), "max_box_acc_v2": boxes.max_v2(),
        "pxap": counted.pixels.average_precision() if counted.pixels else None, "top1_cls": top[0], "top5_cls": top[1],
        "top1_loc": top_boxes[0, at], "top5_loc": top_boxes[1, at],
        "max_top1_loc": top_boxes[0].max(), "max_top5_loc": top_boxes[1].max(),
        "five_guesses": boxes.five_guesses() if counted.guesses else None}
    found |= {f"iou{100 * iou:.0f}": value for iou, value in zip(IOUS, any_box, strict=True)}
    values = {name: None if value is None or np.isnan(value) else float(value) for name, value in found.items()}
    return {**values, **{f"{name}_error": None if value is None else 1 - value for name, value in values.items()}}


def _rectangles(picture: Image.Image, boxes: np.ndarray, size: Sequence[int], colour: tuple[int, int, int]) -> None:
    """Draw boxes (M, 4) of a frame of `size` (H, W) on a picture of any size."""
    scale = np.array([picture.width / size[1], picture.height / size[0]] * 2)
    for box in boxes:
        x0, y0, x1, y1 = ((box + [0, 0, 1, 1]) * scale).round().tolist()
        corners = [x0, y0, max(x0, min(x1, picture.width) - 1), max(y0, min(y1, picture.height) - 1)]
        ImageDraw.Draw(picture).rectangle(corners, outline=colour, width=max(2, max(picture.size) // 80))
