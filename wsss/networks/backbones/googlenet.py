"""GoogLeNet (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015) for maps: GoogLeNet-GAP of Zhou et al., "Learning Deep
Features for Discriminative Localization", CVPR 2016, section 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.networks.backbones.added import AddedMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class GoogLeNetGAP(AddedMethod):
    """torchvision's GoogLeNet to inception4e, and added convolutions: 14x14 features of an image of 224 px.

    Differs from the paper's, Caffe's, in its batch norm, with which torchvision's weights come. Raises ConfigError for an
    impossible setting.
    """

    last: ClassVar[int] = 832
    kept: ClassVar[tuple[str, ...]] = (
        "conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3",
        *(f"inception4{letter}" for letter in "abcde"))

    @property
    def name(self) -> str:
        return "googlenet"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.inception_layers import googlenet

        return googlenet(self.kept, norm, self.layers_after())


Method = GoogLeNetGAP
