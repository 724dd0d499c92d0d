"""Files that are either whole or absent."""

import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wsss.errors import StorageError

TEMPORARY_PREFIX = ".writing-"


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
    """Bytes free on the disk where `path` lies or will lie."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def are_plain_names(names: Iterable[str]) -> bool:
    """Whether all are relative file names with "/" that stay in their folder: not empty, no part "." or ".."."""
    joined = "/".join(("", *names, ""))
    return not ("//" in joined or "/./" in joined or "/../" in joined or "\0" in joined)   # a million names: no loop


@contextmanager
def replacing(path: Path | str, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is flushed to the disk and renamed to `path`.

    Without `flush` a loss of power may leave an empty file: for many small ones that can be had again.

    The temporary name starts with `.writing-` and ends in `.tmp`, so that nothing takes it for a result. When the block
    fails it is removed and whatever stood at `path` stays. The folder is made where there is none.

    Raises
    ------
    StorageError
        when the disk is full or the folder cannot be written.
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


def user_path(path: Path | str) -> Path:
    """`path` with a leading `~` or `~user` replaced; an unknown user stays as written, and so is named where it is missed."""
    return Path(os.path.expanduser(path))


def remove_temporary(folder: Path | str) -> None:
    """Remove the temporary files of writes that were killed, below a folder that nobody else writes to."""
    for name in file_sizes(folder):
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX) and name.endswith(".tmp"):
            Path(folder, name).unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def file_sizes(folder: Path | str) -> dict[str, int]:
    """Size in bytes of every file below `folder`, by its path relative to it with "/"; empty without the folder."""
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
