"""Labels for training AffinityNet: confident classes and confident background by the dense CRF from two exponents of the
background; the rest is ignored.

Ahn & Kwak, CVPR 2018, section 3.2 ("Generating Semantic Affinity Labels"), and the official `infer_cls.py`, `voc12/data.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError
from wsss.palette import IGNORE
from wsss.refinement.crf import DenseCRF, as_tensor

LEAST = 1e-5   # the probabilities that a CRF starts from are at least this (pydensecrf: unary_from_softmax)


def background_scores(maps: Tensor, alpha: float) -> Tensor:
    """(1 - the greatest of the maps)^alpha: maps (K, H, W), at most 1 and counted as 0 below 0, to (H, W) in [0, 1]. The larger
    alpha, the less is background."""
    return (1 - maps.amax(0).clamp(0, 1)) ** alpha


def psa_label(image: np.ndarray | Tensor, maps: Tensor, classes: Sequence[int], *, low_alpha: float, high_alpha: float,
              iterations: int, kernels: Mapping[str, float]) -> Tensor:
    """The label of one image that AffinityNet is trained on.

    Each exponent gives the scores of the background, which with those of the maps are refined by a dense CRF. The classes at
    `low_alpha`, where much is background, are confident; the background at `high_alpha` is confident background, also where the
    first has a class (official order).

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) float, at most 1, in the frame of `image`. K = 0: background everywhere.
        classes: (K,) 0-based class ids of the maps.
        low_alpha, high_alpha: 0 < low_alpha <= high_alpha (official 4 and 32, MCTformer 1 and 12).
        iterations, kernels: of the CRF (`wsss.refinement.crf.DenseCRF`).

    Returns:
        (H, W) uint8: 0 background, class id + 1, 255 ignore; on the device of `maps`.

    Raises ArgumentError for shapes or exponents that do not fit.
    """
    image = as_tensor(image, maps.device)
    if maps.shape != (len(classes), *image.shape[:2]) or not 0 < low_alpha <= high_alpha:
        raise ArgumentError(f"psa_label: maps is {tuple(maps.shape)}, image {tuple(image.shape)}, with {len(classes)} "
                            f"classes, low_alpha={low_alpha}, high_alpha={high_alpha}; expected (K, H, W), (H, W, 3), K, and "
                            "0 < low_alpha <= high_alpha: resize the maps to the image")
    if not len(maps):
        return torch.zeros(maps.shape[1:], dtype=torch.uint8, device=maps.device)
    scores = torch.stack([torch.cat([background_scores(maps, alpha)[None], maps]) for alpha in (low_alpha, high_alpha)])
    probabilities = DenseCRF(image, **kernels).inference(-scores.float().clamp(LEAST, 1).log(), iterations)
    foreground, background = probabilities.max(1).indices   # 0 background, k + 1 for map k
    ids = torch.tensor([IGNORE, *(c + 1 for c in classes)], dtype=torch.uint8, device=maps.device)
    return ids[foreground].masked_fill_(background == 0, 0)


def pooled_label(label: Tensor, stride: int) -> Tensor:
    """A label (H, W) uint8 on the grid of a stride that divides both sides: (H / stride, W / stride).

    A cell is background if that is the majority of its pixels, and has a class if more of them have it than are background or
    ignored; else it is ignored. With one class in the image this is the mean of both label sets and the greatest of each, as in
    the official `voc12/data.py` of labels that are 0 or 1. It takes the mean of the probabilities of the CRF, which are close to
    that, and counts only the pixels of a cell that are inside the image.

    Raises ArgumentError for a stride that does not divide the sides.
    """
    if label.ndim != 2 or any(side % stride for side in label.shape):
        raise ArgumentError(f"pooled_label: label is {tuple(label.shape)} and stride is {stride}; expected (H, W) of multiples "
                            "of the stride: use a larger or smaller crop")
    values = label.unique()
    shares = F.avg_pool2d((label == values[:, None, None]).float(), stride)   # (values, h, w)
    background = shares[values == 0].sum(0)
    least = (background + shares[values == IGNORE].sum(0)).masked_fill_(background > 0.5, 2.0)   # no class has more
    of_classes = (values != 0) & (values != IGNORE)
    found = torch.full_like(background, IGNORE, dtype=torch.uint8).masked_fill_(background > 0.5, 0)
    if of_classes.any():
        share, index = shares[of_classes].max(0)
        found = torch.where(share > least, values[of_classes][index], found)
    return found
