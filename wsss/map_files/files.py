"""Which files hold the maps of an image, and what their headers say."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from wsss.data.headers import DAMAGE
from wsss.errors import DataError
from wsss.files import file_sizes
from wsss.map_files.layout import ClassNames, Contents, Token
from wsss.reading import open_regular

SUFFIXES = (".npy", ".npz", ".png")
ENDS = 4096   # bytes at each end of a file that enter its digest
_MOST_KEYS = 100_000
KEYS = "keys"  # the array of the classes of the other arrays
_GREY = ("1", "L", "I;16", "I;16B", "I")


@dataclass(frozen=True)
class MapFile:
    """The file of an image, or of one of its classes (`token`)."""

    path: Path
    token: Token | None = None


def find_files(folder: Path, ids: Collection[str], names: ClassNames) -> dict[str, tuple[MapFile, ...]]:
    """The files of the images `ids` in a folder: `ID.npy`, `ID.npz`, `ID.png`, or a PNG for each class, `ID_CLASS.png`,
    `ID/CLASS.png` or `CLASS/ID.png`, where CLASS is one of `names`. The first of these forms counts. Images without a file are
    left out."""
    there, known = file_sizes(folder), set(ids)
    single = {i: (MapFile(folder / f"{i}{suffix}"),) for suffix in reversed(SUFFIXES) for i in known if f"{i}{suffix}" in there}
    of_class: dict[str, dict[Token, MapFile]] = {}
    for name in sorted(there):
        for image_id, token in _split(name) if name.endswith(".png") else ():
            if image_id in known and image_id not in single and token in names:
                of_class.setdefault(image_id, {})[token] = MapFile(folder / name, token)
                break
    found = {**single, **{image_id: tuple(files.values()) for image_id, files in of_class.items()}}
    return {image_id: found[image_id] for image_id in ids if image_id in found}


def _split(name: str) -> Iterable[tuple[str, str]]:
    """How the name of a PNG can be read as image id and class."""
    stem = name.removesuffix(".png")
    first, _, rest = stem.partition("/")
    head, _, last = stem.rpartition("/")
    if rest:
        yield from ((rest, first), (head, last))
    at = stem.rfind("_")
    while at > 0:
        yield stem[:at], stem[at + 1:]
        at = stem.rfind("_", 0, at)


def ends_of(path: Path) -> bytes:
    """The size of a file, and its first and last 4 KiB, for a digest. Raises DataError."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            parts = [f"{size}\n".encode()]
            for start in (0, max(0, size - ENDS)):
                file.seek(start)
                parts.append(file.read(ENDS))
            return b"".join(parts)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions, or remove it") from error


def headers(files: tuple[MapFile, ...], names: ClassNames) -> Contents | None:
    """The shapes of the arrays in the files of an image. None: they are known only when the file is read, because it holds a
    pickled dictionary. Raises DataError for a file that is damaged or of another kind."""
    path = files[0].path
    if path.suffix == ".png":
        return contents_of({file.token: png_shape(file.path) for file in files}, None, names)
    try:
        if path.suffix == ".npy":
            with open_regular(path) as file:
                shape, pickled = _npy_header(file)
            return None if pickled else Contents({None: shape})
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            shapes: dict[Any, tuple[int, ...]] = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    shapes[name.removesuffix(".npy")], pickled = _npy_header(member)
                    if pickled:
                        raise DataError(f"its array {name} is pickled; expected plain numbers: save it without objects")
            if KEYS not in shapes:
                return contents_of(shapes, None, names)
            if (number := math.prod(shapes.pop(KEYS))) > _MOST_KEYS:
                raise DataError(f"its array {KEYS} has {number:,} numbers; expected one for each class: write the file "
                                "again")
            with archive.open(f"{KEYS}.npy") as member:
                return contents_of(shapes, np.lib.format.read_array(member, allow_pickle=False), names)
    except DataError:
        raise
    except Exception as error:   # a damaged archive or header raises almost anything
        raise DataError(f"it is damaged or no {path.suffix} file ({error}); write it again, or remove it") from error


def contents_of(shapes: Mapping[Any, tuple[int, ...]], keys: np.ndarray | None, names: ClassNames) -> Contents:
    """The contents of a file from the shapes of its arrays and, if it has one, the array `keys`."""
    if keys is not None:
        return Contents(shapes, tuple(np.asarray(keys).ravel().tolist()))
    by_class = any(isinstance(name, (int, str)) and name in names for name in shapes)
    return Contents(shapes, kind="classes" if by_class else "arrays")


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool]:
    """The shape of an array, and whether it is pickled."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype.hasobject


def png_shape(path: Path) -> tuple[int, int]:
    """(H, W) of a grey PNG. Raises DataError for another image."""
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            if image.mode not in _GREY:
                raise DataError(f"{path.name} has the channels {image.mode}; expected a grey PNG of 8 or 16 bits, not a picture "
                                "in colours: write the maps themselves")
            return image.height, image.width
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path.name} is damaged or no PNG ({error}); write it again, or remove it") from error
