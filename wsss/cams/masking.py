"""The part that the methods share that score masked copies of an image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsss.cams.method import Features
from wsss.classifiers.classifier import Classifier


def masked_logits(net: Classifier, features_of: Features, image: Tensor, masks: Callable[[int, int], Tensor], count: int,
                  classes: Sequence[int], batch_size: int) -> Tensor:
    """The logits of the classes for masked copies of an image, computed in batches.

    On torch's meta device only the first batch is computed: the others take as much memory.

    Args:
        net, features_of, classes: as for `CamMethod.maps`.
        image: (3, H, W) normalised. Where a mask is 0 the copy has the mean colour of the network's training images.
        masks: first and last (excluded) number of the masks of a batch -> (n, 1, H, W) in [0, 1].
        count: of all masks, at least 1.
        batch_size: copies in one forward pass.

    Returns:
        (count, K) float32.
    """
    rows = []
    for start in range(0, count if classes else 0, batch_size):
        copies = image * masks(start, min(start + batch_size, count))
        rows.append(net.head(features_of(copies))[:, list(classes)].float())
        if image.is_meta:
            break
    if not rows or image.is_meta:
        return image.new_zeros(count, len(classes))
    return torch.cat(rows)
