"""Smooth Grad-CAM++: Omeiza et al., "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep
Convolutional Neural Network Models", arXiv 1908.01224."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import Features, StageMethod
from wsss.cams.noise import noises

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class SmoothGradCAMpp(StageMethod):
    """Smooth Grad-CAM++: Grad-CAM++ with the means of g, g^2 and g^3 over noisy copies of the image in place of the
    gradient g of the class's logit and of its powers, and with the activations of the image without noise.

    w_k = sum_ij alpha_k ReLU(mean g) with alpha = mean g^2 / (2 mean g^2 + mean g^3 sum_ab A_k(a,b)). In the paper the numerator
    of alpha is the mean of g; torchcam also has that of g^2, as in Grad-CAM++, from which the formula is derived.

    The noise depends on the image at its scale alone, not on the order of images or the seed of a run; that of the mirror image
    is mirrored. It costs `samples` times as many forward and backward passes as Grad-CAM++.

    stage: as of `StageMethod`.
    definition: "paper", or "fcam" for that of F-CAM's code (a fork of torchcam): ReLU(g) and the activations of the sum over k
        are those of the last noisy copy, and the sum in alpha is sum_ab A_k(a,b) (mean g^3)(a,b).
    samples: noisy copies.
    std: of the Gaussian noise, added to the normalised image.
    """

    definition: str
    samples: int
    std: float

    title: ClassVar[str] = "Smooth Grad-CAM++"

    def __post_init__(self) -> None:
        self.require(self.definition in ("paper", "fcam"), "definition", "paper or fcam")
        self.require(self.samples >= 1, "samples", "at least 1")
        self.require(self.std >= 0, "std", "at least 0")

    @staticmethod
    def map_of(activation: Tensor, gradient: Tensor) -> Tensor:
        """The powers (B, 3, D, h, w) of the gradient, whose means make the map."""
        import torch

        return torch.stack([gradient, gradient ** 2, gradient ** 3], dim=1)

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `StageMethod.maps`, with a forward pass and K backward passes for each noisy copy."""
        import torch

        from wsss.cams.gradients import stage_activations, stage_maps

        activation = stage_activations(net, pair, self.stage)   # (2, D, h, w)
        if not classes:
            return activation.new_zeros(len(pair), 0, *activation.shape[2:])
        total = torch.zeros((), device=pair.device)
        for noise in noises(pair, self.samples, self.std, self.method):
            copy = stage_maps(net, pair + noise, classes, [self.stage], self.map_of)[0]
            total = total + copy
        first, second, third = (total / self.samples).unbind(2)   # each (2, K, D, h, w)
        if self.definition == "fcam":
            first, inner = copy[:, :, 0], (third * activation[:, None]).sum((3, 4), keepdim=True)
            activation = stage_activations(net, pair + noise, self.stage)
        else:
            inner = third * activation.sum((2, 3), keepdim=True)[:, None]
        denominator = 2 * second + inner
        alpha = torch.where(denominator == 0, 0, second / denominator)
        return torch.einsum("bkd,bdhw->bkhw", (alpha * first.relu()).sum((3, 4)), activation).relu_()

    # `scale_weight` is 1, as in Grad-CAM++


Method = SmoothGradCAMpp
