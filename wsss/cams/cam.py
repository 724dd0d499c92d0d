"""Class activation maps at several scales, and the features at several scales that LPCAM uses.

CAM (Zhou et al. 2016, section 2) as in IRN `net/resnet50_cam.py` and `step/make_cam.py`. The result is per scale, on the
feature grid; `wsss.cams.maps` stores it and rebuilds the official maps from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsss.cams import SCALES
from wsss.cams.method import CamMethod, Features, flip_sum, image_pairs
from wsss.data.images import IMAGENET, Normalisation
from wsss.errors import ArgumentError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class CAM(CamMethod):
    """The classifier on every feature, without its bias; its head must be linear in its pooled features. It has no settings."""

    title: ClassVar[str] = "CAM"

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        from wsss.classifiers.classifier import linear_weights

        return class_activation_maps(features_of(pair), linear_weights(net, "CAM", of_maps=True)[classes])

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the head of the classifier is not linear in its features."""
        from wsss.classifiers.classifier import linear_weights

        linear_weights(net, "CAM")


Method = CAM


def class_activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """ReLU of the bias-free 1x1 classifier on every feature.

    Args:
        features: (B, D, h, w) of the last layer.
        weight: (n, D), the rows of the requested classes; n may be 0.

    Returns:
        (B, n, h, w) float32, not negative.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ArgumentError(
            f"class_activation_maps: features {tuple(features.shape)} and weight {tuple(weight.shape)}, "
            "expected (B, D, h, w) and (n, D)"
        )
    return (weight.float() @ features.float().flatten(2)).relu_().unflatten(2, features.shape[2:])


def multi_scale_features(
    network_features: Callable[[Tensor], Tensor],
    image: np.ndarray,
    scales: Sequence[float] = SCALES,
    device: torch.device | str = "cpu",
    normalisation: Normalisation = IMAGENET,
) -> Iterator[Tensor]:
    """The features of one image and its mirror image, scale by scale, without gradients.

    One forward pass sees only one image and its mirror image (`wsss.cams.method.image_pairs`), so results do not depend on
    other images.

    Args:
        network_features: (2, 3, h, w) normalised float32 on `device` -> (2, D, h', w'), in evaluation mode.
        image: (H, W, 3) uint8.
        scales: relative to the original size.
        normalisation: of the network's input.

    Yields:
        (2, D, h', w') for each scale.
    """
    import torch

    for pair in image_pairs(image, scales, device, normalisation):
        with torch.no_grad():
            features = network_features(pair)
        yield features


def multi_scale_cam(
    network_features: Callable[[Tensor], Tensor],
    image: np.ndarray,
    weight: Tensor,
    scales: Sequence[float] = SCALES,
    device: torch.device | str = "cpu",
    normalisation: Normalisation = IMAGENET,
) -> list[Tensor]:
    """The class activation maps of one image and its mirror image, summed: per scale (n, h_s, w_s) float32 on `device`.

    Args: as for `multi_scale_features`, and `weight` (n, D): the classifier's rows of the present classes.
    """
    weight = weight.to(device)
    features = multi_scale_features(network_features, image, scales, device, normalisation)
    return [flip_sum(class_activation_maps(f, weight)) for f in features]
