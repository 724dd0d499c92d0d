"""VGG16: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.errors import ConfigError
from wsss.networks.backbones.torchvision_weights import TorchvisionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone

STRIDES = (16, 8)


@dataclass
class VGG16Method(TorchvisionMethod):
    """torchvision's VGG16 without its last poolings (`wsss.networks.backbones.vgg_layers`).

    Raises ConfigError for an unknown stride.
    """

    output_stride: int   # 16: without pool5, 14x14 features of an image of 224 px. 8: without pool4 and pool5, 28x28

    classifier: ClassVar[str] = "classifier."

    def __post_init__(self) -> None:
        if self.output_stride not in STRIDES:
            raise ConfigError(f"backbone.output_stride={self.output_stride} is not possible with VGG16: expected 16 or 8")

    @property
    def name(self) -> str:
        return "vgg16"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.chain import Added
        from wsss.networks.backbones.vgg_layers import vgg16

        return vgg16(self.output_stride, norm, Added())

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("features.", "layers.", 1): value for name, value in super().own(tensors).items()}


Method = VGG16Method
