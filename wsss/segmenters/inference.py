"""Masks of images, from a segmentation network: at several scales, with a dense CRF."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.cams.method import image_pairs
from wsss.data.images import IMAGENET, Normalisation
from wsss.refinement.crf import DenseCRF
from wsss.refinement.masks import mask_of
from wsss.refiners.crf import kernels_of
from wsss.resize import resize

Logits = Callable[[Tensor], Tensor]


def segment(logits: Logits, image: np.ndarray, size: Sequence[int], settings: Any, device: torch.device | str = "cpu",
            normalisation: Normalisation = IMAGENET) -> dict[str, np.ndarray]:
    """The masks of an image: "" is the mask.

    Args:
        logits: normalised images (B, 3, h, w) on `device` -> (B, C + 1, h', w') float32 of the labels, background first.
        image: (H, W, 3) uint8.
        size: (H', W') of the masks.
        settings: those of infer_seg: scales, flip, crf, crf_iterations and the kernels of the CRF.
        normalisation: of the network's input.

    Returns:
        Masks (H', W') uint8: 0 background, i + 1 class i.
    """
    soft = probabilities(logits, image, settings.scales, settings.flip, device, normalisation)
    if settings.crf:
        unary = -soft.clamp(min=torch.finfo(torch.float32).tiny).log()
        crf = DenseCRF(torch.from_numpy(image).to(soft.device), **kernels_of(settings))
        soft = crf.inference(unary, settings.crf_iterations)
    return {"": mask_of(resize(soft, size), range(len(soft) - 1))}


def probabilities(logits: Logits, image: np.ndarray, scales: Sequence[float] = (1.0,), flip: bool = False,
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
