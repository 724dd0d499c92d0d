"""How often the boxes of activation maps are right (`BoxAccuracy`), how well their values separate the pixels of a class
(`PixelPrecision`), and maps that do not see the image as baselines (Choe et al., CVPR 2020; wsolevaluation, `evaluation.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsss.errors import ArgumentError
from wsss.metrics.boxes import Found, overlaps, score_map, thresholds_at

IOUS = (0.3, 0.5, 0.7)                 # of MaxBoxAccV2; the second is that of MaxBoxAcc


# Baselines: maps that do not see the image.

def centre_box(size: Sequence[int]) -> np.ndarray:
    """A map (H, W) float32 whose parts above a threshold are the centred boxes with the proportions of the image."""
    y, x = (np.abs(_from_centre(side)) for side in size)
    return score_map(-np.maximum(y[:, None], x[None]))


def centre_gaussian(size: Sequence[int], sigma: float = 0.25) -> np.ndarray:
    """A Gaussian (H, W) float32 at the centre of the image, `sigma` in sides of the image. For boxes it is the baseline of Choe
    et al., CVPR 2020; their standard deviation is not known, and matters to `PixelPrecision` only by the width of its bins."""
    y, x = (_from_centre(side) / 2 for side in size)
    return score_map(np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2)))


def nearest(mask: np.ndarray, frame: Sequence[int]) -> np.ndarray:
    """A mask (H, W) in a frame (H', W'), by the nearest pixel to the upper left as `cv2.INTER_NEAREST` (wsolevaluation
    `evaluation.py`, load_mask_image); itself if it has that size."""
    rows, columns = (np.arange(target) * source // target for source, target in zip(mask.shape, frame, strict=True))
    return mask if mask.shape == tuple(frame) else mask[np.ix_(rows, columns)]


# Scores.

class BoxAccuracy:
    """Counts of the right boxes at T thresholds. The unit is a class that an image has, with a box of the ground truth.

    `counts`, integers that can be summed over processes:

        units       (C,)     by class
        right       (C, T)   the main box has an IoU of at least 0.5 with a box of its class (MaxBoxAcc)
        right_any   (3, T)   any of the boxes has an IoU of at least 0.3, 0.5, 0.7 (MaxBoxAccV2)
        ranked      (1,)     units whose class has a rank among the predicted ones; if not all, the next scores are not defined
        top         (2,)     of these, those whose class is the first, or among the first five
        right_top   (2, T)   those whose main box is right besides
        guesses     (1,)     right by one of five guesses (`update`)
    """

    def __init__(self, n_classes: int, n_thresholds: int):
        shapes = {"units": (n_classes,), "right": (n_classes, n_thresholds), "right_any": (len(IOUS), n_thresholds),
                  "ranked": (1,), "top": (2,), "right_top": (2, n_thresholds), "guesses": (1,)}
        self.counts = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}

    def update(self, index: int, found: Found, truth: np.ndarray, rank: int | None = None) -> None:
        """Count a class of an image.

        Args:
            index: the class, 0-based.
            found: the boxes of its map.
            truth: (M, 4), its boxes in the ground truth, M >= 1.
            rank: of the class among the predicted ones from 0; 5 or more: not among the first five; None: not known.

        `guesses` is the heuristic of the CAM paper for its test set: the five guesses are both boxes of the first and of the
        second predicted class, and the first, loose one of the third. They are the first two boxes of `found` at its first
        threshold.

        Raises ArgumentError for `truth` of another shape or without a box.
        """
        if truth.ndim != 2 or truth.shape[1] != 4 or not len(truth):
            raise ArgumentError(f"BoxAccuracy.update: truth has shape {truth.shape}, expected (M, 4) with M >= 1; leave out a "
                                "class without a box")
        best = [overlaps(boxes, truth).max(1) for boxes in found.boxes]
        main, most = (np.array([choose(each) for each in best])[found.at] for choose in (lambda each: each[0], np.max))
        right = main >= IOUS[1]
        self.counts["units"][index] += 1
        self.counts["right"][index] += right
        self.counts["right_any"] += most >= np.array(IOUS)[:, None]
        if rank is not None:
            among = np.array([rank < 1, rank < 5])
            self.counts["ranked"] += 1
            self.counts["top"] += among
            self.counts["right_top"] += among[:, None] & right
            tried = best[found.at[0]][:2 if rank < 2 else 1 if rank < 3 else 0]
            self.counts["guesses"] += bool((tried >= IOUS[1]).any())

    def accuracy(self) -> np.ndarray:
        """The share (T,) of units whose main box is right; NaN without units."""
        return _share(self.counts["right"].sum(0), self.counts["units"].sum())

    def accuracy_any(self) -> np.ndarray:
        """The shares (3, T) of units with a right box, by the IoUs `IOUS`."""
        return _share(self.counts["right_any"], self.counts["units"].sum())

    def max_v2(self) -> float | None:
        """MaxBoxAccV2: the mean over the IoUs of the greatest share at any threshold; None without units."""
        return _number(self.accuracy_any().max(1).mean())

    @property
    def _ranked(self) -> int:
        """The number of units if the rank of each is known, else 0: the share of a part of them would mislead."""
        units = int(self.counts["units"].sum())
        return units if self.counts["ranked"][0] == units else 0

    def top(self) -> list[float | None]:
        """The shares of units whose class is the first predicted one, or among the first five."""
        return [_number(value) for value in _share(self.counts["top"], self._ranked)]

    def top_accuracy(self) -> np.ndarray:
        """The shares (2, T) of units of which that holds and whose main box is right."""
        return _share(self.counts["right_top"], self._ranked)

    def five_guesses(self) -> float | None:
        """The share of units that one of the five guesses finds."""
        return _number(_share(self.counts["guesses"], self._ranked)[0])

    def of_classes(self, t: int) -> np.ndarray:
        """The share (C,) of right main boxes of each class at the threshold with index t; NaN for a class without units."""
        return _share(self.counts["right"][:, t], self.counts["units"])


class PixelPrecision:
    """PxAP, the area under the precision-recall curve of the pixels of all maps together (wsolevaluation `evaluation.py`,
    MaskEvaluator). `counts` (C, 2, B) int64: pixels by class of the map, outside or within the class in the ground truth, and bin
    of the score: [0, i), [i, 2i), ... up to 1, [1, 2), [2, 3]."""

    def __init__(self, n_classes: int, interval: float = 0.001):
        self.edges = np.append(thresholds_at(interval), [1.0, 2.0, 3.0])
        self.counts = np.zeros((n_classes, 2, len(self.edges) - 1), np.int64)

    def update(self, index: int, score: np.ndarray, within: np.ndarray, counted: np.ndarray) -> None:
        """Count a map: `score` (H, W) in [0, 1]; `within`, `counted` (H, W) bool: the pixels of the class, and those that are
        not to be ignored."""
        for truth in (0, 1):
            self.counts[index, truth] += np.histogram(score[counted & (within == truth)], self.edges)[0]

    def average_precision(self) -> float | None:
        """PxAP in [0, 1]: the sum of precision times the gain of recall, from the second highest bin down, which leaves out
        nothing because no score is above 2; None without pixels of a class."""
        outside, within = self.counts.sum(0)[:, ::-1].cumsum(1)
        if not len(within) or not within[-1]:
            return None
        found = within + outside
        precision = np.divide(within, found, out=np.zeros(len(found)), where=found > 0)
        return float((precision[1:] * np.diff(within / within[-1])).sum())


def _from_centre(side: int) -> np.ndarray:
    """(side,) float64: the place of each pixel in [-1, 1], the centre of the image at 0."""
    return (2 * np.arange(side) + 1 - side) / side


def _share(part: np.ndarray, whole: np.ndarray | int) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, part / np.asarray(whole, np.float64), np.nan)


def _number(value: float | np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)
