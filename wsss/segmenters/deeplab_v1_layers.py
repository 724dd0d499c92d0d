"""The layers of DeepLabV1 (`wsss.segmenters.deeplab_v1`)."""

import torch
from torch import Tensor, nn

from wsss.networks.backbones.backbone import Backbone
from wsss.segmenters.segmenter import Segmenter


class DeepLabV1Segmenter(Segmenter):
    """Two 3x3 convolutions of the same dilation with a ReLU between them, on the grid of the features."""

    def __init__(self, backbone: Backbone, n_labels: int, rate: int, width: int):
        super().__init__(backbone)
        self.reduce = nn.Conv2d(backbone.feature_channels, width, 3, padding=rate, dilation=rate)
        self.classifier = nn.Conv2d(width, n_labels, 3, padding=rate, dilation=rate)
        for convolution in (self.reduce, self.classifier):
            nn.init.xavier_uniform_(convolution.weight)   # MCTformer: seg/network/resnet38_seg.py

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.relu(self.reduce(self.backbone(x))))
