"""Ten crops of an image, as in Caffe and in the evaluation of the CAM paper: activation maps and logits of all of them.

The image is resized to 256x256 without regard to its aspect; the crops are its corners and its centre, 224x224, and their mirror
images (Krizhevsky et al., NeurIPS 2012, section 4.1; `caffe.io.oversample`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsss.cams.method import CamMethod, Features
from wsss.data.images import IMAGENET, Normalisation, normalise, resize_image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier

RESIZED, CROP = 256, 224
_END, _MIDDLE = RESIZED - CROP, (RESIZED - CROP) // 2
CORNERS = ((0, 0), (0, _END), (_END, 0), (_END, _END), (_MIDDLE, _MIDDLE))   # top and left of each crop


def crop_pairs(image: np.ndarray, device: torch.device | str = "cpu",
               normalisation: Normalisation = IMAGENET) -> Iterator[Tensor]:
    """The crops of an image (H, W, 3) uint8 in the order of `CORNERS`, each with its mirror image, (2, 3, 224, 224) normalised
    float32 on `device`. Differs from Caffe in the resizing: PIL's bicubic filter, as for all images here."""
    import torch

    resized = normalise(resize_image(image, (RESIZED, RESIZED)), device, normalisation)   # (3, 256, 256)
    for top, left in CORNERS:
        crop = resized[:, top:top + CROP, left:left + CROP]
        yield torch.stack([crop, crop.flip(-1)])


def ten_crop_maps(method: CamMethod, net: Classifier, features_of: Features, image: np.ndarray, classes: Sequence[int],
                  device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> list[Tensor]:
    """The maps that a method makes of the ten crops, placed and summed (`placed`): one grid, [(K, 256, 256)] float32.

    Arguments as `wsss.cams.method.multi_scale_maps`.
    """
    import torch

    with torch.inference_mode(not method.gradients), torch.set_grad_enabled(method.gradients):
        pairs = crop_pairs(image, device, normalisation)
        return [placed(method.maps(net, features_of, pair, classes).detach() for pair in pairs)]


def placed(maps: Iterable[Tensor]) -> Tensor:
    """The maps (2, K, h, w) of each crop and its mirror image, enlarged to the crop (bilinear) and summed at its place in the
    resized image, as absolute values: (K, 256, 256). Not divided by the number of crops that cover a pixel (the CAM paper's
    released `mergeTenCrop.m`)."""
    from wsss.resize import resize

    crops = [resize(pair, (CROP, CROP)).abs() for pair in maps]   # (2, K, 224, 224)
    total = crops[0].new_zeros(crops[0].shape[1], RESIZED, RESIZED)
    for (top, left), crop in zip(CORNERS, crops, strict=True):
        total[:, top:top + CROP, left:left + CROP] += crop[0] + crop[1].flip(-1)
    return total


def ten_crop_logits(logits_of: Callable[[Tensor], Tensor], image: np.ndarray, device: torch.device | str = "cpu",
                    normalisation: Normalisation = IMAGENET) -> Tensor:
    """The mean of the logits of the ten crops, (C,) float32. `logits_of`: images (B, 3, H, W) to logits (B, C); other arguments
    as `ten_crop_maps`."""
    import torch

    with torch.inference_mode():
        return torch.cat([logits_of(pair).float() for pair in crop_pairs(image, device, normalisation)]).mean(0)
