"""AMN, the activation manipulation network: Lee, Kim & Shim, "Threshold Matters in WSSS: Manipulating the Activation for the
Robust and Accurate Segmentation Model Against Thresholds", CVPR 2022, section 3.

Official files: `net/resnet50_amn.py`, `step/train_amn.py`. It learns to segment from confident labels, and is told the classes of
the image.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsss.errors import ArgumentError
from wsss.networks.backbones.backbone import Backbone
from wsss.palette import IGNORE
from wsss.seeding import seeded

TAPS = ("centre", "all")   # of `AMN.class_weights`


class AMN(nn.Module):
    """An embedding of the image labels times the features, and atrous spatial pyramid pooling: the sum of 3x3 convolutions with
    different dilations.

    Attributes:
        label_embedding: Linear, from the image labels (C,) to a factor of each feature (D,).
        pyramid: the convolutions, from D features to C + 1 labels, background first.
        facts: what builds it again on its backbone, as JSON values.

    Args:
        backbone: of the features.
        n_classes: C, without background.
        rates: dilation of each convolution.
        dropout: of the features before the convolutions, in training. Differs from the official code, whose `train` does not
            reach the dropout, so that it also draws when maps are made.
        seed: of the random weights: the convolutions from N(0, 0.01) with biases 0, the embedding as torch's Linear.

    Raises ArgumentError for rates below 1, none at all, or a dropout outside [0, 1).
    """

    def __init__(self, backbone: Backbone, n_classes: int, rates: Sequence[int], dropout: float, seed: int = 0):
        super().__init__()
        if not rates or min(rates) < 1 or not 0 <= dropout < 1:
            raise ArgumentError(f"AMN: rates is {list(rates)} and dropout is {dropout}; expected at least one dilation, each at "
                                "least 1, and a share in [0, 1)")
        self.backbone, channels = backbone, backbone.feature_channels
        self.facts: dict[str, Any] = {"amn": {"rates": list(rates), "dropout": dropout}}
        with seeded(seed):
            self.label_embedding = nn.Linear(n_classes, channels)
            self.dropout = nn.Dropout(dropout)
            self.pyramid = nn.ModuleList(_convolution(channels, n_classes + 1, rate) for rate in rates)

    def features(self, x: Tensor, labels: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, and their labels (B, C), 0 or 1, to the features times the embedding of the labels,
        (B, D, h, w) on the grid of the backbone's features. They may be negative."""
        return self.backbone(x) * self.label_embedding(labels)[..., None, None]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """As `features`, to logits (B, C + 1, h, w), background first."""
        features = self.dropout(self.features(x, labels))
        return torch.stack([convolution(features) for convolution in self.pyramid]).sum(0)

    def class_weights(self, taps: str) -> Tensor:
        """The weights (C, D) of the classes as if the pyramid were linear in the feature of one cell.

        taps: "centre": the sum of the centre taps of its convolutions, what the feature of a cell adds to the logits of the same
        cell. "all": the sum of all taps, the logits in the middle of a region of equal features, without the bias.
        """
        weights = [cast(nn.Conv2d, convolution).weight[1:] for convolution in self.pyramid]
        return torch.stack([w[..., 1, 1] if taps == "centre" else w.sum((2, 3)) for w in weights]).sum(0)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone, and those of the embedding and the pyramid."""
        return ([parameter for parameter in self.backbone.parameters() if parameter.requires_grad],
                [*self.label_embedding.parameters(), *self.pyramid.parameters()])


def _convolution(channels: int, labels: int, rate: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, labels, 3, padding=rate, dilation=rate)
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.zeros_(cast(nn.Parameter, convolution.bias))
    return convolution


def pixel_counts(labels: Tensor) -> Tensor:
    """The background pixels and the pixels of classes in labels (B, h, w), 255 in neither: (2,) int64."""
    return torch.stack([(labels == 0).sum(), ((labels != 0) & (labels != IGNORE)).sum()])


def balanced_loss(logits: Tensor, labels: Tensor, smoothing: float, counts: Tensor) -> Tensor:
    """The per-pixel classification loss of AMN (section 3.2; `balanced_cross_entropy`): cross-entropy with smoothed labels,
    averaged over the background pixels and over the pixels of classes, and the mean of the two.

    Args:
        logits: (B, C + 1, h, w).
        labels: (B, h, w) integers on the same grid: 0 background, 1..C class, 255 ignored.
        smoothing: the target of the label is 1 minus it, that of each other label its C-th part.
        counts: `pixel_counts` of the whole batch, of which this may be a part: the loss is then the part's share. An average over
            no pixels is 0; official: NaN, which ends the training.
    """
    log_probabilities = logits.log_softmax(1)
    others, n_others = log_probabilities.sum(1), logits.shape[1] - 1
    right = log_probabilities.gather(1, labels.where(labels != IGNORE, 0)[:, None].long())[:, 0]   # (B, h, w)
    loss = -((1 - smoothing) * right + smoothing / n_others * (others - right))
    background, foreground = labels == 0, (labels != 0) & (labels != IGNORE)
    means = torch.stack([loss[background].sum(), loss[foreground].sum()]) / counts.clamp(min=1)
    return means.mean()
