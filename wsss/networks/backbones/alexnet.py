"""AlexNet (Krizhevsky et al., NeurIPS 2012) for maps: AlexNet-GAP and AlexNet*-GAP of Zhou et al., "Learning Deep Features for
Discriminative Localization", CVPR 2016, section 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.networks.backbones.added import AddedMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class AlexNetGAP(AddedMethod):
    """torchvision's AlexNet to conv5, and added convolutions: 13x13 features of an image of 224 px.

    Differs from the paper's, Caffe's, in the widths of conv1 and conv2 (64 and 192 instead of 96 and 256), which has groups and
    local response normalisation: torchvision has no other weights. Raises ConfigError for an impossible setting.
    """

    last: ClassVar[int] = 256
    kept: ClassVar[tuple[str, ...]] = tuple(map(str, range(12)))

    @property
    def name(self) -> str:
        return "alexnet"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.alexnet_layers import alexnet

        return alexnet(norm, self.layers_after())


Method = AlexNetGAP
