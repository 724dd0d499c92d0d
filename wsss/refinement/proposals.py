"""Votes of class-agnostic masks (proposals) on the class of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor


def vote_of_proposals(scores: Tensor, proposals: Sequence[np.ndarray]) -> Tensor:
    """Scores after the vote of each proposal, which takes the mean of the scores in it.

    The class with the highest mean has the proposal; if that is the background threshold, none has. A pixel gets the means of
    the smallest proposal with a class that covers it; without one those of the smallest that covers it; without any it keeps its
    scores. So parts do not erase the object that they belong to.

    Args:
        scores: (n, K + 1, H, W), the background threshold first; each of the n is on its own.
        proposals: the numbers of the pixels of each (row times W plus column), the largest first.

    Returns:
        (n, K + 1, H, W); the argmax is the mask.
    """
    flat = scores.flatten(2)                                      # (n, K + 1, P)
    regions = [torch.from_numpy(region).to(scores.device) for region in proposals]
    means = [flat[:, :, region].mean(dim=2) for region in regions]   # (n, K + 1) each
    voted = flat.clone()
    for with_class in (False, True):
        for region, mean in zip(regions, means, strict=True):
            for i in ((mean.argmax(dim=1) > 0) == with_class).nonzero().flatten().tolist():
                voted[i, :, region] = mean[i][:, None]
    return voted.view_as(scores)
