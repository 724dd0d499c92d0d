"""The random walk from the seed maps of an image."""

import torch

from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext
from steps.runtime.networks import load_irn, network_input
from wsss.cams.maps import from_stride_4
from wsss.refinement.masks import walk_steps
from wsss.refinement.walk import random_walk


class Walk:
    """Runs the random walk of images from their seed `maps`."""

    def __init__(self, context: StepContext, maps: Maps):
        self.context, self.maps, self.irn = context, maps, load_irn(context)

    def __call__(self, image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The walked maps (K, h, w), divided by their common maximum, and the edge map (h, w), at stride 4."""
        context, settings = self.context, self.context.settings
        with torch.inference_mode():
            batch = network_input(context, self.irn, image_id, flip=True)   # (2, 3, H, W)
            with context.runtime.autocast():
                edge = self.irn.edge_map(batch, settings.pad_to or 0).float()   # (1, h, w)
        walked = self.again(edge[0], image_id, settings.beta, settings.exp_times)
        highest = walked.max() if walked.numel() else walked.new_zeros(())
        return (walked / highest if highest > 0 else walked), edge[0]

    def in_size(self, image_id: str) -> torch.Tensor:
        """The walked maps (K, H, W) in the size of the image, divided by their common maximum."""
        return self.soft(self(image_id)[0], image_id, self.context.dataset.size(image_id))

    def again(self, edge: torch.Tensor, image_id: str, beta: float, exp_times: int) -> torch.Tensor:
        """The walked maps for other exponents, from the edge map (h, w) of the image; not divided: `soft` does that."""
        settings = self.context.settings
        with torch.inference_mode():
            seeds = self.maps.at(image_id, "strided", self.context.runtime.device)   # (K, h, w)
            height, width = edge.shape
            steps = walk_steps(height, width, exp_times) if settings.scale_steps else 2**exp_times
            return random_walk(seeds, edge[None], beta=beta, steps=steps, radius=settings.radius)

    def soft(self, walked: torch.Tensor, image_id: str, size: tuple[int, int]) -> torch.Tensor:
        """The walked maps at `size` (H, W): upsampled x4 and cropped (official), then divided by their common maximum."""
        facts = self.maps.facts(image_id)
        soft = from_stride_4(walked, (facts["height"], facts["width"]), size)   # the sizes differ with data.max_side
        highest = soft.max() if soft.numel() else soft.new_zeros(())
        return soft / highest if highest > 0 else soft
