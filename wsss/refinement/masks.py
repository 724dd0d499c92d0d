"""Pseudo masks from seed maps: what comes between activation maps and masks.

The maps of the classes present, as they are or after IRN's random walk (`random_walk`), stand beside a background threshold as
scores (K + 1, H, W), whose greatest is the mask; or the dense CRF (`wsss.refinement.crf`) starts from these scores.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.errors import ArgumentError

VOC_CELLS = 94 * 125  # of a VOC image, 375 x 500, at stride 4: what the official 2^8 steps were set for


def walk_steps(height: int, width: int, exp_times: int = 8) -> int:
    """The number of steps of a random walk on a grid (height, width) that spreads over the same share of the image as the
    official 2^exp_times steps do on a VOC image: after n steps a walk is about sqrt(n) radii away, so n grows with the area.

    Returns at least 1; 2^exp_times at 94 x 125 cells.
    """
    if height < 1 or width < 1 or exp_times < 0:
        raise ArgumentError(f"walk_steps: height={height}, width={width}, exp_times={exp_times}; expected at least 1, 1 and 0")
    return max(1, round(2**exp_times * height * width / VOC_CELLS))


def with_background(maps: Tensor, threshold: float) -> Tensor:
    """Scores (K + 1, H, W): a background of `threshold` everywhere, then the maps (K, H, W) in [0, 1]; K may be 0."""
    return torch.cat([maps.new_full((1, *maps.shape[1:]), threshold), maps])


def mask_of(scores: Tensor, classes: Sequence[int]) -> np.ndarray:
    """The mask (H, W) uint8 of scores (K + 1, H, W), background first, of K `classes` (0-based): 0 background, class + 1. The
    first wins a tie, so background does."""
    values = torch.tensor([0] + [c + 1 for c in classes], device=scores.device)
    return values[scores.max(dim=0).indices].byte().cpu().numpy()
