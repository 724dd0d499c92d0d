"""LPCAM: class activation maps from local prototypes instead of classifier weights.

The features of a class's images are split by its CAM into likely foreground and the rest and clustered (`wsss.kmeans`);
centres with a high classifier probability become prototypes. A map is the mean cosine similarity of each feature to the
foreground prototypes, minus that to the background prototypes. Official code: LPCAM `step/make_lpcam.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError

_BLOCK = 2**18  # numbers (1 MiB) that `lpcam_maps` processes at once, so that they stay in the cache of a CPU core


def split_cells(cam: Tensor, grid: Sequence[int], threshold: float) -> tuple[Tensor, Tensor]:
    """Split the cells of a feature grid into foreground and background.

    Args:
        cam: (H, W) in [0, 1], the map of one class at full size, sampled at the grid by nearest neighbour.
        grid: (h, w) of the features.
        threshold: cells above it are foreground, cells below it background; a cell equal to it is neither (official).

    Returns:
        (foreground, background), each (h, w) bool.
    """
    if cam.ndim != 2:
        raise ArgumentError(f"split_cells: cam has shape {tuple(cam.shape)}, expected (H, W): the map of one class")
    cells = F.interpolate(cam[None, None].float(), size=grid, mode="nearest")[0, 0]  # (h, w)
    return cells > threshold, cells < threshold


def class_probability(centers: Tensor, weight: Tensor) -> Tensor:
    """(K, C): the probability of each class by the bias-free classifier `weight` (C, D) for each of the `centers` (K, D).

    The centres are raw means. Scaled to unit length they would give nearly equal probabilities and select nothing.
    """
    return (centers.float() @ weight.float().T).softmax(dim=1)


def select_prototypes(
    fg_centers: Tensor,
    bg_centers: Tensor,
    weight: Tensor,
    class_index: int,
    *,
    fg_threshold: float = 0.9,
    bg_low: float = 0.05,
    bg_high: float = 0.9,
    minimum: int = 1,
) -> tuple[Tensor, Tensor]:
    """Select the centres that become prototypes of a class.

    A foreground centre is kept if the classifier gives the class a probability above `fg_threshold`, a background centre
    if the probability is strictly between `bg_low` and `bg_high`. The defaults are those of the official code for VOC; for
    COCO it uses 0 and 0.5 (`step_coco/make_lpcam.py`), and the paper has no lower bound.
    If fewer than `minimum` foreground centres pass, the most probable `minimum` are kept. With 1 this is what the official
    code does on COCO, except for centres within 1e-6 of the most probable one; on VOC it crashes. A single centre depends on
    the random start of k-means: two classes that always occur together, such as face and body, have no clearly probable centre.

    Args:
        fg_centers: (Kf, D) raw means. bg_centers: (Kb, D) raw means. Either may be empty.
        weight: (C, D) of the bias-free classifier. class_index: 0-based.

    Returns:
        (kept foreground (Kf,), kept background (Kb,)), bool.
    """
    if not 0 <= class_index < len(weight):
        raise ArgumentError(f"select_prototypes: class_index is {class_index}, expected 0 to {len(weight) - 1}")
    foreground = class_probability(fg_centers, weight)[:, class_index]  # (Kf,)
    background = class_probability(bg_centers, weight)[:, class_index]  # (Kb,)
    kept = foreground > fg_threshold
    if kept.sum() < minimum:
        kept[foreground.topk(min(minimum, len(kept))).indices] = True
    return kept, (background > bg_low) & (background < bg_high)


def mean_direction(prototypes: Tensor) -> Tensor:
    """(D,): the mean of the unit vectors of the prototypes (K, D); zero when there is none.

    It replaces all of them: mean_j cos(f, p_j) = f/|f| . mean_j p_j/|p_j|.
    """
    if prototypes.ndim != 2:
        raise ArgumentError(f"mean_direction: prototypes has shape {tuple(prototypes.shape)}, expected (K, D)")
    return F.normalize(prototypes.float(), dim=1).sum(dim=0) / max(1, len(prototypes))


def lpcam_maps(features: Tensor, foreground: Tensor, background: Tensor, *,
               relu_without_background: bool = False, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The LPCAM maps of one image at one scale.

    Args:
        features: (2, D, h, w), of the image and of its mirror image, after the last ReLU.
        foreground: (n, D), for each class the `mean_direction` of its foreground prototypes.
        background: (n, D), the same for its background prototypes; zero for a class that has none.
        relu_without_background: whether the ReLU is also applied to the FG of a class without background prototypes (paper,
            section 3.2; official code: no). Centres of features after a ReLU are never negative, so this changes nothing
            for them.
        mean: (D,), subtracted from every feature before its cosine, as from the prototypes (ours; None: nothing).

    Returns:
        (foreground term only (n, h, w), with background (n, h, w)), float32 in [-1, 1]: FG, and ReLU(FG - BG) or, for a class
        without background prototypes, FG. A zero feature has cosine 0.
    """
    shapes = [tuple(tensor.shape) for tensor in (features, foreground, background)]
    if len(shapes[0]) != 4 or len(features) != 2 or shapes[1] != shapes[2] or shapes[1][1:] != shapes[0][1:2]:
        raise ArgumentError(
            f"lpcam_maps: features, foreground and background are {shapes}, expected (2, D, h, w), (n, D) and (n, D)"
        )
    vectors, parts = torch.cat([foreground, background]).float(), []  # (2n, D)
    off = None if mean is None else 2 * mean.float()[:, None, None]  # of an image and its mirror image
    blocks = max(1, features[0].numel() // _BLOCK) if features.device.type == "cpu" else 1
    for image, mirrored in zip(features[0].chunk(blocks, dim=1), features[1].chunk(blocks, dim=1)):  # (D, some rows, w)
        summed = image.float() + mirrored.float().flip(-1)  # a sum instead of a mean: the length does not change a cosine
        if off is not None:
            summed = summed - off
        length = torch.linalg.vector_norm(summed, dim=0).clamp_min(1e-8)  # (rows, w)
        parts.append((vectors @ summed.flatten(1)).unflatten(1, length.shape) / length)
    fg, bg = torch.cat(parts, dim=1).chunk(2)
    has_background = background.any(dim=1)[:, None, None]
    return fg, torch.where(has_background, (fg - bg).relu(), fg.relu() if relu_without_background else fg)
