"""Class activation maps with their negative values: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR
2016."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.cam import CAM
from wsss.cams.method import Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class SignedCAM(CAM):
    """CAM (section 2) without a ReLU, as in torchcam, F-CAM's code and that of wsolevaluation, which then map the least value to
    0 and the greatest to 1. IRN and pytorch-grad-cam have the ReLU. It has no settings."""

    title: ClassVar[str] = "CAM without ReLU"
    range: ClassVar[tuple[float, float]] = (-1, 1)

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the features, of either sign. One forward pass."""
        import torch

        from wsss.classifiers.classifier import linear_weights

        return torch.einsum("kd,bdhw->bkhw", linear_weights(net, "CAM")[classes].float(), features_of(pair).float())


Method = SignedCAM
