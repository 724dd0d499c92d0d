"""Reading of a `.pth` or `.pt` of torch, unless it asks for more memory than it has bytes."""

import pickletools
import zipfile
from typing import Any, BinaryIO

import torch

from wsss.errors import WeightsError

_PICKLES = 5   # at the beginning of a file of the form before torch 1.6


def load(file: BinaryIO, where: object) -> Any:
    """`torch.load` of an open file, on the CPU, with `weights_only`.

    Raises WeightsError, which calls the file `where`, if it has compressed parts, which torch never writes, or arrays of more
    bytes than the file, and what torch raises for other damage.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if zipfile.is_zipfile(file):
        _check_zip(file, where, size)
    else:
        file.seek(0)
        bounded = _Bounded(file, size)
        for _ in range(_PICKLES):
            _check_pickle(bounded, where, size)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _check_zip(file: BinaryIO, where: object, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(info.file_size for info in infos) > size:
            raise WeightsError(f"{where} has compressed parts, which fill the memory when they are read; expected a file as "
                               "torch.save writes it: make it again")
        for info in infos:
            if info.filename.endswith("data.pkl"):
                with archive.open(info) as member:
                    _check_pickle(member, where, size)


class _Bounded:
    """A file that allocates no more than it has."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size, self.readline, self.tell = file, size, file.readline, file.tell

    def read(self, number: int) -> bytes:
        return self.file.read(min(number, self.size))


def _check_pickle(file: Any, where: object, size: int) -> None:
    """Raise WeightsError if a pickle has an array of more numbers than the file has bytes, ValueError if it is none."""
    last = 0
    for operation, value, _ in pickletools.genops(file):
        if "PERSID" in operation.name and last > size:   # a storage: its type, key, device and number of elements
            raise WeightsError(f"{where} has an array of {last:,} numbers, but {size:,} bytes; expected a complete file: copy it "
                               "again")
        if isinstance(value, int) and operation.name not in _MEMO:
            last = value


_MEMO = {"PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "PROTO", "FRAME"}
