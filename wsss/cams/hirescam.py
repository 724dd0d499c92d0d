"""HiResCAM: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
arXiv 2011.08891."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import StageMethod

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class HiResCAM(StageMethod):
    """HiResCAM: ReLU(sum_k g_k A_k), with A_k the activations of a stage and g_k the gradient of the class's logit with respect
    to A_k, cell by cell.

    The paper's map is the sum itself, which has negative values; the ReLU is that of pytorch-grad-cam and of the other maps here.
    LayerCAM also applies a ReLU to g_k. Where the gradient is the same in all cells, as at the last stage with a linear
    classifier after average pooling, it is Grad-CAM.

    stage: as of `StageMethod`.
    """

    title: ClassVar[str] = "HiResCAM"

    @staticmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        from wsss.cams.gradients import copy_in_layout

        return copy_in_layout(gradient, activation).mul_(activation).sum(1).relu_()

    def scale_weight(self, pair: Tensor) -> float:
        return float(pair.shape[2] * pair.shape[3])   # the gradients shrink with the number of cells, as in Grad-CAM


Method = HiResCAM
