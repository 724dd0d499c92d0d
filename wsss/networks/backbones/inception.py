"""Inception v3 (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016) for maps, as in
wsolevaluation (Choe et al., CVPR 2020, `wsol/inception.py`) and F-CAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.networks.backbones.added import AddedMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class InceptionV3(AddedMethod):
    """torchvision's Inception v3 to Mixed_6e, with a padding of 1 in all 3x3 layers, and added convolutions (SPG_A3 of
    wsolevaluation). Raises ConfigError for an impossible setting."""

    output_stride: int   # 16: 14x14 features of an image of 224 px. 8: Mixed_6a has stride 1, 28x28

    last: ClassVar[int] = 768
    kept: ClassVar[tuple[str, ...]] = (
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2",
        "Mixed_5b", "Mixed_5c", "Mixed_5d", *(f"Mixed_6{letter}" for letter in "abcde"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_stride(self.output_stride)

    @property
    def name(self) -> str:
        return "inception_v3"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.inception_layers import inception_v3

        return inception_v3(self.kept, self.output_stride, norm, self.layers_after())


Method = InceptionV3
