"""Masks of images, from a segmentation network: at several scales, in windows, with a dense CRF.

An image that is larger than a window is never held as probabilities as a whole: they come in bands of rows, from top to bottom,
and each band becomes rows of the mask as soon as no further window touches it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.cams.method import image_pairs
from wsss.data.images import IMAGENET, Normalisation
from wsss.finite import require_finite
from wsss.refinement.crf import DenseCRF
from wsss.refinement.masks import labels_of
from wsss.refiners.crf import kernels_of
from wsss.resize import resize
from wsss.segmenters.crf_image import BEFORE_CRF, CrfImage, wrapped

Logits = Callable[[Tensor], Tensor]
LEAST = 1e-5                # of a probability that the CRF starts from: pydensecrf, unary_from_softmax
AT_ONCE = 2**22             # values of probabilities that are resized at once


def segment(logits: Logits, image: np.ndarray, size: Sequence[int], settings: Any, device: torch.device | str = "cpu",
            normalisation: Normalisation = IMAGENET) -> dict[str, np.ndarray]:
    """The masks of an image: "" is the mask, and with a CRF `BEFORE_CRF` the one before it.

    Args:
        logits: normalised images (B, 3, h, w) on `device` -> (B, C + 1, h', w') float32 of the labels, background first.
        image: (H, W, 3) uint8.
        size: (H', W') of the masks.
        settings: those of infer_seg: scales, flip, background_weight, window, overlap, crf, crf_image, crf_iterations and the
            kernels of the CRF.
        normalisation: of the network's input.

    Returns:
        Masks (H', W') uint8: 0 background, i + 1 class i.
    """
    turned = image.shape[1] > image.shape[0] and not _is_whole(image.shape, settings.window)   # bands along the long side

    def both(crop: np.ndarray) -> Tensor:
        crop = crop.transpose(1, 0, 2) if turned else crop
        soft = probabilities(logits, crop, settings.scales, settings.flip, device, normalisation)
        found = _before_and_after(soft, crop, settings)
        return found.transpose(-1, -2) if turned else found
    with torch.inference_mode():
        whole = image.transpose(1, 0, 2) if turned else image
        masks = _masks(bands(both, whole, settings.window, settings.overlap), whole.shape, size[::-1] if turned else size)
    return _named(masks.transpose(0, 2, 1) if turned else masks, settings)


def segment_group(logits: Logits, images: Sequence[np.ndarray], sizes: Sequence[Sequence[int]], settings: Any,
                  device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> list[dict[str, np.ndarray]]:
    """As `segment`, of images of the same size, which the network gets as one batch if they need no windows."""
    if not _is_whole(images[0].shape, settings.window):
        return [segment(logits, image, size, settings, device, normalisation) for image, size in zip(images, sizes, strict=True)]
    found = probabilities_of(logits, images, settings.scales, settings.flip, device, normalisation)
    with torch.inference_mode():
        return [_named(_masks([_before_and_after(soft, image, settings)], image.shape, size), settings)
                for soft, image, size in zip(found, images, sizes, strict=True)]


def probabilities(logits: Logits, image: np.ndarray, scales: Sequence[float] = (1.0,), flip: bool = False,
                  device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> Tensor:
    """The mean over the scales, and with `flip` over the mirror images, of the softmax of the logits, which are resized to the
    image first (bilinear).

    Args:
        logits, image, normalisation: as for `segment`.
        scales: relative to the size of the image.

    Returns:
        (C + 1, H, W) float32, without a graph.

    Raises:
        ArgumentError: the logits are not finite.
    """
    return probabilities_of(logits, [image], scales, flip, device, normalisation)[0]


def probabilities_of(logits: Logits, images: Sequence[np.ndarray], scales: Sequence[float] = (1.0,), flip: bool = False,
                     device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> Tensor:
    """The `probabilities` (B, C + 1, H, W) of B images of the same size, which the network gets as one batch."""
    def at_scale(pairs: Sequence[Tensor]) -> Tensor:
        found = require_finite(logits(torch.cat([pair if flip else pair[:1] for pair in pairs])), "segment: the logits")
        soft = resize(found, images[0].shape[:2]).softmax(1).unflatten(0, (len(images), 1 + flip))
        return (soft[:, 0] + soft[:, 1].flip(-1)) / 2 if flip else soft[:, 0]
    with torch.inference_mode():
        each = map(at_scale, zip(*(image_pairs(image, scales, device, normalisation) for image in images), strict=True))
        return reduce(torch.add, each) / len(scales)   # one scale after the other, to hold few


def _before_and_after(soft: Tensor, image: np.ndarray, settings: Any) -> Tensor:
    """Of probabilities (C + 1, H, W): (1, C + 1, H, W) without a CRF, else (2, C + 1, H, W), before and after it. Both with the
    weight of the background."""
    soft = weighted(soft, settings.background_weight)
    if not settings.crf:
        return soft[None]
    seen = wrapped(image) if settings.crf_image is CrfImage.official_wrapped else np.ascontiguousarray(image)
    crf = DenseCRF(torch.from_numpy(seen).to(soft.device), **kernels_of(settings))
    return torch.stack([soft, crf.inference(unary_from_probabilities(soft), settings.crf_iterations)])


def weighted(soft: Tensor, background: float) -> Tensor:
    """Probabilities (C + 1, H, W) of which that of the background is multiplied by a weight, with the sum 1 again."""
    if background == 1:
        return soft
    changed = torch.cat([background * soft[:1], soft[1:]])
    return changed / changed.sum(0)


def unary_from_probabilities(soft: Tensor) -> Tensor:
    """Unary energies: the negative logarithms of probabilities, which are at least `LEAST`."""
    return -soft.clamp(min=LEAST).log()


def _named(masks: np.ndarray, settings: Any) -> dict[str, np.ndarray]:
    return dict(zip([BEFORE_CRF, ""] if settings.crf else [""], masks, strict=True))


# Windows.

def windows(side: int, window: int | None, overlap: int) -> list[tuple[int, int]]:
    """The ranges of the windows along a side: as few as possible and of the same length, at most `window`, each with `overlap`
    pixels in common with the next. No pixel is in three of them if `overlap` is at most a third of `window`."""
    if window is None or side <= window:
        return [(0, side)]
    number = -(-(side - overlap) // (window - overlap))
    at = [i * (side - overlap) // number for i in range(number + 1)]
    return [(start, end + overlap) for start, end in pairwise(at)]


def bands(soft: Callable[[np.ndarray], Tensor], image: np.ndarray, window: int | None, overlap: int) -> Iterator[Tensor]:
    """What `soft` returns of the windows of an image, (h, w, 3) -> (..., h, w), put together: bands (..., rows, W) from top to
    bottom that are together (..., H, W). Where two windows overlap it changes linearly from one to the other. The tensors that
    `soft` returns may be changed in place.

    A single window gives what `soft` returns of the whole image.
    """
    rows, columns = (windows(side, window, overlap) for side in image.shape[:2])
    carried: Tensor | None = None   # the first rows of the next band
    for top, bottom in rows:
        band = _band(soft, image[top:bottom], columns, overlap)
        last = bottom == image.shape[0]
        if len(rows) > 1:
            band *= _taper(bottom - top, overlap, top == 0, last, band.device)[:, None]
        if carried is not None:
            band[..., :overlap, :] += carried
        done = bottom - top - (0 if last else overlap)
        carried = band[..., done:, :].clone()
        yield band[..., :done, :]
        del band   # before the next is made


def _band(soft: Callable[[np.ndarray], Tensor], image: np.ndarray, columns: list[tuple[int, int]], overlap: int) -> Tensor:
    """One row of windows, put together."""
    first = soft(image[:, :columns[0][1]])
    if len(columns) == 1:
        return first
    band = first.new_zeros(*first.shape[:-1], image.shape[1])
    for left, right in columns:
        found = soft(image[:, left:right]) if left else first
        band[..., left:right] += found * _taper(right - left, overlap, left == 0, right == image.shape[1], found.device)
    return band


def _taper(length: int, overlap: int, first: bool, last: bool, device: torch.device) -> Tensor:
    """The weights (length,) of a window: 1, rising from 0 where it overlaps the window before and falling where the next one."""
    weights, ramp = torch.ones(length), (torch.arange(overlap) + 0.5) / max(1, overlap)
    if not first:
        weights[:overlap] = ramp
    if not last:
        weights[length - overlap:] = 1 - ramp
    return weights.to(device)


def _is_whole(shape: Sequence[int], window: int | None) -> bool:
    return window is None or max(shape[:2]) <= window


# Masks.

def _masks(found: Iterable[Tensor], shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The masks (K, H', W') uint8 of bands of probabilities (K, C + 1, rows, W) of an image of `shape` (H, W)."""
    return torch.cat(list(map(_labels, _resized(found, shape[:2], size))), -2).numpy()   # `map` holds no band


def _labels(band: Tensor) -> Tensor:
    return labels_of(band, -3).byte().cpu()


def _resized(found: Iterable[Tensor], shape: Sequence[int], size: Sequence[int]) -> Iterator[Tensor]:
    """Bands (..., rows, W) of (..., H, W), resized as by `wsss.resize.resize` to bands of (..., H', W')."""
    if tuple(shape) == tuple(size):
        yield from found
        return
    height, target = shape[0], size[0]
    at = ((torch.arange(target, dtype=torch.float64) + 0.5) * height / target - 0.5).clamp(min=0)   # rows of `found`
    above = at.long()
    below, share = (above + 1).clamp(max=height - 1), (at - above).float()[:, None]
    kept: Tensor | None = None
    first, done = 0, 0   # the first row in `kept`, and the rows that were yielded
    for band in found:
        rows = band if kept is None else torch.cat([kept, band], -2)
        ready = int((below < first + rows.shape[-2]).sum())
        step = max(1, AT_ONCE // (rows[..., 0, 0].numel() * max(size[1], shape[1])))
        for start in range(done, ready, step):
            part = slice(start, min(start + step, ready))
            one, other = (rows[..., (index[part] - first).to(rows.device), :] for index in (above, below))
            mixed = one.lerp(other, share[part].to(rows.device))
            yield resize(mixed, (mixed.shape[-2], size[1]))
        known = first + rows.shape[-2]
        needed = min(int(above[ready]), known) if ready < target else known
        kept, first, done = rows[..., needed - first:, :].clone(), needed, ready
