"""Unpacking of untrusted zip and tar archives: no file is written outside its folder, and none is replaced."""

import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

from wsss.data.messages import refuse
from wsss.errors import DataError, StorageError, WsssError
from wsss.files import are_plain_names, free_bytes, replacing, storage

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError, ValueError, LookupError,
           OSError, OverflowError, struct.error)   # RuntimeError: an encrypted zip, or a compression that is not known
_MOST_TIMES, _ALWAYS = 200, 2**30   # the files may have so many times the bytes of the archive, and always so many

Progress = Callable[[str, int, int, str], None]   # name, done, total, unit


class Member(NamedTuple):
    """A file in an archive."""

    name: str                     # in the archive
    size: int                     # bytes, unpacked
    is_plain: bool                # neither a link nor a device
    open: Callable[[], IO[bytes]]


class Unpacked(NamedTuple):
    """Result of `unpack`: number of files written, number of existing files, and those of them with another size."""

    made: int
    kept: int
    differing: tuple[str, ...]


def unpack(path: Path, into: Path, inside: str = "", only: Sequence[str] = (), progress: Progress | None = None) -> Unpacked:
    """Write the files below the folder `inside` of an archive to the same relative paths below `into`.

    `only`: files and folders to unpack (default: all). Each file is written completely or not at all, and existing files are
    kept, so an interrupted call can be repeated. The CRC-32 of each written file of a zip is checked.

    Raises DataError for a damaged archive or a member that is absolute, contains `..`, or is not a plain file or folder, in
    which case nothing is written; StorageError if there is not enough space.
    """
    with _opened(path) as members:
        _refuse_dangerous(path, members)
        wanted = {relative: member for member in members if (relative := _wanted(member.name, inside, only))}
        if not wanted:
            what = ", ".join(only) or "a file"
            raise DataError(f"{path} holds nothing of {what} below {inside or '.'}; expected the official archive: remove it and "
                            "fetch it again")
        missing = {name: member for name, member in wanted.items() if not os.path.lexists(into / name)}
        differing = tuple(name for name in wanted if name not in missing and not _has_size(into / name, wanted[name].size))
        size, packed = sum(member.size for member in missing.values()), path.stat().st_size
        if size > max(_ALWAYS, _MOST_TIMES * packed):
            raise DataError(f"{path} has {packed:,} bytes and would unpack to {size:,}; expected at most {_MOST_TIMES} times as "
                            "many: it is made to fill the disk, so nothing was unpacked. Remove it")
        require_room(into, size, f"unpack {path.name}")
        for number, (name, member) in enumerate(missing.items(), start=1):
            with member.open() as source, replacing(into / name, flush=False) as temporary, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target)
            if progress:
                progress(path.name, number, len(missing), "files unpacked")
    return Unpacked(len(missing), len(wanted) - len(missing), differing)


def require_room(folder: Path, size: int, purpose: str) -> None:
    """Raise StorageError if fewer than `size` bytes are free for `folder`, which need not exist."""
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = free_bytes(folder)
    if size > free:
        raise StorageError(f"{folder} has {free / 1e9:.1f} GB free; expected {size / 1e9:.1f} GB to {purpose}: make room, or "
                           "choose another disk with data.root=DIR")


@contextmanager
def _opened(path: Path) -> Iterator[list[Member]]:
    """Yield the files of an archive. Damage found while reading them in the block raises the same DataError."""
    try:
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                yield [Member(info.name, info.size, info.isreg(),
                              partial(tar.extractfile, info))  # type: ignore[arg-type]  # None if not plain, which is refused
                       for info in tar.getmembers() if not info.isdir()]
        else:
            with zipfile.ZipFile(path) as archive:
                yield [Member(info.filename, info.file_size, stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
                              partial(archive.open, info)) for info in archive.infolist() if not info.is_dir()]
    except WsssError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path} is damaged or not an archive ({error}); remove it and run the same command again") from error


def _refuse_dangerous(path: Path, members: Sequence[Member]) -> None:
    problems = []
    for member in members:
        path_anywhere = PureWindowsPath(member.name)   # splits POSIX paths too
        if path_anywhere.anchor or "\\" in member.name or not are_plain_names([str(PurePosixPath(member.name))]):
            problems.append(f"{member.name!r} would be written outside its folder")
        elif not member.is_plain:
            problems.append(f"{member.name!r} is a link or a device; expected a plain file")
    refuse(f"archive {path}, of which nothing was unpacked", problems)


def _wanted(name: str, inside: str, only: Sequence[str]) -> str | None:
    """The path of a member below `into`; None if it is not requested."""
    path, folder = PurePosixPath(name), PurePosixPath(inside)
    if not path.is_relative_to(folder):
        return None
    relative = path.relative_to(folder)
    return str(relative) if not only or any(relative.is_relative_to(part) for part in only) else None


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
