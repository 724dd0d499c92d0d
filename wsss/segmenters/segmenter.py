"""The interface of all segmentation networks."""

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from wsss.networks.backbones.backbone import Backbone


class Segmenter(nn.Module):
    """A backbone and a decoder. Label 0 is the background, label i + 1 is class i. `facts`: what builds it again on its backbone,
    as JSON values (`SegmenterMethod.new`)."""

    facts: dict[str, Any]

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, C + 1, h, w) of the labels on a grid that covers the images."""
