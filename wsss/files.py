"""Files that are either whole or absent."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is flushed to the disk and renamed to `path`.

    The temporary name starts with `.writing-` and ends in `.tmp`, so that nothing takes it for a result. When the block
    fails it is removed and whatever stood at `path` stays.
    """
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{threading.get_ident()}-{path.name}"[:240] + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path | str) -> None:
    """Remove the temporary files of writes that were killed, below a folder that nobody else writes to."""
    for path in Path(folder).rglob(f"{TEMPORARY_PREFIX}*.tmp"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())
