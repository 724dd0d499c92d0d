"""Files that anyone may have made: whole files, JSON, YAML and NumPy arrays, read in time and memory that their size bounds.

All raise OSError if a file cannot be read, and a ValueError, of which DataError is one, if it does not hold what it should.
"""

import io
import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import yaml

from wsss.errors import DataError

MOST_YAML = 2**19     # bytes; PyYAML reads 0.2 MB in a second
MOST_ARRAYS = 2**32   # bytes of the arrays of an .npz
MOST_HEADER = 10_000  # bytes of the header of an array; NumPy: max_header_size


def open_regular(path: Path | str) -> BinaryIO:
    """Open a regular file to read. Raises DataError for a device or a pipe, which may have no end."""
    file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))   # a pipe waits for its writer
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"{path} is a pipe or a device; expected a file: remove it, or correct the name")
    return file


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a file below a folder to read. What was opened is looked at, so a link that is exchanged meanwhile leads nowhere else.

    Raises DataError if a link leads out of the folder (the folder itself may be one), OSError if there is no such file.
    """
    file = open_regular(folder / name)
    opened = f"/proc/self/fd/{file.fileno()}"
    place = os.path.realpath(opened if os.path.exists(opened) else folder / name)   # without /proc: as it is now
    if not Path(place).is_relative_to(os.path.realpath(folder)):
        file.close()
        raise DataError(f"{folder / name} is a link out of {folder}; expected a file of its own: replace the link by what it "
                        "refers to")
    return file


def read_whole(path: Path | str, most: int | None = None) -> bytes:
    """The bytes of a regular file, at most `most`. Raises DataError for a larger one."""
    with open_regular(path) as file:
        if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
            raise DataError(f"{path} has {size:,} bytes; expected at most {most:,}: is it the file that was meant?")
        return file.read()


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError("its brackets are nested too deeply; expected a file as a program writes it") from error


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them stand for more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise DataError("it refers to another place of the file by *NAME; expected the value itself: write it there")
        return super().compose_node(parent, index)


def read_yaml(path: Path | str) -> Any:
    """The value of a YAML file, of plain values alone."""
    content = read_whole(path, MOST_YAML)
    try:
        return yaml.load(content, Loader=_Loader)   # a SafeLoader
    except ValueError:
        raise
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError, AttributeError, LookupError) as error:
        raise DataError(f"it is no YAML of plain values ({type(error).__name__}: {str(error)[:200]})") from error


def read_npy(file: IO[bytes]) -> np.ndarray:
    """The array of an open `.npy`, of plain numbers. Nothing is allocated for a header that promises more than follows."""
    start = file.tell()
    left = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    _, size = npy_header(file)
    if file.tell() - start + size > left:
        raise DataError(f"the header of an array promises {size:,} bytes, but the file has {left:,}")
    file.seek(start)
    return np.lib.format.read_array(file, allow_pickle=False)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """The shape and the bytes of the array whose header is read from `file`."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    field = file.read(2 if version == (1, 0) else 4)
    if (length := int.from_bytes(field, "little")) > MOST_HEADER:   # NumPy would make room for it before it reads
        raise DataError(f"the header of an array has {length:,} bytes; expected at most {MOST_HEADER:,}")
    try:
        shape, _, dtype = read(io.BytesIO(field + file.read(length)))
    except (MemoryError, RecursionError):   # of Python's parser
        raise DataError("the header of an array has brackets that are nested too deeply; expected it as NumPy writes "
                        "it") from None
    if dtype.hasobject:
        raise DataError("an array is pickled; expected plain numbers: save it without objects")
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise DataError(f"the header of an array says {shape} {dtype}; expected an array of numbers")
    return shape, dtype.itemsize * math.prod(shape)


def read_npz(file: Path | IO[bytes], most: int = MOST_ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name, which have at most `most` bytes together."""
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if (size := sum(info.file_size for info in infos)) > most:
            raise DataError(f"the arrays of an archive have {size:,} bytes; expected at most {most:,}")
        arrays = {}
        for info in infos:
            with archive.open(info) as member:
                _, promised = npy_header(member)
                if member.tell() + promised != info.file_size:
                    raise DataError(f"the header of the array {info.filename} promises {promised:,} bytes; the archive has "
                                    f"{info.file_size:,}")
                member.seek(0)
                arrays[info.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays
