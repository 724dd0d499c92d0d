"""The part that the methods share that score masked copies of an image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsss.cams.method import Features
from wsss.classifiers.classifier import Classifier


def masked_scores(net: Classifier, features_of: Features, image: Tensor, masks: Callable[[int, int], Tensor], count: int,
                  classes: Sequence[int], batch_size: int, probabilities: bool = False) -> Tensor:
    """The logits of the classes for masked copies of an image, or their probabilities (softmax), computed in batches.

    On torch's meta device only the first batch is computed: the others take as much memory.

    Args:
        net, features_of, classes: as for `CamMethod.maps`.
        image: (3, H, W) normalised. Where a mask is 0 the copy has the mean colour of the network's training images.
        masks: first and last (excluded) number of the masks of a batch -> (n, 1, H, W), or (n, 3, H, W) with noise.
        count: of all masks, at least 1.
        batch_size: copies in one forward pass.

    Returns:
        (count, K) float32.
    """
    rows = []
    for start in range(0, count if classes else 0, batch_size):
        copies = image * masks(start, min(start + batch_size, count))
        logits = net.head(features_of(copies)).float()
        rows.append((logits.softmax(1) if probabilities else logits)[:, list(classes)])
        if image.is_meta:
            break
    if not rows or image.is_meta:
        return image.new_zeros(count, len(classes))
    return torch.cat(rows)
