"""Overlays of maps and masks on images, as PNG, for viewing only: the pipeline never reads them."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.errors import ArgumentError
from wsss.files import write_bytes
from wsss.palette import VOC_PALETTE

ROWS = 256   # that are blended at once


def overlay_map(image: np.ndarray, values: np.ndarray, strength: float = 0.8) -> np.ndarray:
    """A map as a heat map on its image, in matplotlib's "inferno", which is also ordered by brightness.

    The image is unchanged where the map is 0.

    Args:
        image: (H, W, 3) uint8 RGB.
        values: (H, W) float, clipped to [0, 1].
        strength: opacity of the heat map where the map is 1, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.
    """
    _check("overlay_map", image, values)
    values = np.clip(np.nan_to_num(values), 0, 1)
    heat = _heat()[(values * 255).round().astype(np.uint8)]
    return _blend(image, heat, strength * np.sqrt(values)[..., None])


def overlay_mask(image: np.ndarray, mask: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """A mask (H, W) uint8 in VOC's colours on its image (H, W, 3) uint8; background is unchanged, 255 is drawn pale."""
    _check("overlay_mask", image, mask)
    return _blend(image, VOC_PALETTE[mask], np.where(mask == 0, 0.0, strength)[..., None])


def write_picture(path: Path | str, picture: np.ndarray) -> Path:
    """Write (H, W, 3) uint8 as a PNG, completely or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    write_bytes(path, content.getvalue())
    return Path(path)


@cache
def _heat() -> np.ndarray:
    """(256, 3) uint8."""
    from matplotlib import colormaps  # slow to import, and most importers of this file draw nothing

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def _blend(image: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    blended = np.empty_like(image)
    for top in range(0, len(image), ROWS):   # in float64, 24 bytes a pixel and term
        rows = slice(top, top + ROWS)
        blended[rows] = (image[rows] * (1 - share[rows]) + other[rows] * share[rows]).round()
    return blended


def _check(name: str, image: np.ndarray, values: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or values.shape != image.shape[:2]:
        raise ArgumentError(f"{name}: image {image.dtype} {image.shape} and map or mask {values.shape}; expected uint8 (H, W, 3) "
                            "and (H, W) of the same size")
