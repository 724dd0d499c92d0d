"""Files that are written completely or not at all."""

import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wsss.errors import StorageError

TEMPORARY_PREFIX = ".writing-"
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
    write through it. Other links are replaced, never written through."""
    folder = str(folder)
    places = [folder, *(place for name in ("journals", "packs") if os.path.isdir(place := os.path.join(folder, name)))]
    for place in places:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and (place != folder or entry.is_dir()):
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
    """Size in bytes of every file below `folder` by its relative path with "/"; empty if there is no such folder."""
    sizes: dict[str, int] = {}
    open_folders = [("", str(folder))] if os.path.isdir(folder) else []
    while open_folders:
        prefix, path = open_folders.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    open_folders.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    sizes[prefix + entry.name] = entry.stat().st_size
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
