"""The layers of the light semantic FPN (`wsss.segmenters.fpn`)."""

import torch
from torch import Tensor, nn

from wsss.networks.backbones.backbone import Backbone
from wsss.resize import resize
from wsss.segmenters.segmenter import Segmenter


class FPNSegmenter(Segmenter):
    """1x1 convolutions bring every stage to `width` channels; from the coarsest on the sum is resized and added to the next finer
    stage; a 3x3 and a 1x1 convolution make the logits on the grid of the finest stage."""

    def __init__(self, backbone: Backbone, n_labels: int, width: int):
        super().__init__(backbone)
        self.lateral = nn.ModuleList(_layer(channels, width, 1) for channels in backbone.channels)
        self.context = nn.Conv2d(backbone.channels[-1], width, 1)
        self.smooth = _layer(width, width, 3)
        self.classifier = nn.Conv2d(width, n_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        stages = self.backbone.stages(x)
        coarse = self.lateral[-1](stages[-1]) + self.context(stages[-1].mean((2, 3), keepdim=True))
        for lateral, stage in zip(reversed(self.lateral[:-1]), reversed(stages[:-1])):
            coarse = lateral(stage) + resize(coarse, stage.shape[2:])
        return self.classifier(self.smooth(torch.relu(coarse)))


def _layer(inputs: int, width: int, kernel: int) -> nn.Sequential:
    # group norm: its result does not depend on the batch, which is processed in parts
    return nn.Sequential(nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(width // 8, width),
                         nn.ReLU(inplace=True))
