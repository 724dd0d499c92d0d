"""DeepLabV2: Chen et al., "DeepLab", TPAMI 2018, sections 3 and 4.1, with several scales as in deeplab-pytorch (4219467)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from wsss.errors import ConfigError
from wsss.segmenters.method import SegmenterMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.deeplab_v2_layers import DeepLabV2Segmenter
    from wsss.segmenters.segmenter import Segmenter

LOSSES = ("cross_entropy", "balanced")


@dataclass
class DeepLabV2(SegmenterMethod):
    """Atrous spatial pyramid pooling on the features of the backbone, at several scales of the image. The logits are the maximum
    over the scales; the loss is the sum of the losses of each scale and of the maximum.

    Frozen batch norm of the backbone is not trained at all, but all its convolutions are, the first one too.

    Raises ConfigError for settings out of range.
    """

    rates: list[int]      # dilation of each convolution of the pyramid
    scales: list[float]   # of the image, in addition to 1
    loss: str             # cross_entropy | balanced: the mean over the background plus that over the classes, in each image

    def __post_init__(self) -> None:
        for key, good, expected in (
                ("rates", self.rates and all(rate >= 1 for rate in self.rates), "at least one dilation, each at least 1"),
                ("scales", all(0 < scale < 1 for scale in self.scales), "factors between 0 and 1; the scale 1 is always there"),
                ("loss", self.loss in LOSSES, f"one of {', '.join(LOSSES)}")):
            if not good:
                raise ConfigError(f"segmenter.{key}={getattr(self, key)} is not possible: expected {expected}")

    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        from wsss.segmenters.deeplab_v2_layers import DeepLabV2Segmenter

        return DeepLabV2Segmenter(backbone, n_labels, self.rates, self.scales)

    def counts(self, labels: Tensor) -> Tensor:
        """The number of images: as in deeplab-pytorch (ITER_SIZE) the loss of a batch is the mean of those of its parts."""
        return labels.new_tensor(len(labels)).long()

    def losses(self, net: Segmenter, images: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """As the base class, but the sum over all grids of `DeepLabV2Segmenter.all_logits`, to which the labels are resized; the
        cross-entropy of a part is the mean over the pixels of this part, and the balanced one that over its images."""
        from wsss.segmenters.deeplab_v2_layers import balanced_cross_entropy, mean_cross_entropy, resize_labels

        of_part = balanced_cross_entropy if self.loss == "balanced" else mean_cross_entropy
        all_logits = cast("DeepLabV2Segmenter", net).all_logits(images)
        loss = sum(of_part(logits.float(), resize_labels(labels, logits.shape[2:])) for logits in all_logits)
        return {"loss": loss * (len(images) / counts)}

    def groups(self, net: Segmenter, head_lr_mult: float) -> list[tuple]:
        """The backbone; the weights of the pyramid; its biases, with twice the learning rate of these and without decay."""
        pyramid = cast("DeepLabV2Segmenter", net).pyramid
        return [([parameter for parameter in net.backbone.parameters() if parameter.requires_grad], 1.0),
                ([convolution.weight for convolution in pyramid], head_lr_mult),
                ([convolution.bias for convolution in pyramid], 2 * head_lr_mult, False)]


Method = DeepLabV2
