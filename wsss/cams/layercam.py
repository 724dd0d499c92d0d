"""LayerCAM: Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier

GAMMA = 2.0   # paper, eq. 9


@dataclass
class LayerCAM(CamMethod):
    """LayerCAM (section III): M = ReLU(sum_k ReLU(g_k) A_k), with A_k the activations of a stage and g_k the gradient of the
    class's logit (before any softmax) with respect to A_k, cell by cell.

    Several stages: each M becomes tanh(2 M / max M) (eq. 9), in [0, 0.964], is resized to the finest stage (bilinear), and the
    element-wise maximum is taken. The paper scales the shallow stages, whose values are low; here all chosen stages are scaled,
    as in torchcam, so that no stage outweighs another. Before a layer with a stride the authors' localisation code takes the
    gradient behind that layer, enlarged; here it is the gradient at the stage itself, as defined.

    stages: indices of the backbone's stages, fine to coarse from 0; negative ones count from the end, -1: the features that are
    pooled.
    """

    stages: list[int]

    title: ClassVar[str] = "LayerCAM"
    gradients: ClassVar[bool] = True

    def maps(self, net: Classifier, features_of: Callable[[Tensor], Tensor], pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the finest of the stages; not negative. `features_of` is not used. Raises
        ConfigError if there are no stages, or one that the backbone does not have."""
        from wsss.cams.gradients import stage_maps

        return _fused(stage_maps(net, pair, classes, self.stages, _map))

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the backbone does not have these stages."""
        from wsss.cams.gradients import stage_numbers

        stage_numbers(net, self.stages)

    def scale_weight(self, pair: Tensor) -> float:
        # as in Grad-CAM; the maps of several stages are scaled already
        return float(pair.shape[2] * pair.shape[3]) if len(self.stages) == 1 else 1.0


def _map(activation: Tensor, gradient: Tensor) -> Tensor:
    from wsss.cams.gradients import copy_in_layout

    return copy_in_layout(gradient, activation).relu_().mul_(activation).sum(1).relu_()


def _fused(maps: list[Tensor]) -> Tensor:
    """One map (B, K, h, w) from those of all stages, fine to coarse."""
    import torch

    from wsss.cams.maps import at_size

    if len(maps) == 1:
        return maps[0]
    tiny = torch.finfo(torch.float32).tiny   # a map without positive values stays zero
    scaled = [(GAMMA * m / m.amax((2, 3), keepdim=True).clamp(min=tiny)).tanh_() for m in maps]
    size = maps[0].shape[2:]
    return torch.stack([at_size(m.flatten(0, 1), size) for m in scaled]).amax(0).view_as(maps[0])


Method = LayerCAM
