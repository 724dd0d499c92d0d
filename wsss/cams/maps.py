"""The stored form of activation maps, and how the two official maps are rebuilt from it.

For each present class the stored form has the values on one or several grids of any size, such as the feature grid of every
scale, flattened and concatenated, divided by the class's maximum, in float16. Both maps of the official code are rebuilt from
it: `cam` (stride 4) and `high_res` (full size) are sums over the grids of bilinear resizes, divided by their maximum (IRN
`step/make_cam.py`, LPCAM `step/make_lpcam.py`). A factor per class cancels in that division, so the maps may be stored
divided by their maximum, and the mean (LPCAM, VOC) and the sum (LPCAM, COCO) agree.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.cams import SCALES
from wsss.data.images import scaled_size
from wsss.errors import ArgumentError
from wsss.finite import require_finite
from wsss.resize import resize, resize_matrix

RESOLUTIONS = ("full", "strided")  # of the official maps, `high_res` and `cam`
MERGES = ("sum", "stretched", "resized", "stored")


def grids(height: int, width: int, stride: int, scales: Sequence[float] = SCALES) -> list[tuple[int, int]]:
    """The feature grid (h_s, w_s) of a convolutional network at every scale of an image (height, width): the input size / stride,
    rounded up. Stored maps have their grids with them; this is for arrays and estimates before there are any."""
    sizes = [scaled_size((height, width), scale) for scale in scales]
    return [(math.ceil(h / stride), math.ceil(w / stride)) for h, w in sizes]


def pad_of(found: Sequence[Sequence[int]], height: int, width: int, strides: Sequence[int],
           scales: Sequence[float] = SCALES) -> int:
    """The `pad` of `rebuild` for maps that are on the grids `found`: the first of the `strides` that has these grids, else the
    least number that has them; 1 without one."""
    wanted = [tuple(grid) for grid in found]
    candidates = (*strides, *range(1, min(height, width) + 1))
    return next((stride for stride in candidates if grids(height, width, stride, scales) == wanted), 1)


def pack(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Convert maps on one or several grids to their stored form.

    Args:
        maps: per grid, usually one per scale, (K, h_s, w_s), finite.

    Returns:
        packed: (K, P) float16, P = sum of h_s * w_s: the maps divided by the class's maximum over all grids, so in [0, 1]
            after a ReLU, else in [-1, 1]. An all-zero map stays zero.
        maxima: (K,) float32, the divisor of each class: its greatest magnitude.

    Raises:
        ArgumentError: a value is NaN or infinite, or the grids differ in K.
    """
    if not maps or any(m.ndim != 3 or len(m) != len(maps[0]) for m in maps):
        raise ArgumentError(f"pack: maps has shapes {[tuple(m.shape) for m in maps]}, expected per grid (K, h, w), the same K")
    flat = torch.cat([m.float().flatten(1) for m in maps], dim=1)  # (K, P)
    maxima = flat.abs().amax(dim=1)  # (K,); keeps a NaN
    require_finite(maxima, "pack: the activation maps")
    return (flat / _divisor(maxima)[:, None]).half(), maxima


def unpack(packed: Tensor | np.ndarray, grids: Sequence[Sequence[int]]) -> list[Tensor]:
    """The stored maps (K, P) as float32 (K, h_s, w_s) per grid.

    Raises:
        ArgumentError: P is not the number of cells of the grids.
    """
    packed = torch.as_tensor(packed)
    areas = [h * w for h, w in grids]
    if packed.ndim != 2 or packed.shape[1] != sum(areas):
        raise ArgumentError(
            f"unpack: the stored maps have shape {tuple(packed.shape)}, expected (K, {sum(areas)}) for the grids {list(grids)}; "
            "pass the grids of the stored maps"
        )
    return [part.unflatten(1, grid) for part, grid in zip(packed.float().split(areas, dim=1), grids, strict=True)]


def rebuild(
    packed: Tensor | np.ndarray,
    height: int,
    width: int,
    grids: Sequence[Sequence[int]],
    resolution: str = "strided",
    *,
    pad: int = 1,
    merge: str = "sum",
    eps: float | Tensor = 0.0,
) -> Tensor:
    """Rebuild the official maps from the stored ones.

    The bilinear resizes (align_corners=False) of all grids are one matrix product: a resize is R' M C, and the sum over the
    grids is the product of the R' M and the C, each concatenated over the grids.

    Args:
        packed: (K, P) as returned by `pack`; K may be 0.
        height, width: size of the original image.
        grids: (h_s, w_s) of each grid of the stored maps.
        resolution: "strided" for the official `cam`, (K, ceil(H / 4), ceil(W / 4)); "full" for the official `high_res`,
            (K, H, W).
        pad: the full map is computed at multiples of `pad`, and cropped at the top left: 16 in the official code, whose feature
            grid covers the image padded to multiples of its stride. 1: the grids cover the image exactly.
        merge: "sum" of the resized grids, divided by its maximum; "stretched": the sum minus its least value, divided by its
            range (MCTformer, `engine.py`); "resized": the sum as it is, of maps that are imported with their range; "stored":
            nothing is computed, the first grid is the full map and the second one the map at stride 4.
        eps: added to the maximum, or the range, before dividing, a number or (K,), in units of the stored maps. The official
            make_cam adds 1e-5 in units of the raw maps: `1e-5 / maxima`; make_lpcam adds nothing.

    Returns:
        (K, h, w) float32 on the device of `packed`; after "sum" each class's maximum is 1 (slightly less with eps). An all-zero
        map stays zero (official make_lpcam: NaN); a map without positive values is not divided.

    Raises:
        ArgumentError: the stored maps do not fit the grids, or `resolution` or `merge` is unknown.
    """
    if resolution not in RESOLUTIONS:
        raise ArgumentError(f"rebuild: resolution is {resolution!r}, expected 'full' or 'strided'")
    if merge not in MERGES:
        raise ArgumentError(f"rebuild: merge is {merge!r}, expected one of {', '.join(MERGES)}")
    maps = unpack(packed, grids)  # per grid (K, h_s, w_s)
    if merge == "stored":
        return maps[RESOLUTIONS.index(resolution)]
    if resolution == "full":
        size, kept = (pad * math.ceil(height / pad), pad * math.ceil(width / pad)), (height, width)
    else:
        size = kept = (math.ceil(height / 4), math.ceil(width / 4))
    if [m.shape[1:] for m in maps] == [size]:  # one map of this size, as at full resolution
        total = maps[0][:, : kept[0], : kept[1]].clone()
    else:
        rows = [resize_matrix(m.shape[1], size[0], m.device)[:, : kept[0]] for m in maps]  # per grid (h_s, h)
        columns = torch.cat([resize_matrix(m.shape[2], size[1], m.device)[:, : kept[1]] for m in maps])  # (sum of w_s, w)
        total = torch.cat([r.T @ m for r, m in zip(rows, maps, strict=True)], dim=2) @ columns  # (K, h, w)
    if merge == "resized":
        return total
    if merge == "stretched":
        total -= total.amin(dim=(1, 2), keepdim=True)
    peak = total.amax(dim=(1, 2)) + torch.as_tensor(eps, dtype=total.dtype, device=total.device)
    return total.div_(_divisor(peak)[:, None, None])


def in_frame(
    maps: Sequence[Tensor],
    size: Sequence[int],
    frame: Sequence[int],
    *,
    pad: int = 1,
    cubic: bool = False,
    normalise_first: bool = False,
) -> Tensor:
    """The sum of maps on several grids in an evaluation frame, as score maps.

    Args:
        maps: per grid (K, h, w), as of `unpack`, on the CPU; K may be 0.
        size: (H, W) of the network's input.
        frame: (H', W') of the result. The grids are resized to the input, padded to multiples of `pad` (`rebuild`), and this to
            the frame if it has another size.
        cubic: resize by bicubic interpolation (a = -0.75, as `cv2.INTER_CUBIC`; wsolevaluation `inference.py`), else bilinear.
        normalise_first: each grid is brought to [0, 1] before it is resized and the result is their mean (F-CAM,
            `dlib/cams/fcam.py`); then its maximum may be below 1. Else the result is brought to [0, 1].

    Returns:
        (K, H', W') float32 in [0, 1]: minus its minimum, divided by its maximum; a constant map is 0.
    """
    def resized(each: Tensor, target: Sequence[int]) -> Tensor:
        if not cubic or not len(each) or each.shape[1:] == tuple(target):
            return resize(each, target)
        return torch.nn.functional.interpolate(each[None], size=tuple(target), mode="bicubic", align_corners=False)[0]

    padded = [pad * math.ceil(side / pad) for side in size]
    grids = [_to_unit(each.float()) for each in maps] if normalise_first else [each.float() for each in maps]
    total = torch.stack([resized(each, padded) for each in grids]).sum(0)[:, : size[0], : size[1]]
    total = resized(total, frame)
    return (total / len(grids)).clamp(0, 1) if normalise_first else _to_unit(total)


def _to_unit(maps: Tensor) -> Tensor:
    """Each map (K, h, w) minus its minimum, divided by its maximum; a constant one is 0."""
    if not len(maps):
        return maps
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / _divisor(maps.amax((1, 2), keepdim=True))


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (K, H, W) to (H', W'), bilinear with align_corners=False; unchanged if they have that size. K may be 0."""
    return resize(maps, size)


def from_stride_4(maps: Tensor, frame: Sequence[int], size: Sequence[int]) -> Tensor:
    """Resize maps (K, h, w) of stride 4 after the random walk to the `size` (H', W') of the image; K may be 0.

    As in the official code they are enlarged 4 times (bilinear) and cropped to `frame`, the size (H, W) of the networks' input;
    if that was smaller than the image, `at_size` enlarges them further.
    """
    large = resize(maps, [4 * side for side in maps.shape[1:]])
    return at_size(large[:, : frame[0], : frame[1]], size)


def _divisor(maximum: Tensor) -> Tensor:
    return maximum.where(maximum > 0, 1.0)
