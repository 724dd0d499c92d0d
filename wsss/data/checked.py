"""A marker of the last successful check of a data set's files, and what was found in them, so that an unchanged data set is not
read again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from wsss.files import write_text
from wsss.reading import parse_json

_VERSION = 1   # increased when the checks of a data set become stricter


@contextmanager
def reading_wanted(check: bool | Path, root: Path, *files: Mapping[str, str]) -> Iterator[bool]:
    """Yield whether the `files` (id -> file below `root`) must be read and checked in the block.

    `check` is true, false or a marker file: with a marker they are read unless it matches their names, sizes and times (of
    modification and of status change, so that a reset modification time does not hide a change). After a block without an
    error the marker is written; if it cannot be written, the next call reads again.
    """
    if isinstance(check, bool):
        yield check
        return
    digest = _digest(root, files)
    wanted = digest is None or _read(check) != digest
    yield wanted
    if wanted and digest is not None:
        with suppress(OSError):   # also a home that cannot be entered
            write_text(check, digest)


def remembered(check: bool | Path, root: Path, files: Mapping[str, str], settings: str,
               read: Callable[[], dict[str, list[int]]], kind: str = "values") -> dict[str, list[int]]:
    """What `read` found in the `files` (id -> file below `root`; "" is none): kept beside the marker `check` until they change.

    `settings`: what else it depends on; `kind`: of what is found, which has a file of its own. Without a marker, or if nothing
    can be kept, it is read at each call.
    """
    if isinstance(check, bool):
        return read()
    digest = _digest(root, ({image_id: file for image_id, file in files.items() if file},))
    path, state = check.with_name(f"{check.name}.{kind}"), f"{digest} {settings}"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = parse_json(path.read_text())
        if kept["state"] == state and digest is not None and kept["values"].keys() == files.keys() and all(
                isinstance(found, list) and all(type(value) is int for value in found) for found in kept["values"].values()):
            return kept["values"]
    values = read()
    if digest is not None:
        with suppress(OSError):
            write_text(path, json.dumps({"state": state, "values": values}))
    return values


def _digest(root: Path, files: tuple[Mapping[str, str], ...]) -> str | None:
    """Digest of the state of all files, without reading them; None if one is missing."""
    digest = hashlib.blake2b(f"{_VERSION} {root.resolve()}".encode(), digest_size=16)
    try:
        for file in (file for part in files for file in part.values()):
            state = os.stat(os.path.join(root, file))
            digest.update(f"\n{file}\t{state.st_size}\t{state.st_mtime_ns}\t{state.st_ctime_ns}".encode())
    except OSError:
        return None
    return digest.hexdigest()


def _read(marker: Path) -> str | None:
    try:
        return marker.read_text()
    except (OSError, UnicodeDecodeError):
        return None
