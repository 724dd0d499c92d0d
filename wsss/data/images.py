"""Reading, writing, resizing and normalising of images and masks.

Images are `(H, W, 3)` uint8 RGB, masks `(H, W)` uint8 with 0 background, 1..C class and 255 ignore. Both are in the displayed
orientation: EXIF orientation is applied when reading, so a mask must match the displayed image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image

from wsss.data.headers import DAMAGE, PIXEL_END, Header, exif_orientation, pillow_limit, read_header, turn, without_limit
from wsss.data.messages import MAX_REPORTED
from wsss.errors import ArgumentError, DataError
from wsss.files import write_bytes
from wsss.palette import IGNORE, VOC_PALETTE
from wsss.reading import open_regular, read_whole

if TYPE_CHECKING:
    import torch


Levels = Sequence[float]   # two: the values that become black and white


class Normalisation(NamedTuple):
    """Mean and standard deviation of each RGB channel in 0..1, for normalising a network's input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: The ImageNet values, with which the torchvision weights were trained.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_COLOUR_MODES = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA")
_MAX_NUMBER = 65535  # of a pixel of a mask: 16 bits
_TAIL = 64  # bytes searched for the end marker, because some cameras and editors append a few bytes


def _content(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror or error}; restore it, or remove its id") from error


def _decode(content: bytes, path: object, mode_of: Callable[[Header], str], max_pixels: int | None = None) -> np.ndarray:
    """Pixels in the mode `mode_of(header)` with EXIF orientation applied (imageio's `rotate` is wrong for grey read as RGB)."""
    header = read_header(io.BytesIO(content), path)
    _refuse_huge(header, path, max_pixels)
    mode = mode_of(header)
    try:
        with without_limit() if header.size[0] * header.size[1] > pillow_limit() else nullcontext():
            array = iio.imread(content, plugin="pillow", index=0, mode=mode)
    except DAMAGE as error:
        raise DataError(f"{path} is truncated or damaged ({error}); restore or remove it") from error
    return np.ascontiguousarray(turn(array, header.orientation))


def _refuse_huge(header: Header, path: object, max_pixels: int | None) -> None:
    limit, pixels = max_pixels or pillow_limit(), header.size[0] * header.size[1]
    if pixels > limit:
        raise DataError(f"{path} has {pixels:,} pixels; expected at most {limit:,}, because decoding takes 3 bytes for each: set "
                        f"data.max_pixels={pixels} for a folder of your own, or make the image smaller")


def read_image(path: str | Path, levels: Levels | None = None, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file as `(H, W, 3)` uint8 RGB with EXIF orientation applied; grey and palettes become RGB, alpha is dropped.

    `levels`: the values (low, high) that become 0 and 255 in an image of one channel with more than 8 bits or floats.
    `max_pixels`: the most that are decoded; None: Pillow's limit.

    Raises DataError, naming the file, if it is missing, truncated, damaged, of another format, larger, or over 8 bits per channel
    without levels.
    """
    path = Path(path)
    content = _content(path)
    header = read_header(io.BytesIO(content), path)
    _refuse_deep(header, path, levels)
    if levels and header.bits > 8:
        values = _decode(content, path, lambda header: header.mode, max_pixels).astype(np.float64)
        grey = np.rint(255 * np.clip((values - levels[0]) / (levels[1] - levels[0]), 0, 1)).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    # A palette with transparency must pass through RGBA.
    pixels = _decode(content, path, lambda header: "RGBA" if header.mode == "P" else "RGB", max_pixels)
    return np.ascontiguousarray(pixels[..., :3])


def _refuse_deep(header: Header, path: object, levels: Levels | None) -> None:
    if header.bits > 8 and not header.mode.startswith(("I", "F")):
        raise DataError(f"{path} has {header.bits} bits per channel in colour ({header.mode}); expected 8: convert it with a "
                        "range of your choice")
    if header.bits > 8 and levels is None:
        raise DataError(f"{path} has {header.bits} bits per channel; expected 8, or the range that becomes black to white: set "
                        "data.range=[LOW,HIGH] for a folder of your own, or convert it")


def as_rgb(image: str | Path | Image.Image | np.ndarray, levels: Levels | None = None,
           max_pixels: int | None = None) -> np.ndarray:
    """An image as `(H, W, 3)` uint8 RGB: a file, as `read_image` with `levels` and `max_pixels`; a PIL image, likewise, EXIF
    orientation included; or such an array, unchanged.

    Raises DataError for a file that cannot be read, ArgumentError for another array or over 8 bits per channel.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, levels, max_pixels)
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ArgumentError(f"image: a PIL image of mode {image.mode} has more than 8 bits per channel; convert it with a "
                                "range of your choice")
        array = np.array(image.convert("RGBA" if image.mode == "P" else "RGB"))[..., :3]
        return np.ascontiguousarray(turn(array, exif_orientation(image)))
    _check_array("image", image, 3)
    return image


def read_mask(path: str | Path) -> np.ndarray:
    """Read a palette or 8-bit grey PNG as `(H, W)` uint8: the stored numbers, not colours; EXIF orientation is applied.

    Raises DataError, naming the file, if it is missing, damaged, lossy (JPEG), in colour, or grey of another depth.
    """
    return decode_mask(_content(Path(path)), path)


def decode_mask(content: bytes, path: object) -> np.ndarray:
    """`read_mask` of the bytes of a file, which errors call `path`."""
    return _decode(content, path, lambda header: _mask_mode(header, path))


def _mask_mode(header: Header, path: object) -> str:
    if header.format != "PNG":
        raise DataError(f"mask {path} is a {header.format} file, whose compression changes class numbers; expected a PNG: "
                        "save the class numbers with wsss.data.images.write_mask")
    if header.mode == "P" or (header.mode == "L" and header.bits == 8):
        return header.mode
    if header.mode in ("1", "L"):
        raise DataError(f"mask {path} is grey with {header.bits} bits; expected 8-bit grey or a palette PNG: "
                        "save it again with wsss.data.images.write_mask")
    raise DataError(f"mask {path} holds colours ({header.mode}), expected class numbers in a palette or 8-bit grey PNG: "
                    "look each colour up in your colour table and save the numbers with wsss.data.images.write_mask")


def read_numbers(path: str | Path, colours: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """The stored numbers of a mask in any lossless form: `(H, W)` uint8 or uint16 for a palette (its indices) and grey of 1 to 16
    bits, or in colour with three equal channels; else, and always with `colours`, the colours, `(H, W, 3)` uint8. The EXIF
    orientation is applied. `max_pixels`: as of `read_image`.

    Raises DataError, naming the file, if it is missing, damaged, larger, or lossy (JPEG, WebP).
    """
    header = read_header(Path(path), path)
    if header.format not in ("PNG", "TIFF", "BMP"):
        raise DataError(f"mask {path} is a {header.format} file, whose compression changes class numbers; expected a lossless "
                        "PNG: export the masks again as PNG")
    array = _decode(_content(Path(path)), path, lambda header: "RGB" if colours or header.mode in _COLOUR_MODES else header.mode,
                    max_pixels)
    if array.ndim == 3 and not colours:   # a writer of grey images in colour, or real colours
        array = array[..., 0] if (array == array[..., :1]).all() else array
    elif header.mode == "L" and header.bits < 8:   # Pillow stretches them to 0..255
        array = array // (255 // (2 ** header.bits - 1))
    if array.ndim == 2 and array.dtype not in (np.uint8, np.uint16):
        if array.dtype != bool and (array.min() < 0 or array.max() > _MAX_NUMBER):
            raise DataError(f"mask {path} holds values from {array.min()} to {array.max()}; expected whole numbers from 0 to "
                            f"{_MAX_NUMBER}: save the class numbers as an 8-bit PNG")
        array = array.astype(np.uint8 if array.dtype == bool else np.uint16)
    return np.ascontiguousarray(array)


def mask_classes(mask: np.ndarray, n_classes: int, path: Path) -> tuple[int, ...]:
    """The classes (0-based, ascending) on a mask (H, W) uint8. Raises DataError, naming its file, for invalid values."""
    values = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)).tolist()
    if wrong := [value for value in values if n_classes < value < IGNORE]:
        raise DataError(f"mask {path} holds the values {wrong[:MAX_REPORTED]}; expected 0 (background), "
                        f"1..{n_classes} (class) or 255 (ignore): correct the mask, or complete the classes")
    return tuple(value - 1 for value in values if 0 < value < IGNORE)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) as displayed, read from the header only. Raises DataError as `read_image`, for problems visible in the header."""
    return read_header(Path(path), Path(path)).size


def check_image(path: str | Path, levels: Levels | None = None, max_pixels: int | None = None) -> tuple[int, int]:
    """Check the header and the end marker of an image file and return its size (H, W). Damage in between is not detected.

    A file without an end marker is decoded completely. Raises DataError as `read_image`.
    """
    path = Path(path)
    header = read_header(path, path)
    _refuse_deep(header, path, levels)
    _refuse_huge(header, path, max_pixels)
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        end = PIXEL_END[header.format]
        complete = bool(end) and end in file.read()
    if not complete:
        read_image(path, levels, max_pixels)
    return header.size


def is_upright_jpeg(path: str | Path) -> bool:
    """Whether a file is a JPEG whose pixels are stored in the displayed orientation. Raises DataError as `image_size`."""
    header = read_header(Path(path), Path(path))
    return header.format == "JPEG" and header.orientation == 1


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode `image` (H, W, 3) uint8 RGB as a JPEG of quality 95 without chroma subsampling. Raises ArgumentError."""
    _check_array("image", image, 3)
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="JPEG", quality=95, subsampling=0)
    return content.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """Encode `mask` (H, W) uint8 as a PNG with the VOC palette; equal masks give equal bytes. Raises ArgumentError."""
    _check_array("mask", mask, 2)
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(VOC_PALETTE.tobytes())  # grey values become palette indices
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write `encode_mask(mask)`, completely or not at all. Raises ArgumentError for anything but (H, W) uint8."""
    write_bytes(path, encode_mask(mask))


def _check_array(name: str, array: np.ndarray, dimensions: int) -> None:
    shape = "(H, W)" if dimensions == 2 else "(H, W, 3)"
    good = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == dimensions and array.size > 0
    if not good or (dimensions == 3 and array.shape[2] != 3):
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ArgumentError(f"{name}: expected a uint8 array {shape}, got {found}")


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, rounded half to even as in official `imutils.pil_rescale`, but at least 1."""
    return max(1, int(np.round(size[0] * scale))), max(1, int(np.round(size[1] * scale)))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `image` (H, W, 3) uint8 to `size` (H, W) by Pillow's antialiased bicubic (official `imutils.pil_resize`)."""
    _check_array("image", image, 3)
    return _resize(image, size, Image.Resampling.BICUBIC)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize `mask` (H, W) uint8 to `size` (H, W) by Pillow's nearest neighbour (official `imutils.pil_resize`)."""
    _check_array("mask", mask, 2)
    return _resize(mask, size, Image.Resampling.NEAREST)


def _resize(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == tuple(size):
        return array
    return np.array(Image.fromarray(array).resize((size[1], size[0]), method))


@cache
def _normalised_bytes(normalisation: Normalisation) -> np.ndarray:
    """(3, 256): the normalised value of every byte per channel, computed in float64 and then rounded, as in official
    `TorchvisionNormalize`."""
    return ((np.arange(256)[:, None] / 255.0 - normalisation.mean) / normalisation.std).astype(np.float32).T.copy()


def normalise(image: np.ndarray, device: torch.device | str = "cpu", normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """`image` (H, W, 3) uint8 -> (3, H, W) float32 on `device`: (channel / 255 - mean) / standard deviation, with the same bits
    on every device."""
    import torch  # late, because reading files does not need it

    _check_array("image", image, 3)
    values = _normalised_bytes(normalisation)
    if torch.device(device).type != "cpu":
        return _looked_up(torch.from_numpy(np.ascontiguousarray(image)).to(device), values)   # sends a quarter of the bytes
    return torch.from_numpy(np.stack([row[plane] for row, plane in zip(values, image.transpose(2, 0, 1))]))


def _looked_up(image: torch.Tensor, values: np.ndarray) -> torch.Tensor:
    """`normalise` on the device of `image`."""
    import torch

    planes = image.permute(2, 0, 1).long() + 256 * torch.arange(3, device=image.device)[:, None, None]
    return torch.from_numpy(values).to(image.device).take(planes)
