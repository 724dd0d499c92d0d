"""The network with which MCTformer segments (Xu et al., CVPR 2022; code 9606597: seg/), after DeepLabV1: Chen et al., "Semantic
Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.errors import ConfigError
from wsss.segmenters.method import SegmenterMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.segmenter import Segmenter


@dataclass
class DeepLabV1(SegmenterMethod):
    """Two dilated 3x3 convolutions on the features of the backbone.

    Raises ConfigError for settings below 1.
    """

    rate: int    # dilation
    width: int   # channels between the two

    def __post_init__(self) -> None:
        for key in ("rate", "width"):
            if getattr(self, key) < 1:
                raise ConfigError(f"segmenter.{key}={getattr(self, key)} is not possible: expected at least 1")

    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        from wsss.segmenters.deeplab_v1_layers import DeepLabV1Segmenter

        return DeepLabV1Segmenter(backbone, n_labels, self.rate, self.width)


Method = DeepLabV1
