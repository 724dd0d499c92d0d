"""EDAM: Wu et al., "Embedded Discriminative Attention Mechanism for Weakly Supervised Semantic Segmentation", CVPR 2021.

Official files: `network/resnet38_EDAM_cls.py`, `train_EDAM_cls.py`, `voc12/data.py` (allenwu97/EDAM, 8952f84).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from wsss.classifiers.method import ClassifierMethod
from wsss.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from wsss.classifiers.classifier import Classifier
    from wsss.classifiers.collaborative import CollaborativeClassifier
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class EDAM(ClassifierMethod):
    """A mask for each class, by which maps are made (`cam=edam`), and a transformer for each class over the masked features of
    two images that share a class (`wsss.classifiers.collaborative`). It has no class weights: no CAM and no LPCAM.

    The partner of an image is drawn from the training images that have one of its classes, again in each epoch. Official: a list
    of pairs, which is not published. Without such an image it is the image itself, otherwise augmented.

    hidden: channels of a token. heads: of the attention. feed_forward: channels between the two layers after it.
    dropout: in training. side: cells of a side of the grid that positions refer to.

    Raises ConfigError for a value out of range, or `hidden` that is odd or no multiple of `heads`.
    """

    hidden: int
    heads: int
    feed_forward: int
    dropout: float
    side: int

    images_per_sample: ClassVar[int] = 2
    head: ClassVar[tuple[str, int]] = ("outputs", 0)
    official_file: ClassVar[str] = "res38_edam.pth"

    def __post_init__(self) -> None:
        wanted = {"heads": (self.heads >= 1, "at least 1"), "feed_forward": (self.feed_forward >= 1, "at least 1"),
                  "dropout": (0 <= self.dropout < 1, "a share in [0, 1)"), "side": (self.side >= 1, "at least 1"),
                  "hidden": (self.hidden >= 2 and self.hidden % 2 == 0 and self.hidden % max(self.heads, 1) == 0,
                             f"an even multiple of heads={self.heads}")}
        for key, (right, expected) in wanted.items():
            if not right:
                raise ConfigError(f"classifier.{key}={getattr(self, key)!r} is not possible: expected {expected}")

    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        from wsss.classifiers.collaborative import CollaborativeClassifier

        return CollaborativeClassifier(backbone, n_classes, self.hidden, self.heads, self.feed_forward, self.dropout, self.side)

    def members(self, image_id: str, batch: Sequence[str], labels: Mapping[str, Sequence[int]],
                draws: np.random.Generator) -> tuple[str, ...]:
        """The image and its partner. One draw, none without a possible partner."""
        own = set(labels[image_id])
        partners = [other for other, classes in labels.items() if other != image_id and not own.isdisjoint(classes)]
        return image_id, partners[int(draws.integers(len(partners)))] if partners else image_id

    def mix(self, samples: Sequence[tuple[Tensor, Tensor]], draws: np.random.Generator) -> tuple[Tensor, ...]:
        """The images (2, 3, S, S) and the labels (2, C)."""
        import torch

        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(labels)

    def losses(self, net: Classifier, images: Tensor, labels: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """Images (B, 2, 3, S, S) and labels (B, 2, C): binary cross-entropy of each class in both images of each pair."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        features = net.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        logits = cast("CollaborativeClassifier", net).collaborative_head(features)   # of `build`
        return {"loss": binary_cross_entropy_with_logits(logits.float(), labels)}

    def groups(self, net: Classifier, head_lr_mult: float) -> list[tuple[list[nn.Parameter], float]]:
        """`head_lr_mult` is the factor of the convolutions after the backbone and of the layers that give the logits; the
        transformers and the segments have the learning rate of the backbone. The official groups of biases are empty: none of
        its convolutions has one."""
        backbone, head = net.parameter_groups()
        slow = set(net.parameters()) - set(net.backbone.parameters())
        slow -= set(cast("CollaborativeClassifier", net).new_parameters())           # of `build`
        return [(backbone + [each for each in head if each in slow], 1.0),
                ([each for each in head if each not in slow], head_lr_mult)]

    def own(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        from wsss.official_edam import own_edam

        return own_edam(tensors, where)

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        from wsss.official_edam import official_edam

        return official_edam(state, self.side)

    def no_official(self, backbone: Mapping[str, Any]) -> str:
        wanted = {"method": "resnet38", "relu": False, "norm": "frozen_batch"}
        own = self.hidden, self.heads, self.feed_forward, self.side
        if own == (128, 2, 512, 46) and wanted.items() <= backbone.items():
            return ""
        return ("is EDAM with other settings or on another backbone than the official network, a resnet38_edam with batch norm "
                "and the settings of conf/classifier/edam.yaml")


Method = EDAM
