"""Eigen-CAM: Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod, Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class EigenCAM(CamMethod):
    """Eigen-CAM: the features of the cells (n, D) projected on their first right singular vector, then a ReLU. It has no
    settings.

    It does not depend on the class: all classes of an image have the same map. The sign of a singular vector is free; here the
    sum of the map is not negative. As in the paper, no mean is subtracted before the decomposition (pytorch-grad-cam subtracts
    that of the cells), so the map of features after a ReLU is not negative.
    """

    title: ClassVar[str] = "Eigen-CAM"

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the features; not negative. One forward pass."""
        features = features_of(pair)
        projected = _projected(features.flatten(2)).unflatten(1, features.shape[2:])
        return projected[:, None].repeat(1, len(classes), 1, 1)

    # `scale_weight` is 1: a projected feature does not depend on the number of cells


def _projected(features: Tensor) -> Tensor:
    """The cells (B, D, n) on their first singular vector, (B, n), not negative, from the smaller of both matrices of products.
    NaN, which is refused later as other maps are, if these products are not finite: then they have no eigenvectors."""
    import torch

    channels, cells = features.shape[1:]
    products = features @ features.mT if channels <= cells else features.mT @ features
    finite = products.isfinite().flatten(1).all(1)[:, None]
    values, vectors = torch.linalg.eigh(products.where(finite[..., None], 0.0))
    if channels <= cells:
        projected = torch.einsum("bd,bdn->bn", vectors[..., -1], features)
    else:
        projected = values[:, -1:].clamp(min=0).sqrt() * vectors[..., -1]          # the singular value times the left vector
    return torch.where(projected.sum(1, keepdim=True) < 0, -projected, projected).relu_().where(finite, torch.nan)


Method = EigenCAM
