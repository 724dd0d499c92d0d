"""Headers of image files: format, channels, size as displayed. Pixels are not decoded."""

from __future__ import annotations

import io
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from wsss.errors import DataError
from wsss.reading import open_regular

# What Pillow raises on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
          struct.error, zlib.error, Image.DecompressionBombError)
#: The formats that are read, and the bytes at the end of a complete file; empty: only decoding tells.
PIXEL_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "WEBP": b"", "TIFF": b"", "BMP": b""}
FORMATS = "JPEG, PNG, WebP, TIFF or BMP"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_BITS_PER_SAMPLE = 258  # TIFF tag
_lock = threading.Lock()


class Header(NamedTuple):
    """The header of an image file."""

    format: str  # a key of PIXEL_END
    mode: str  # Pillow's name for the channels
    size: tuple[int, int]  # (H, W) as displayed
    bits: int  # per channel or palette index
    orientation: int  # EXIF, 1..8


@contextmanager
def without_limit() -> Iterator[None]:
    """Lift Pillow's limit of pixels in the block, in one thread at a time: the limit is a global of Pillow."""
    with _lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pillow_limit() -> int:
    """The number of pixels above which Pillow refuses an image, as it may be made to fill the memory."""
    with _lock:   # else another thread may have lifted it
        return 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)


def read_header(source: Path | io.BytesIO, path: object) -> Header:
    """The header of `source`, which errors call `path`. A size above Pillow's limit is not refused here."""
    try:
        with nullcontext(source) if isinstance(source, io.BytesIO) else open_regular(source) as file:
            header = _header(file)
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}; expected a {FORMATS} file: restore it, or remove its id") from error
    except DAMAGE as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"   # it names an object in memory
        raise DataError(f"{path} is damaged or not a {FORMATS} image{why}; restore or remove it") from error
    if header.format not in PIXEL_END:
        raise DataError(f"{path} is a {header.format} file; expected {FORMATS}: convert it")
    return header


def _header(file: IO[bytes]) -> Header:
    with without_limit():
        opened = Image.open(file)
    with opened as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # a phone's JPEG with additional pictures
        mode, (width, height) = image.mode, image.size
        orientation = exif_orientation(image)
        bits = _bits(image, kind)
    return Header(kind, mode, (width, height) if orientation >= 5 else (height, width), bits, orientation)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 if the block is unreadable, because the pixels may still be valid."""
    if "exif" not in image.info:  # getexif would decode a PNG
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1
    return value if value in range(1, 9) else 1


def _bits(image: Any, kind: str) -> int:
    """Bits per channel. The mode does not tell: Pillow silently truncates 16-bit colour to 8 bits and scales grey of 2 or 4."""
    if kind == "PNG":
        image.fp.seek(24)
        return image.fp.read(1)[0]
    if kind == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return 1 if image.mode == "1" else 8


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """The stored array as displayed: orientations 5..8 are the first four of the transposed array (EXIF 2.3, tag 0x0112)."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return array[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
