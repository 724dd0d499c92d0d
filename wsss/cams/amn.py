"""The activation maps of AMN (`wsss.networks.amn`): official `net/resnet50_amn.py` (CAM), `step/make_amn_cam.py`."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.cams.method import image_pairs
from wsss.data.images import IMAGENET, Normalisation, resize_mask
from wsss.errors import ArgumentError
from wsss.finite import require_finite
from wsss.resize import resize

EPSILON = 1e-5   # added to the range of a map; official: step/make_amn_cam.py


def amn_logits(logits_of: Callable[[Tensor], Tensor], image: np.ndarray, scales: Sequence[float],
               device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> list[Tensor]:
    """The logits of an image at each scale, the mean of those of the image and of its mirror image: per scale (C + 1, h, w).

    `logits_of`: (2, 3, H, W), normalised, on `device` -> (2, C + 1, h, w). `image`: (H, W, 3) uint8.
    """
    with torch.inference_mode():
        pairs = (logits_of(pair) for pair in image_pairs(image, scales, device, normalisation))
        return [(straight + mirrored.flip(-1)) / 2 for straight, mirrored in pairs]


def amn_maps(logits: Sequence[Tensor], classes: Sequence[int], label: np.ndarray, size: Sequence[int]) -> Tensor:
    """The maps of the background and of the present classes: the softmax over all labels of the mean of the logits over the
    scales. Where `label` is not confident background, each map minus its least value in the image, divided by its range.

    Args:
        logits: per scale (C + 1, h, w), background first.
        classes: the present ones, 0-based, K of them; K may be 0.
        label: (H, W) uint8, the confident label that AMN was trained on; resized by Pillow's nearest neighbour.
        size: (h, w) of the maps: that of the image for the official `high_res`, a quarter of it, rounded up, for `cam`.

    Returns:
        (1 + K, h, w) float32 in [0, 1], the background first.

    Raises:
        ArgumentError: no logits, or a class beyond them, or maps that are not finite.
    """
    if not logits or not all(0 <= index < len(logits[0]) - 1 for index in classes):
        raise ArgumentError(f"amn_maps: logits has {len(logits)} scales of {[tuple(each.shape) for each in logits]}, classes is "
                            f"{list(classes)}; expected per scale (C + 1, h, w), and classes from 0 to C - 1")
    total = torch.zeros(len(logits[0]), *size, device=logits[0].device)   # (C + 1, h, w)
    for each in logits:   # one by one: an image of COCO has 130 MB of logits in its size
        total += resize(each.float(), size)
    maps = total.div_(len(logits)).softmax(0)[[0, *(index + 1 for index in classes)]]
    least, greatest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    require_finite(greatest, "amn_maps: the maps")
    stretched = (maps - least) / (greatest - least + EPSILON)
    background = torch.from_numpy(resize_mask(label, (size[0], size[1])) == 0).to(maps.device)
    return torch.where(background, maps, stretched)
