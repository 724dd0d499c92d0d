"""The stored form of activation maps, and how the two official maps are rebuilt from it.

For each present class the stored form has the values of every scale on that scale's feature grid, flattened and
concatenated, divided by the class's maximum, in float16. Both maps of the official code are rebuilt from it: `cam`
(stride 4) and `high_res` (full size) are sums over the scales of bilinear resizes, divided by their maximum (IRN
`step/make_cam.py`, LPCAM `step/make_lpcam.py`). A factor per class cancels in that division, so the maps may be stored
divided by their maximum, and the mean (LPCAM, VOC) and the sum (LPCAM, COCO) agree.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.cams import SCALES
from wsss.data.images import scaled_size
from wsss.errors import ArgumentError


def grids(height: int, width: int, scales: Sequence[float] = SCALES, stride: int = 16) -> list[tuple[int, int]]:
    """The feature grid (h_s, w_s) of every scale for an image (height, width): the input size / stride, rounded up."""
    sizes = [scaled_size((height, width), scale) for scale in scales]
    return [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in sizes]


def pack(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Convert the maps of all scales to their stored form.

    Args:
        maps: per scale (K, h_s, w_s), finite, in the order of `scales`.

    Returns:
        packed: (K, P) float16, P = sum of h_s * w_s: the maps divided by the class's maximum over all scales, so in [0, 1]
            after a ReLU, else in [-1, 1]. An all-zero map stays zero.
        maxima: (K,) float32, the divisor of each class: its greatest magnitude.

    Raises:
        ArgumentError: a value is NaN or infinite, or the scales differ in K.
    """
    if not maps or any(m.ndim != 3 or len(m) != len(maps[0]) for m in maps):
        raise ArgumentError(f"pack: maps has shapes {[tuple(m.shape) for m in maps]}, expected per scale (K, h, w), the same K")
    flat = torch.cat([m.float().flatten(1) for m in maps], dim=1)  # (K, P)
    maxima = flat.abs().amax(dim=1)  # (K,); keeps a NaN
    if not maxima.isfinite().all():
        raise ArgumentError(
            "pack: the activation maps hold NaN or infinite values, expected finite ones; "
            "check that the classifier was trained to a finite loss, or compute them in float32"
        )
    return (flat / _divisor(maxima)[:, None]).half(), maxima


def unpack(packed: Tensor | np.ndarray, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The stored maps (K, P) as float32 (K, h_s, w_s) per scale, on the feature grids `grids`.

    Raises:
        ArgumentError: P is not the number of cells of the grids.
    """
    packed = torch.as_tensor(packed)
    areas = [h * w for h, w in grids]
    if packed.ndim != 2 or packed.shape[1] != sum(areas):
        raise ArgumentError(
            f"unpack: the stored maps have shape {tuple(packed.shape)}, expected (K, {sum(areas)}) for the grids {list(grids)}; "
            "height, width or scales differ from those of the stored maps"
        )
    return [part.unflatten(1, grid) for part, grid in zip(packed.float().split(areas, dim=1), grids, strict=True)]


def rebuild(
    packed: Tensor | np.ndarray,
    height: int,
    width: int,
    scales: Sequence[float] = SCALES,
    resolution: str = "strided",
    eps: float | Tensor = 0.0,
) -> Tensor:
    """Rebuild the official maps from the stored ones.

    The bilinear resizes (align_corners=False) of all scales are one matrix product: a resize is R' M C, and the sum over the
    scales is the product of the R' M and the C, each concatenated over the scales.

    Args:
        packed: (K, P) as returned by `pack`; K may be 0.
        height, width: size of the original image.
        scales: the scales of the maps.
        resolution: "strided" for the official `cam`, (K, ceil(H / 4), ceil(W / 4)); "full" for the official `high_res`,
            (K, H, W), computed at (16 * ceil(H / 16), 16 * ceil(W / 16)) and cropped at the top left.
        eps: added to the maximum before dividing, a number or (K,), in units of the stored maps. The official make_cam
            adds 1e-5 in units of the raw maps: `1e-5 / maxima`; make_lpcam adds nothing.

    Returns:
        (K, h, w) float32 on the device of `packed`; each class's maximum is 1 (slightly less with eps). An all-zero map
        stays zero (official make_lpcam: NaN); a map without positive values is not divided.

    Raises:
        ArgumentError: the stored maps do not fit the image and scales, or the resolution is unknown.
    """
    if resolution == "strided":
        size = kept = (math.ceil(height / 4), math.ceil(width / 4))
    elif resolution == "full":
        size, kept = (16 * math.ceil(height / 16), 16 * math.ceil(width / 16)), (height, width)
    else:
        raise ArgumentError(f"rebuild: resolution is {resolution!r}, expected 'strided' or 'full'")
    maps = unpack(packed, grids(height, width, scales))  # per scale (K, h_s, w_s)
    rows = [_resize_matrix(m.shape[1], size[0], m.device)[:, : kept[0]] for m in maps]  # per scale (h_s, h)
    columns = torch.cat([_resize_matrix(m.shape[2], size[1], m.device)[:, : kept[1]] for m in maps])  # (sum of w_s, w)
    total = torch.cat([r.T @ m for r, m in zip(rows, maps, strict=True)], dim=2) @ columns  # (K, h, w)
    peak = total.amax(dim=(1, 2)) + torch.as_tensor(eps, dtype=total.dtype, device=total.device)
    return total.div_(_divisor(peak)[:, None, None])


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (K, H, W) to (H', W'), bilinear with align_corners=False; unchanged if they have that size. K may be 0."""
    if maps.shape[1:] == torch.Size(size):
        return maps
    if not len(maps):
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def from_stride_4(maps: Tensor, frame: Sequence[int], size: Sequence[int]) -> Tensor:
    """Resize maps (K, h, w) of stride 4 after the random walk to the `size` (H', W') of the image; K may be 0.

    As in the official code they are enlarged 4 times (bilinear) and cropped to `frame`, the size (H, W) of the networks' input;
    if that was smaller than the image, `at_size` enlarges them further.
    """
    if not len(maps):
        return maps.new_zeros(0, *size)
    large = F.interpolate(maps[None], scale_factor=4, mode="bilinear", align_corners=False)[0]
    return at_size(large[:, : frame[0], : frame[1]], size)


def _resize_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """(source, target): a row vector times this matrix is its bilinear resize. It is the resize of the unit vectors."""
    unit = torch.eye(source, device=device)
    return F.interpolate(unit[None], size=target, mode="linear", align_corners=False)[0]


def _divisor(maximum: Tensor) -> Tensor:
    return maximum.where(maximum > 0, 1.0)
