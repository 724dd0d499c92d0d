"""The layers and losses of DeepLabV2 (`wsss.segmenters.deeplab_v2`)."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from wsss.networks.backbones.backbone import Backbone
from wsss.palette import IGNORE
from wsss.resize import resize
from wsss.segmenters.segmenter import Segmenter


class DeepLabV2Segmenter(Segmenter):
    """The sum of 3x3 convolutions with different dilations of the features, at scale 1 and at `scales`."""

    def __init__(self, backbone: Backbone, n_labels: int, rates: Sequence[int], scales: Sequence[float]):
        super().__init__(backbone)
        self.scales = tuple(scales)
        self.pyramid = nn.ModuleList(_convolution(backbone.feature_channels, n_labels, rate) for rate in rates)
        if backbone.norm == "frozen_batch":
            for module in backbone.modules():
                if isinstance(module, (nn.Conv2d, _BatchNorm)):
                    module.requires_grad_(isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        return self.all_logits(x)[-1]

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the logits (B, C + 1, h, w) at scale 1, at each of `scales` on a smaller grid, and their maximum
        on the grid of scale 1."""
        found = [self._logits(x)]
        for scale in self.scales:
            ratio = Fraction(scale).limit_denominator(1000)   # in whole numbers: an exported network computes its sizes again
            size = [max(1, side * ratio.numerator // ratio.denominator) for side in x.shape[2:]]
            found.append(self._logits(resize(x, size)))
        largest = found[0]
        for logits in found[1:]:
            largest = torch.maximum(largest, resize(logits, largest.shape[2:]))
        return [*found, largest]

    def _logits(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        return torch.stack([convolution(features) for convolution in self.pyramid]).sum(0)


def _convolution(inputs: int, outputs: int, rate: int) -> nn.Conv2d:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
    nn.init.normal_(convolution.weight, std=0.01)   # deeplab-pytorch: libs/models/deeplabv2.py
    nn.init.zeros_(convolution.bias)   # type: ignore[arg-type]  # it is there
    return convolution


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, H, W) on the grid `size` (h, w), by Pillow's nearest neighbour."""
    rows, columns = (_nearest(source, target).to(labels.device) for source, target in zip(labels.shape[1:], size, strict=True))
    return labels[:, rows[:, None], columns]


@lru_cache(128)
def _nearest(source: int, target: int) -> Tensor:
    """(target,) int64: the pixel of a side of `source` pixels that Pillow takes for each pixel of the resized side."""
    pixels = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    return torch.from_numpy(np.array(pixels.resize((target, 1), Image.Resampling.NEAREST))[0]).long()


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the pixels that are not 255 of all images; 0 if there are none.

    Args:
        logits: (B, C + 1, h, w) float32.
        labels: (B, h, w) uint8.
    """
    # without a reduction: the sum of CUDA's loss has other bits in every run
    losses = cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")
    return losses.sum() / (labels != IGNORE).sum().clamp(min=1)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the background pixels of an image plus the mean over its pixels of all classes, as the mean over the images;
    pixels that do not exist count 0. DSRG: pylayers.py, BalancedSeedLossLayer. Arguments as `mean_cross_entropy`."""
    losses = cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").flatten(1)   # (B, h * w), 0 at 255
    background = (labels == 0).flatten(1)
    foreground = ~background & (labels != IGNORE).flatten(1)
    means = [(losses * chosen).sum(1) / chosen.sum(1).clamp(min=1) for chosen in (background, foreground)]   # (B,) each
    return (means[0] + means[1]).mean()
