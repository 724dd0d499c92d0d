"""The classes that the classifier finds most probable in an image, beside its maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from wsss.cams.method import Features, image_pairs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier

MOST = 5   # classes: what top-5 scores need. All 1,000 of ILSVRC would be most of the index


class Seen:
    """The logits of an image (H, W, 3) uint8, beside its maps.

    A method that computes the features of the image at scale 1.0 by `features_of`, once for each scale, leaves them here. Only
    for others the image takes another forward pass, by `logits_of`.
    """

    def __init__(self, classifier: Classifier, features_of: Features, logits_of: Features, image: np.ndarray,
                 device: torch.device):
        self._classifier, self._features_of, self._logits_of = classifier, features_of, logits_of
        self._image, self._device = image, device
        self._sizes: list[torch.Size] = []   # of the features that were computed
        self._features: Tensor | None = None

    def features_of(self, pair: Tensor) -> Tensor:
        features = self._features_of(pair)
        self._sizes.append(pair.shape)
        if len(pair) == 2 and pair.shape[2:] == self._image.shape[:2]:
            self._features = features[:1]
        return features

    def logits(self) -> Tensor:
        """(C,) float32: of the image at scale 1.0 alone, not of its mirror image."""
        import torch

        with torch.inference_mode():
            features = self._features if len(self._sizes) == len(set(self._sizes)) else None   # else perhaps of a masked image
            if features is None or not self._classifier.reads_features:
                pair = next(image_pairs(self._image, [1.0], self._device, self._classifier.backbone.normalisation))
                return self._logits_of(pair[:1])[0].float()
            return self._classifier.head(features)[0].float()


def most_probable(logits: Tensor) -> list[tuple[int, float]]:
    """The `MOST` classes, 0-based, with the greatest of the logits (C,), each with its logit, greatest first."""
    values, classes = logits.topk(min(MOST, len(logits)))
    return list(zip(classes.tolist(), values.tolist(), strict=True))


def rank_of(index: int, facts: Mapping[str, object]) -> int | None:
    """The rank of a class among the predicted ones in a line of the index, from 0, and `MOST` if it is not among them; None if
    the line has none."""
    predicted = facts.get("predicted")
    if not isinstance(predicted, list):
        return None
    return next((rank for rank, (known, _) in enumerate(predicted) if known == index), MOST)
