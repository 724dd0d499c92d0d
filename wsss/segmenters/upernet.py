"""UPerNet: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, as in mmsegmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from wsss.errors import ConfigError
from wsss.palette import IGNORE
from wsss.segmenters.method import SegmenterMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.segmenter import Segmenter
    from wsss.segmenters.upernet_layers import UPerNetSegmenter


@dataclass
class UPerNet(SegmenterMethod):
    """mmsegmentation's UPerHead (v0.x and v1.x) on the last four stages of the backbone: a pyramid of pooled maps on the coarsest
    stage, then a feature pyramid. In training a second head on the stage before the last has a loss of its own.

    Batch norm uses the statistics of a part of a batch; in mmsegmentation those of the whole batch (SyncBN).

    Raises ConfigError for values out of range.
    """

    width: int               # channels of the head
    auxiliary_width: int     # channels of the second head
    auxiliary_weight: float  # of its loss
    dropout: float           # of whole channels before the last convolution of each head
    swin: bool               # mmsegmentation's Swin Transformer: a LayerNorm on each stage, and shifted windows in all of them

    smallest_part: ClassVar[int] = 2   # batch norm of a map that is pooled to one pixel needs two images

    def __post_init__(self) -> None:
        for name in ("width", "auxiliary_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"segmenter.{name}={getattr(self, name)} is not possible: expected at least 1")
        if self.auxiliary_weight < 0:
            raise ConfigError(f"segmenter.auxiliary_weight={self.auxiliary_weight} is not possible: expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"segmenter.dropout={self.dropout} is not possible: expected a share in [0, 1)")

    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        from wsss.segmenters.upernet_layers import UPerNetSegmenter

        return UPerNetSegmenter(backbone, n_labels, self.width, self.auxiliary_width, self.dropout, self.swin)

    def counts(self, labels: Tensor) -> Tensor:
        """All pixels, also those that are 255: mmsegmentation's mean (`avg_non_ignore=False`)."""
        import torch

        return torch.tensor(labels.numel(), device=labels.device)

    def losses(self, net: Segmenter, images: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """The cross-entropy of each head, as "decode" and "auxiliary"; "loss" is the first plus `auxiliary_weight` times the
        second."""
        from torch.nn.functional import cross_entropy

        from wsss.resize import resize

        decode, auxiliary = (cross_entropy(resize(logits.float(), labels.shape[1:]), labels.long(), ignore_index=IGNORE,
                                           reduction="sum") / counts for logits in cast("UPerNetSegmenter", net).both(images))
        return {"loss": decode + self.auxiliary_weight * auxiliary, "decode": decode, "auxiliary": auxiliary}

    def groups(self, net: Segmenter, head_lr_mult: float) -> list[tuple]:
        from wsss.segmenters.decay import decay_groups

        return decay_groups(net, head_lr_mult)


Method = UPerNet
