"""VGG16 for maps: VGG-GAP of Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, section 3, and
that of F-CAM (Belharbi et al., WACV 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.networks.backbones.added import AddedMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class VGGGAP(AddedMethod):
    """torchvision's VGG16 to conv5_3, and added convolutions. Raises ConfigError for an impossible setting."""

    output_stride: int   # 16: without pool5, 14x14 features of an image of 224 px. 8: without pool4 and pool5, 28x28

    last: ClassVar[int] = 512
    kept: ClassVar[tuple[str, ...]] = tuple(map(str, range(30)))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_stride(self.output_stride)

    @property
    def name(self) -> str:
        return "vgg16"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.vgg_layers import vgg16

        return vgg16(self.output_stride, norm, self.layers_after())


Method = VGGGAP
