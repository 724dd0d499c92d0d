"""Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class GradCAM(CamMethod):
    """Grad-CAM (section 3): ReLU(sum_k a_k A_k), with A_k the activations of a stage and a_k the mean over their cells of the
    gradient of the class's logit (before any softmax) with respect to A_k.

    At the last stage, with a linear classifier after average pooling, it is CAM divided by the number of cells (section 3.1).

    stage: index of the backbone's stages, fine to coarse from 0; negative ones count from the end, -1: the features that are
    pooled.
    """

    stage: int

    title: ClassVar[str] = "Grad-CAM"
    gradients: ClassVar[bool] = True

    def maps(self, net: Classifier, features_of: Callable[[Tensor], Tensor], pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the stage; not negative. `features_of` is not used. Raises ConfigError if the
        backbone has no such stage."""
        from wsss.cams.gradients import stage_maps

        return stage_maps(net, pair, classes, [self.stage], _map)[0]

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the backbone does not have this stage."""
        from wsss.cams.gradients import stage_numbers

        stage_numbers(net, [self.stage])

    def scale_weight(self, pair: Tensor) -> float:
        # the gradient of a mean over the cells shrinks with their number: without this the coarsest scale outweighs the others
        return float(pair.shape[2] * pair.shape[3])


def _map(activation: Tensor, gradient: Tensor) -> Tensor:
    import torch

    return torch.einsum("bd,bdhw->bhw", gradient.mean((2, 3)), activation).relu_()


Method = GradCAM
