"""Boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021."""

import math

import numpy as np

from wsss.errors import ArgumentError
from wsss.palette import IGNORE

RATIO = 0.02   # paper, section 4: the width of the boundary region, as a share of the diagonal of the image


class BoundaryIoU:
    """Intersection over union of the pixels of each label that are close to its boundary, accumulated over images.

    A pixel of a label is close to the boundary if a pixel of another label, or the outside of the image, is at most
    `ratio` times the diagonal away (chessboard distance, at least 1 pixel), as in the authors' code. In semantic segmentation the
    pixels of all objects of a class are one region. Pixels whose truth is 255 are not counted.

    Attributes:
        counts: (C + 1, 2) int64: pixels in both boundary regions, and in at least one, by label, background first.
    """

    def __init__(self, n_classes: int, ratio: float = RATIO):
        self.ratio = ratio
        self.counts = np.zeros((n_classes + 1, 2), np.int64)

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count an image: (H, W) integers, 0 background, 1..C class. Raises ArgumentError if the shapes differ."""
        if prediction.shape != truth.shape:
            raise ArgumentError(f"prediction has shape {prediction.shape}, truth {truth.shape}, expected the same")
        width = max(1, round(self.ratio * math.hypot(*truth.shape)))
        for label in range(len(self.counts)):
            masks = [labels == label for labels in (prediction, truth)]
            if not any(mask.any() for mask in masks):
                continue
            first, second = (boundary_region(mask, width) & (truth != IGNORE) for mask in masks)
            self.counts[label] += (first & second).sum(), (first | second).sum()

    def scores(self, labels: np.ndarray | None = None) -> list[float | None]:
        """The boundary IoU of each label; None if it has no pixel, or is not one of `labels`, (C + 1,) bool."""
        chosen = np.ones(len(self.counts), bool) if labels is None else labels
        return [float(both / either) if either and known else None for (both, either), known in zip(self.counts, chosen)]

    def mean(self, labels: np.ndarray | None = None) -> float | None:
        """The mean over the labels that have one."""
        known = [score for score in self.scores(labels) if score is not None]
        return float(np.mean(known)) if known else None


def boundary_region(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask (H, W) bool at most `width` pixels away from its outside, which includes that of the image."""
    from scipy.ndimage import distance_transform_cdt  # late: plans read the steps that score

    distance = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    return mask & (distance <= width)
