"""The random walk that spreads the maps of one image after the other, and the mask that is cut out of them."""

from collections.abc import Sequence

import numpy as np
import torch

from steps.artifacts import Maps
from steps.context import StepContext
from steps.networks import load_irn, network_input
from wsss.maps import from_stride_4
from wsss.walk import random_walk


class Walk:
    """The random walk of one image after the other."""

    def __init__(self, context: StepContext):
        self.context, self.maps, self.irn = context, Maps(context.seed_folder), load_irn(context)

    def __call__(self, image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The walked maps (K, h, w), divided by their common maximum, and the edge map (h, w), at stride 4."""
        context, settings = self.context, self.context.settings
        with torch.inference_mode():
            batch = network_input(context, self.irn, image_id, flip=True)   # (2, 3, H, W)
            with context.autocast():
                edge = self.irn.edge_map(batch, settings.pad_to or 0).float()   # (1, h, w)
        walked = self.again(edge[0], image_id, settings.beta, settings.exp_times)
        highest = walked.max() if walked.numel() else walked.new_zeros(())
        return (walked / highest if highest > 0 else walked), edge[0]

    def again(self, edge: torch.Tensor, image_id: str, beta: float, exp_times: int) -> torch.Tensor:
        """The walked maps of an image whose edge map (h, w) is known, for other exponents; not divided: `soft` does that."""
        with torch.inference_mode():
            seeds = self.maps.map(image_id, "strided", self.context.device)   # (K, h, w)
            return random_walk(seeds, edge[None], beta=beta, exp_times=exp_times, radius=self.context.settings.radius)

    def soft(self, walked: torch.Tensor, image_id: str) -> tuple[torch.Tensor, tuple[int, int]]:
        """The walked maps at the size of the photograph: official x4, crop; then divided by their common maximum."""
        facts, size = self.maps.facts(image_id), self.context.dataset.size(image_id)
        soft = from_stride_4(walked, (facts["height"], facts["width"]), size)   # differ where data.max_side shrank the photograph
        highest = soft.max() if soft.numel() else soft.new_zeros(())
        return (soft / highest if highest > 0 else soft), size


def mask_of(soft: torch.Tensor, classes: Sequence[int], threshold: float) -> np.ndarray:
    """(H, W) uint8 from maps (K, H, W): the greatest map's class + 1 where that map exceeds the threshold, else background 0."""
    values = torch.tensor([0] + [c + 1 for c in classes], device=soft.device)
    background = soft.new_full((1, *soft.shape[1:]), threshold)
    return values[torch.cat([background, soft]).max(dim=0).indices].byte().cpu().numpy()
