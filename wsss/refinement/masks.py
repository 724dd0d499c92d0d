"""Pseudo masks from activation maps.

A background threshold and the maps of the present classes, before or after IRN's random walk (`random_walk`), are the scores
(K + 1, H, W). Their argmax is the mask, or the dense CRF (`wsss.refinement.crf`) starts from them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.errors import ArgumentError
from wsss.finite import require_finite

VOC_CELLS = 94 * 125  # of a VOC image (375 x 500) at stride 4, for which the official 2^8 steps were chosen


def walk_steps(height: int, width: int, exp_times: int = 8) -> int:
    """The number of random walk steps on a grid (height, width) that spread over the same share of the image as the official
    2^exp_times steps on a VOC image: n steps reach about sqrt(n) radii, so n is proportional to the area.

    Returns at least 1; 2^exp_times at 94 x 125 cells.
    """
    if height < 1 or width < 1 or exp_times < 0:
        raise ArgumentError(f"walk_steps: height={height}, width={width}, exp_times={exp_times}; expected at least 1, 1 and 0")
    return max(1, round(2**exp_times * height * width / VOC_CELLS))


def with_background(maps: Tensor, threshold: float) -> Tensor:
    """Scores (K + 1, H, W): a constant background of `threshold`, then the maps (K, H, W) in [0, 1]; K may be 0."""
    return torch.cat([maps.new_full((1, *maps.shape[1:]), threshold), maps])


def mask_of(scores: Tensor, classes: Sequence[int]) -> np.ndarray:
    """The mask (H, W) uint8 of scores (K + 1, H, W), background first, of K `classes` (0-based): 0 background, class + 1. A tie
    goes to the first, so to background. Raises ArgumentError for scores that are not finite."""
    values = torch.tensor([0] + [c + 1 for c in classes], device=scores.device)
    return values[labels_of(scores, 0)].byte().cpu().numpy()


def labels_of(scores: Tensor, dim: int) -> Tensor:
    """The index of the greatest score along a dimension; a tie goes to the first.

    Raises ArgumentError for scores that are not finite: NaN would be the greatest.
    """
    best = scores.max(dim)
    require_finite(best.values, "mask: the scores of the labels")
    return best.indices
