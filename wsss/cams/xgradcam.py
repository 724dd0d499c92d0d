"""XGrad-CAM: Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import StageMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class XGradCAM(StageMethod):
    """XGrad-CAM: ReLU(sum_k a_k A_k), with A_k the activations of a stage and a_k = sum_ij A_k g_k / sum_ij A_k the
    mean of the gradient g_k of the class's logit with respect to A_k, weighted by the activations.

    Where the gradient is the same in all cells, as at the last stage with a linear classifier after average pooling, it is
    Grad-CAM. A channel whose activations sum to 0 has weight 0; torchcam and pytorch-grad-cam add 1e-8 and 1e-7 to the sum
    instead. The weights are means only if the activations are not negative, as after a ReLU: on the tokens of a transformer, sums
    near 0 make single channels outweigh all others.

    stage: as of `StageMethod`.
    """

    title: ClassVar[str] = "XGrad-CAM"

    @staticmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        import torch

        from wsss.cams.gradients import copy_in_layout

        total = activation.sum((2, 3))   # (B, D)
        weighted = copy_in_layout(gradient, activation).mul_(activation).sum((2, 3))
        weights = torch.where(total == 0, 0, weighted / total)
        return torch.einsum("bd,bdhw->bhw", weights, activation).relu_()

    def scale_weight(self, pair: Tensor) -> float:
        return float(pair.shape[2] * pair.shape[3])   # a mean of gradients, which shrink with the number of cells, as in Grad-CAM


Method = XGradCAM
