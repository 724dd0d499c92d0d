"""Labels for training IRN: confident classes and confident background from the maps and the dense CRF; the rest is ignored.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019), and the official
`step/cam_to_ir_label.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError
from wsss.palette import IGNORE
from wsss.refinement.crf import as_tensor, crf_labels

BACKGROUND = 0


def ir_label(
    image: np.ndarray | Tensor,
    maps: np.ndarray | Tensor,
    classes: np.ndarray | Tensor | Sequence[int],
    *,
    conf_fg: float,
    conf_bg: float,
    iterations: int = 10,
    gt_prob: float = 0.7,
    backend: str = "torch",
    device: torch.device | str | None = None,
) -> Tensor:
    """The IRN training label of one image.

    Each threshold gives a label map, the arg-max over the class maps and a constant background of the threshold, which the
    dense CRF refines. The classes at `conf_fg` are confident; of the rest, the background at `conf_bg` is confident background.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (K, H, W) float, at most 1, in the frame of `image` (`high_res` of the official files). Values may be below 0
            (LPCAM, for a class without background prototypes). K = 0: background everywhere.
        classes: (K,) distinct 0-based class ids of the maps, at most 253.
        conf_fg, conf_bg: thresholds, 0 <= conf_bg <= conf_fg <= 1 (LPCAM 0.45 and 0.25, IRN 0.30 and 0.05).
        iterations, gt_prob, backend: as in `wsss.refinement.crf.crf_labels`.
        device: of the computation; by default that of `maps`, the CPU for an array.

    Returns:
        (H, W) uint8: 0 background, class id + 1, 255 ignore; on the device of the computation.

    Raises:
        ArgumentError: an argument has a wrong shape or is outside its range.
        BackendError: pydensecrf is requested and not installed.
    """
    maps = as_tensor(maps, device).float()
    image, classes = as_tensor(image, maps.device), as_tensor(classes, maps.device)
    _check(image, maps, classes, conf_fg, conf_bg)
    if len(maps) == 0:
        return torch.full(maps.shape[1:], BACKGROUND, dtype=torch.uint8, device=maps.device)
    seeds = torch.stack([_seed(maps, conf_fg), _seed(maps, conf_bg)])  # (2, H, W), 0 background, k + 1 for map k
    foreground, background = crf_labels(image, seeds, len(maps) + 1, iterations=iterations, gt_prob=gt_prob, backend=backend)
    ids = F.pad(classes.long() + 1, (1, 0), value=IGNORE).to(torch.uint8)
    label = ids[foreground]  # (H, W)
    return label.masked_fill_((foreground == 0) & (background == 0), BACKGROUND)


def _seed(maps: Tensor, threshold: float) -> Tensor:
    """Arg-max over [threshold, maps]; a tie goes to the first, so to background."""
    return torch.cat([torch.full_like(maps[:1], threshold), maps]).max(0).indices


def _check(image: Tensor, maps: Tensor, classes: Tensor, conf_fg: float, conf_bg: float) -> None:
    if maps.ndim != 3 or maps.shape[1:] != image.shape[:2]:
        raise ArgumentError(
            f"ir_label: maps has shape {tuple(maps.shape)}, image {tuple(image.shape)}; expected (K, H, W) and (H, W, 3): "
            "resize the maps to the image"
        )
    if classes.shape != maps.shape[:1]:
        raise ArgumentError(f"ir_label: classes has shape {tuple(classes.shape)}; expected ({len(maps)},): a class for each map")
    ids = classes.tolist()
    if len(set(ids)) < len(ids) or not all(float(i).is_integer() and 0 <= i < IGNORE - 1 for i in ids):
        raise ArgumentError(f"ir_label: classes is {ids}; expected distinct 0-based class ids of at most {IGNORE - 2}")
    if not 0 <= conf_bg <= conf_fg <= 1:
        raise ArgumentError(f"ir_label: conf_bg is {conf_bg}, conf_fg is {conf_fg}; expected 0 <= conf_bg <= conf_fg <= 1")
    if not maps.isfinite().all() or maps.numel() and maps.max() > 1 + 1e-3:
        low, high = maps.min().item(), maps.max().item()
        raise ArgumentError(
            f"ir_label: maps holds values {low:.3g}..{high:.3g}; expected finite values of at most 1: divide each map by its "
            "maximum, and leave an all-zero map as it is"
        )
