"""Probabilities of the labels of an image, from a segmentation network at several scales."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.cams.method import image_pairs
from wsss.data.images import IMAGENET, Normalisation
from wsss.resize import resize


def probabilities(logits: Callable[[Tensor], Tensor], image: np.ndarray, scales: Sequence[float] = (1.0,), flip: bool = False,
                  device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> Tensor:
    """The mean over the scales, and with `flip` over the mirror images, of the softmax of the logits, which are resized to the
    image first (bilinear).

    Args:
        logits: normalised images (B, 3, h, w) on `device` -> (B, C + 1, h', w') float32 of the labels, background first.
        image: (H, W, 3) uint8.
        scales: relative to the size of the image.
        normalisation: of the network's input.

    Returns:
        (C + 1, H, W) float32, without a graph.
    """
    with torch.inference_mode():
        found = []
        for pair in image_pairs(image, scales, device, normalisation):
            each = resize(logits(pair if flip else pair[:1]), image.shape[:2]).softmax(1)
            found.append((each[0] + each[1].flip(-1)) / 2 if flip else each[0])
        return torch.stack(found).mean(0)
