"""A background threshold from maps and images alone, without any mask.

Otsu ("A threshold selection method from gray-level histograms", 1979) takes the threshold whose two sides explain most of the
variance of the values. Of maps alone this does not know the image, and of the image's colours alone it fails where objects have
no colour of their own. The product of both asks for a foreground that is apart in the maps and in the image. docs/results.md
compares this rule, which is ours, with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsss.errors import ArgumentError, DataError
from wsss.metrics.semantic import THRESHOLDS

if TYPE_CHECKING:
    from torch import Tensor

UNIT = 2**30   # shares are summed as integers in this unit, so that the order of the images changes no bit


class Separation:
    """How well each background threshold separates the values of maps, and the colours of their images.

    Attributes:
        thresholds: (T,) increasing, in [0, 1].
        sums: (2, T) int64, of maps and of colours: the share of the variance in an image that its two sides explain, summed over
            the images. Those of several parts of a list can be added.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS):
        self.thresholds = tuple(thresholds)
        self.sums = np.zeros((2, len(self.thresholds)), np.int64)

    def update(self, maps: Tensor | np.ndarray, image: np.ndarray) -> None:
        """Count one image.

        Args:
            maps: (K, H, W) in [0, 1], on any device; K may be 0, then the image says nothing and is left out. A pixel is
                foreground where its greatest map exceeds the threshold.
            image: (H, W, 3) uint8, in the frame of the maps.

        Raises:
            ArgumentError: the shapes do not fit.
        """
        maps = maps.detach().cpu().numpy() if hasattr(maps, "detach") else np.asarray(maps)
        if maps.ndim != 3 or image.shape != (*maps.shape[1:], 3):
            raise ArgumentError(f"separation: maps has shape {maps.shape}, image {image.shape}; expected (K, H, W) and (H, W, 3)"
                                ": resize the maps to the image")
        if not len(maps):
            return
        values = maps.max(axis=0).astype(np.float32).ravel()
        passed = np.searchsorted(np.array(self.thresholds, np.float32), values)   # (P,), the thresholds below each value
        for row, features in enumerate((values[None], image.reshape(-1, 3).T)):
            self.sums[row] += np.rint(UNIT * self._explained(passed, features.astype(np.float64))).astype(np.int64)

    def _explained(self, passed: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The share (T,) of the variance of features (D, P) between the two sides of each threshold; 0 if a side is empty."""
        bins = len(self.thresholds) + 1
        below = np.bincount(passed, minlength=bins).cumsum()[:-1]                                        # (T,) pixels
        sums = np.stack([np.bincount(passed, each, bins) for each in features]).cumsum(axis=1)           # (D, T + 1)
        total, pixels = sums[:, -1:], features.shape[1]
        variance = (features**2).sum() - (total**2).sum() / pixels
        both = (below > 0) & (below < pixels)
        if variance <= 0 or not both.any():
            return np.zeros(len(below))
        under = np.where(both, below, 1)
        gap = sums[:, :-1] / under - (total - sums[:, :-1]) / np.where(both, pixels - below, 1)          # of the two means
        return np.where(both, under * (pixels - under) / pixels * (gap**2).sum(axis=0) / variance, 0.0)

    def best(self) -> float:
        """The threshold with the greatest product of both shares, the lowest such one.

        Raises DataError if no threshold separates anything: the maps or all images are constant, or there are none.
        """
        product = self.sums[0].astype(float) * self.sums[1]
        if not product.any():
            raise DataError("no background threshold separates the maps of these images: there are none, or they or the images "
                            "are constant; expected maps that differ between object and background: set the threshold")
        return self.thresholds[int(product.argmax())]
