"""Packs: the files of many images in one tar, `packs/I-of-N.tar` in a step's folder, for fewer files on disk.

A pack is an uncompressed tar that any tool can unpack. The steps never scan it, because the journal line of an image has
the byte at which each of its files begins. Recorded bytes never change: one process appends after the last byte in its
journal, and truncates what a killed process left there. An image that is made again gets new bytes and a new line; its
old bytes stay until the whole step is made again.
"""

import io
import os
import stat
import tarfile
import time
import weakref
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from wsss.errors import ArtifactError
from wsss.files import file_sizes, storage, without_links

PACKS = "packs"
DAMAGED = ".damaged"   # suffix of a file that was renamed because it is damaged
SYNC_EVERY = 1.0       # seconds between two flushes of a pack to the disk
MOST_OPEN = 256        # files that a reader keeps open
_BLOCK, _END = tarfile.BLOCKSIZE, bytes(2 * tarfile.BLOCKSIZE)


class Pack:
    """A pack that this process appends to, from byte `end`; 0: a new pack. Raises StorageError if it cannot be written."""

    def __init__(self, folder: Path, name: str, end: int = 0):
        self.name, self.end, self._path = name, end, folder / name
        with storage(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not end:   # an existing file may be a hard link to a pack of another run
                discard(self._path)
            self._file = open(self._path, "r+b" if end else "xb", buffering=0, opener=without_links)
            self._file.truncate(end)
        self._synced = time.monotonic()

    def add(self, name: str, content: bytes) -> int:
        """Append a file and return the byte at which its content begins. A killed process does not lose it."""
        head = tarfile.TarInfo(name)   # without time and owner, so that equal contents have equal bytes
        head.size = len(content)
        header = head.tobuf(tarfile.PAX_FORMAT)
        with storage(self._path):
            self._file.seek(self.end)
            _write(self._file, header + content + bytes(-len(content) % _BLOCK))
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        begin = self.end + len(header)
        self.end = _padded(begin + len(content))
        return begin

    def close(self) -> None:
        """Complete the tar and flush it to disk."""
        with storage(self._path), self._file:
            _finish(self._file, self.end)


def close_pack(path: Path, end: int) -> None:
    """Complete a tar whose process was killed: truncate it after its last file. A pack shared with other runs is not changed."""
    if is_own(path, end) and path.stat().st_size != end + len(_END):
        with storage(path), open(path, "r+b", buffering=0, opener=without_links) as file:
            _finish(file, end)


def is_own(path: Path, end: int) -> bool:
    """Whether a pack may be appended to: it has the `end` bytes of the journal, and no other run has a hard link to it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size >= end and found.st_nlink == 1


def set_aside(path: Path) -> Path | None:
    """Rename what stands in the place of a file but is none: a folder, a link to itself or to nothing. It is never deleted.

    Returns its new path; None if there is a file or nothing. Raises OSError.
    """
    if not os.path.lexists(path) or path.is_file():
        return None
    target, number = path.with_name(path.name + DAMAGED), 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}-{number}{DAMAGED}")
    os.rename(path, target)
    return target


def discard(path: Path) -> None:
    """Remove a file; what is none is set aside. Raises OSError."""
    set_aside(path)
    path.unlink(missing_ok=True)


def remove_damaged(folder: Path, name: str) -> None:
    """Remove the damaged file of an image that was renamed, or copied from a pack."""
    for place in (folder / (name + DAMAGED), folder / PACKS / (name + DAMAGED)):
        if place.is_file():
            place.unlink()


def free_name(name: str, used: Collection[str]) -> str:
    """The `name` of a pack, with a number if it is in use."""
    stem, number = name.removesuffix(".tar"), 1
    while name in used:
        number += 1
        name = f"{stem}-{number}.tar"
    return name


def pack_end(line: dict) -> int:
    """The byte at which the next file may begin, after the files of a journal line."""
    return _padded(max((begin + size for size, _, begin in line["files"].values()), default=0))


def _padded(position: int) -> int:
    return -(-position // _BLOCK) * _BLOCK


def _finish(file: io.FileIO, end: int) -> None:
    file.truncate(end)
    file.seek(end)
    _write(file, _END)
    os.fsync(file.fileno())


def _write(file: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest):]


class Sizes:
    """Checks of the packed files of a step's folder without reading them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._ends: dict[str, int] = {}
        self._damaged = {name.removesuffix(DAMAGED) for name in file_sizes(folder / PACKS) if name.endswith(DAMAGED)}

    def hold(self, line: dict) -> bool:
        """Whether the pack of a journal line is long enough for its files, and none of them is known to be damaged."""
        pack, files = line["pack"], line["files"]
        for size, _, begin in files.values():
            if begin + size > self._ends.get(pack, -1):   # a new pack, or one that has grown
                found = os.stat(f"{self.folder}/{pack}")
                self._ends[pack] = found.st_size if stat.S_ISREG(found.st_mode) else -1
                if begin + size > self._ends[pack]:
                    return False
        return not self._damaged or self._damaged.isdisjoint(files)


@dataclass(frozen=True)
class Member:
    """A file in a pack. It can replace a `Path` that is only read."""

    folder: Path       # of the step
    name: str          # of the file, with layout=files
    pack: str
    recorded: tuple[int, int, int]   # size, CRC-32, first byte
    packs: "OpenFiles"

    def __str__(self) -> str:
        return f"{self.folder / self.name} (in {self.pack})"

    @property
    def parent(self) -> Path:
        return (self.folder / self.name).parent

    def exists(self) -> bool:
        return (self.folder / self.pack).exists()

    def read_bytes(self) -> bytes:
        """Raises ArtifactError if the bytes are not those that were written, for example after a loss of power."""
        content, (size, checksum, _) = self.raw(), self.recorded
        found = [len(content), zlib.crc32(content)]
        if found != [size, checksum]:
            raise ArtifactError(f"{self} is not what was written: size and checksum are {found}, not {[size, checksum]}. Run its "
                                "step again: only this image is made", damaged=self)
        return content

    def raw(self) -> bytes:
        """The bytes, not checked. Raises OSError."""
        size, _, begin = self.recorded
        return self.packs.read(self.pack, begin, size)

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self.read_bytes())

    @property
    def damaged_name(self) -> Path:
        """The path for a copy if it is damaged; while the copy exists, the image is broken."""
        return self.folder / PACKS / (self.name + DAMAGED)


class OpenFiles:
    """Packs and journals of a step's folder, open for reading, also from several threads; each is opened once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, int] = {}

    def of(self, line: dict, name: str) -> Path | Member:
        """The file `name` of an image, by its journal line: a path, or a member of a pack."""
        if "pack" in line and name in line["files"]:
            return Member(self.folder, name, line["pack"], tuple(line["files"][name]), self)
        return self.folder / name

    def read(self, name: str, begin: int, size: int) -> bytes:
        """Read `size` bytes of the file `name`, fewer at its end. Raises OSError."""
        number = self._open.get(name)
        if number is None:
            number = os.open(self.folder / name, os.O_RDONLY)
            if len(self._open) >= MOST_OPEN:
                try:
                    return os.pread(number, size, begin)
                finally:
                    os.close(number)
            self._open[name] = number
            weakref.finalize(self, os.close, number)
        return os.pread(number, size, begin)
