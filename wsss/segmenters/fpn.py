"""Semantic FPN: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.1, in a light form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.errors import ConfigError
from wsss.segmenters.method import SegmenterMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.segmenter import Segmenter


@dataclass
class FPN(SegmenterMethod):
    """A feature pyramid on the stages of the backbone, from coarse to fine; one convolution on the finest grid gives the logits.

    Lighter than the paper: `width` channels instead of 256, no branch with convolutions of its own for each stage, and the mean
    over the image is added to the coarsest stage, which sees only a part of it.

    Raises ConfigError if `width` is no multiple of 8.
    """

    width: int   # channels of the decoder

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ConfigError(f"segmenter.width={self.width} is not possible: expected a multiple of 8")

    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        from wsss.segmenters.fpn_layers import FPNSegmenter

        return FPNSegmenter(backbone, n_labels, self.width)


Method = FPN
