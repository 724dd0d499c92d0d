"""Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import StageMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class GradCAM(StageMethod):
    """Grad-CAM (section 3): ReLU(sum_k a_k A_k), with A_k the activations of a stage and a_k the mean over their cells of the
    gradient of the class's logit (before any softmax) with respect to A_k.

    At the last stage, with a linear classifier after average pooling, it is CAM divided by the number of cells (section 3.1).

    stage: index of the backbone's stages, fine to coarse from 0; negative ones count from the end, -1: the features that are
    pooled.
    """

    title: ClassVar[str] = "Grad-CAM"

    @staticmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        import torch

        return torch.einsum("bd,bdhw->bhw", gradient.mean((2, 3)), activation).relu_()

    def scale_weight(self, pair: Tensor) -> float:
        # the gradient of a mean over the cells shrinks with their number: without this the coarsest scale outweighs the others
        return float(pair.shape[2] * pair.shape[3])


Method = GradCAM
