"""Convert arrays to small embedded pictures: images as WebP, labels as palette PNG."""

import base64
import io

import numpy as np
from PIL import Image

from wsss.data.images import resize_mask, scaled_size
from wsss.overlays import overlay_map
from wsss.palette import IGNORE, VOC_PALETTE

# The kinds of pixel errors of a pseudo mask, in colours for all kinds of colour vision (Okabe & Ito).
ERRORS = {"correct class": (0, 158, 115), "missed": (86, 180, 233), "too much": (230, 159, 0), "wrong class": (204, 121, 167),
          "correct background": (24, 26, 28), "not scored": (224, 224, 192)}
CORRECT, MISSED, TOO_MUCH, WRONG, BACKGROUND, NOT_SCORED = range(6)
_ERROR_PALETTE = np.zeros((256, 3), np.uint8)
_ERROR_PALETTE[:len(ERRORS)] = list(ERRORS.values())
_QUALITY = 62   # of WebP


def image(image: np.ndarray, side: int) -> str:
    """An (H, W, 3) uint8 image as a data URI, its longer side at most `side` pixels."""
    small = Image.fromarray(image).resize(thumbnail_size(image, side)[::-1], Image.Resampling.LANCZOS)
    return _uri(small, "WEBP", quality=_QUALITY)


def label(mask: np.ndarray, side: int, palette: np.ndarray = VOC_PALETTE) -> str:
    """An (H, W) uint8 label as a data URI in the VOC colours."""
    picture = Image.fromarray(resize_mask(mask, thumbnail_size(mask, side)))
    picture.putpalette(palette.tobytes())
    return _uri(picture, "PNG", optimize=True)


def errors(prediction: np.ndarray, truth: np.ndarray, side: int) -> str:
    """The errors of a prediction (H, W) as a data URI, in the colours of `ERRORS`."""
    size = thumbnail_size(truth, side)
    return label(error_map(resize_mask(prediction, size), resize_mask(truth, size)), side, _ERROR_PALETTE)


def error_map(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) uint8, the index of the error in `ERRORS`; a predicted 255 counts as background."""
    predicted = np.where(prediction == IGNORE, 0, prediction)
    kinds = np.full(truth.shape, WRONG, np.uint8)
    kinds[predicted == truth] = CORRECT
    kinds[(predicted == 0) & (truth > 0)] = MISSED
    kinds[(predicted > 0) & (truth == 0)] = TOO_MUCH
    kinds[(predicted == 0) & (truth == 0)] = BACKGROUND
    kinds[truth == IGNORE] = NOT_SCORED
    return kinds


def heat(values: np.ndarray, image: np.ndarray, side: int) -> str:
    """A map (h, w) in [0, 1], of any size, drawn over its image (H, W, 3), which is unchanged at 0."""
    size = thumbnail_size(image, side)
    small, cells = (np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize(size[::-1], Image.Resampling.BILINEAR))
                    for array in (image, values.astype(np.float32)))
    return _uri(Image.fromarray(overlay_map(small, cells)), "WEBP", quality=_QUALITY)


def patches(crops: list[np.ndarray], side: int) -> str:
    """Square crops in one row as one picture."""
    row = [np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC)) for crop in crops]
    return _uri(Image.fromarray(np.concatenate(row, axis=1)), "WEBP", quality=_QUALITY)


def colour(index: int) -> str:
    """The colour of a mask value, for CSS; of class `index` - 1 where there are more classes than mask values: colours recur."""
    return f"#{VOC_PALETTE[index if index < IGNORE else 1 + (index - 1) % (IGNORE - 1)].tobytes().hex()}"


def thumbnail_size(array: np.ndarray, side: int) -> tuple[int, int]:
    """The size of a thumbnail: shrunk to `side`, never enlarged."""
    size = array.shape[:2]
    return size if max(size) <= side else scaled_size(size, side / max(size))


def _uri(picture: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    picture.save(content, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
