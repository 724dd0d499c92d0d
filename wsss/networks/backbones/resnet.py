"""ResNet: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, at stride 16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.errors import ConfigError
from wsss.networks.backbones.torchvision_weights import TorchvisionMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "tiny")


@dataclass
class ResNetMethod(TorchvisionMethod):
    """torchvision's ResNets, with stride 16 and the other changes of IRN and LPCAM (`wsss.networks.backbones.resnet_layers`).

    Raises ConfigError for an unknown depth.
    """

    depth: str   # resnet18 | resnet34 | resnet50 | resnet101; tiny: for tests, too small to learn much

    classifier: ClassVar[str] = "fc."

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS:
            raise ConfigError(f"backbone.depth={self.depth!r} is not possible: expected one of {', '.join(DEPTHS)}")

    @property
    def name(self) -> str:
        return self.depth

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.resnet_layers import resnet

        return resnet(self.depth, norm)


Method = ResNetMethod
