"""ResNet-50 for localisation, as in wsolevaluation (Choe et al., "Evaluating Weakly Supervised Object Localization Methods
Right", CVPR 2020, `wsol/resnet.py`) and F-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.errors import ConfigError
from wsss.networks.backbones.resnet import ResNetMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class WSOLResNetMethod(ResNetMethod):
    """torchvision's ResNets with stride 1 and no dilation in the last layers. layer4 learns at the rate of the head.

    Raises ConfigError for an unknown depth or stride.
    """

    output_stride: int   # 16: layer4 has stride 1, 14x14 features of an image of 224 px. 8: layer3 and layer4, 28x28

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_stride not in (16, 8):
            raise ConfigError(f"backbone.output_stride={self.output_stride} is not possible with {self.name}: expected 16 or 8")

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.resnet_layers import FineResNet, WSOLResNet, resnet

        return resnet(self.depth, norm, FineResNet if self.output_stride == 8 else WSOLResNet)


Method = WSOLResNetMethod
