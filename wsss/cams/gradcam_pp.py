"""Grad-CAM++: Chattopadhay et al., "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks",
WACV 2018."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import StageMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class GradCAMpp(StageMethod):
    """Grad-CAM++ (section 3.2): ReLU(sum_k w_k A_k) with w_k = sum_ij alpha_k(i,j) ReLU(g_k(i,j)) and, for the score exp(logit)
    of the paper, alpha = g^2 / (2 g^2 + g^3 sum_ab A_k(a,b)) (eq. 19), where A_k are the activations of a stage and g_k the
    gradient of the class's logit with respect to A_k.

    Where g > 0, alpha g = g / (2 + g sum A_k); elsewhere the ReLU makes it 0. This form has no powers that could underflow. The
    factor exp(logit) of the paper's gradient is the same for all channels and left out, as in all codes. pytorch-grad-cam has
    this definition (with 1e-6 in the denominator); the authors' code also divides the alphas of a channel by their sum; in
    torchcam the division by the denominator has no effect, so its alpha is g^2, and its denominator has sum_ab A_k(a,b)
    g_k(a,b)^3, as F-CAM's code. At the last stage of a linear classifier after average pooling, as in F-CAM's table, the gradient
    is the same in all cells, and both denominators are the same.

    stage: as of `StageMethod`.
    """

    title: ClassVar[str] = "Grad-CAM++"

    @staticmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        import torch

        positive = gradient.relu()
        denominator = 2 + positive * activation.sum((2, 3), keepdim=True)   # 0 is possible only if activations are negative
        weights = torch.where(denominator == 0, 0, positive / denominator).sum((2, 3))
        return torch.einsum("bd,bdhw->bhw", weights, activation).relu_()

    # `scale_weight` is 1: the gradient of a mean over the cells shrinks with their number, but the weights are sums over them


Method = GradCAMpp
