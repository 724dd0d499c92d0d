"""The part that the methods share that read the attention of a transformer."""

import torch
from torch import Tensor

from wsss.classifiers.classifier import Classifier
from wsss.errors import ConfigError

_SIDE = 16   # cells: more than the windows of networks whose attention is within windows


def number_of_blocks(net: Classifier, user: str) -> int:
    """The number of blocks with attention between all cells. Raises ConfigError, which names the `user`, if there are none."""
    side = _SIDE * net.backbone.feature_stride
    with torch.no_grad():
        count = len(net.backbone.blocks(next(net.parameters()).new_zeros(1, 3, side, side)))
    if not count:
        raise ConfigError(f"{user} needs a transformer whose attention is between all cells, {net.backbone.name} is none. Choose "
                          "one that is, such as backbone=timm backbone.network=deit_tiny_patch16_224, or another method, such "
                          "as cam=gradcam")
    return count


def of_cells(net: Classifier, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values of all tokens, (B, n), as a map of the cells, (B, h, w), of images of `size` (H, W)."""
    return net.backbone.as_map(values[..., None], size)[:, 0]
