"""The base of the methods that build and train segmentation networks. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.families import BaseMethod
from wsss.palette import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.segmenter import Segmenter


@dataclass
class SegmenterMethod(BaseMethod, ABC):
    """A kind of segmentation network and its training. Its settings are in the weights file, so that the network can be built
    again."""

    smallest_part: ClassVar[int] = 1   # images that a part of a batch must have

    @abstractmethod
    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        """The network on a backbone; the decoder has random weights from torch's global generator."""

    def new(self, backbone: Backbone, n_labels: int, seed: int = 0) -> Segmenter:
        """As `build`, with random weights that depend only on `seed`; the global random state is not changed."""
        from wsss.seeding import seeded

        with seeded(seed):
            net = self.build(backbone, n_labels)
        net.facts = {"segmenter": self.facts}
        return net

    def counts(self, labels: Tensor) -> Tensor:
        """What the losses of a whole batch are divided by, counted in a part of it: by default its pixels that are not 255."""
        return (labels != IGNORE).sum()

    def losses(self, net: Segmenter, images: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """The share of a part in the losses of its batch; "loss" is the one that is minimised. By default the cross-entropy, as
        the mean over the pixels of the batch that are not 255, of logits that are resized to the labels (bilinear).

        Args:
            net: in training mode, under the autocast of the run's precision.
            images: (B, 3, S, S) normalised.
            labels: (B, S, S) uint8: 0 background, 1..C class, 255 ignored.
            counts: the sum of `counts` over all parts of the batch.
        """
        from torch.nn.functional import cross_entropy

        from wsss.resize import resize

        logits = resize(net(images).float(), labels.shape[1:])
        loss = cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
        return {"loss": loss / counts.clamp(min=1)}   # a batch may have no labelled pixel

    def groups(self, net: Segmenter, head_lr_mult: float) -> list[tuple]:
        """The groups of trained parameters, the factor of the learning rate of each, and optionally whether its weights decay.
        The first group has factor 1."""
        backbone = set(net.backbone.parameters())
        return [([parameter for parameter in net.backbone.parameters() if parameter.requires_grad], 1.0),
                ([parameter for parameter in net.parameters() if parameter not in backbone], head_lr_mult)]
