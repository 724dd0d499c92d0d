"""Files that are written completely or not at all."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wsss.errors import StorageError

TEMPORARY_PREFIX = ".writing-"
TEMPORARY = f"{TEMPORARY_PREFIX}*.tmp"   # the names of files that are being written
_required: list[Path] = []   # folders of `required`
_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def storage(path: Path | str) -> Iterator[None]:
    """Turn every OSError of a block that writes `path` into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror or error}; {free_bytes(path) / 2**20:.1f} MiB free). Make "
                           "room or make it writable, then the same command continues; or choose another place with "
                           "outputs=DIR") from error


@contextmanager
def required(folder: Path) -> Iterator[None]:
    """Inside the block nothing is written below `folder` if it does not exist: a folder whose disk is gone is not made again.

    Raises StorageError then, also at the end of the block.
    """
    _required.append(folder.absolute())
    try:
        yield
        require_folder(folder)
    finally:
        _required.remove(folder.absolute())


def require_folder(folder: Path) -> None:
    """Raise StorageError if a folder that was there is gone."""
    if not folder.is_dir():
        raise StorageError(f"{folder} does not exist any more. Was its disk disconnected, or the folder moved or deleted? Bring "
                           "it back, then the same command continues")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder and in all folders below it to the disk. The contents of the files are not flushed."""
    for place, _, _ in os.walk(folder):
        sync_names(place)


def sync_names(folder: Path | str) -> None:
    """Flush the names in a folder to the disk, so that a new or renamed file is still there after a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):   # some network disks cannot
            raise
    finally:
        os.close(number)


def free_bytes(path: Path | str) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if os.path.exists(place))).free


def are_plain_names(names: Iterable[str]) -> bool:
    """Whether all names are relative paths with "/" inside their folder: not empty, no part "." or "..", text that a file system
    can hold."""
    joined = "/".join(("", *names, ""))   # no loop: may be a million names
    return not ("//" in joined or "/./" in joined or "/../" in joined or "\0" in joined or _SURROGATE.search(joined))


@contextmanager
def replacing(path: Path | str, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; after the block, flush it to the disk and rename it to `path`.

    Without `flush` a power failure may leave an empty file; use this for many small files that can be recreated.

    The temporary name starts with `.writing-` and ends in `.tmp`, so that it is not mistaken for a result. If the block
    fails, the temporary file is removed and `path` is unchanged. A missing folder is created.

    Raises StorageError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    for folder in _required:
        if path.absolute().is_relative_to(folder):
            require_folder(folder)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{threading.get_ident()}-{path.name}"[:240] + ".tmp")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if flush:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def without_links(path: str, flags: int) -> int:
    """An `opener` of `open`, for files that are changed in place: a link is not followed, which raises OSError."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def refuse_links(folder: Path | str) -> None:
    """Raise StorageError if the folder of a step has a link to a folder, or one among its journals and packs: the step would
    write through it. Other links, also those to nothing, are replaced, never written through."""
    folder = str(folder)
    places = [folder, *(place for name in ("journals", "packs") if os.path.isdir(place := os.path.join(folder, name)))]
    for place in places:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and (os.path.exists if place != folder else os.path.isdir)(entry.path):
                    raise StorageError(f"{entry.path} is a link, through which a step would write into another folder. Replace "
                                       "it by what it refers to, then the same command continues")


def user_path(path: Path | str) -> Path:
    """`path` with a leading `~` or `~user` expanded; an unknown user is left as written, so that later errors name it."""
    return Path(os.path.expanduser(path))


def remove_temporary(folder: Path | str) -> None:
    """Remove the temporary files of killed writes below `folder`, which no other process may be writing to."""
    for name in file_sizes(folder):
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX) and name.endswith(".tmp"):
            Path(folder, name).unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, completely or not at all."""
    write_bytes(path, text.encode())


def file_sizes(folder: Path | str) -> dict[str, int]:
    """Size in bytes of every file below `folder` by its relative path with "/"; empty if there is no such folder.

    A link that leads to no file has the size -1.
    """
    sizes: dict[str, int] = {}
    open_folders = [("", str(folder))] if os.path.isdir(folder) else []
    while open_folders:
        prefix, path = open_folders.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    open_folders.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    try:
                        sizes[prefix + entry.name] = entry.stat().st_size
                    except OSError:   # a link to itself or to nothing, or just removed
                        sizes[prefix + entry.name] = -1
    return sizes


@contextmanager
def writing_folder(path: Path | str) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; after the block it is renamed to `path`, which must not exist or be empty.

    If the block fails, the temporary folder is removed and `path` is unchanged. Raises StorageError as `replacing`.
    """
    path = Path(path).absolute()
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"[:240] + ".tmp")
    with storage(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():
                path.rmdir()
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
