"""The classifier whose weights and features give the activation maps (official `net/resnet50_cam.py`, `step/train_cam.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.classifiers.method import ClassifierMethod
from wsss.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier
    from wsss.networks.backbones.backbone import Backbone

LOSSES = ("soft_margin", "softmax")


@dataclass
class Plain(ClassifierMethod):
    """Global average pooling and a linear layer without bias.

    loss "soft_margin": multi-label soft margin loss, a sigmoid for each class. "softmax": cross-entropy, for images of one class
    each. Raises ConfigError for another one.
    """

    loss: str

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"classifier.loss={self.loss!r} is not possible: expected one of {', '.join(LOSSES)}")

    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        from wsss.classifiers.classifier import LinearClassifier

        return LinearClassifier(backbone, n_classes)

    def losses(self, net: Classifier, images: Tensor, labels: Tensor, *more: Tensor) -> dict[str, Tensor]:
        from torch.nn.functional import cross_entropy, multilabel_soft_margin_loss

        loss = cross_entropy if self.loss == "softmax" else multilabel_soft_margin_loss
        return {"loss": loss(net(images).float(), labels)}

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.loss == "softmax" else logits.sigmoid()

    def check(self, labels: Mapping[str, Sequence[int]]) -> None:
        wrong = [image_id for image_id, classes in labels.items() if len(classes) != 1]
        if self.loss == "softmax" and wrong:
            raise DataError(f"classifier.loss=softmax needs images of exactly one class, but {len(wrong)} of {len(labels)} "
                            f"training images have none or several, first {wrong[0]}. Use classifier.loss=soft_margin")


Method = Plain
