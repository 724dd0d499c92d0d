"""Ids of images, and the text files that list them."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wsss.data.headers import SUFFIXES
from wsss.data.messages import refuse
from wsss.errors import DataError
from wsss.reading import read_whole

_MAX_ID_BYTES = 200  # file systems allow 255 for a name; artifacts add a suffix
_MOST_BYTES, _MOST_LINES = 2**28, 10_000_000   # of a text file, which is read into memory


def check_id(image_id: str) -> str:
    """Return `image_id` in Unicode normal form C after checking that it is safe as the stem of a file name in a folder.

    Raises DataError for an empty id, '/' or '\\', a leading '.', blanks at the ends, control characters, or over 200 UTF-8 bytes.
    """
    image_id = unicodedata.normalize("NFC", image_id)
    reason = None
    if not image_id:
        reason = "is empty"
    elif "/" in image_id or "\\" in image_id:
        reason = "holds a path separator and would leave its folder"
    elif image_id.startswith("."):
        reason = "starts with a dot"
    elif not image_id.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in image_id):
        reason = "holds a control character or undecodable byte"
    elif image_id != image_id.strip():
        reason = "starts or ends with a blank"
    elif len(image_id.encode()) > _MAX_ID_BYTES:
        reason = f"is longer than {_MAX_ID_BYTES} bytes"
    if reason:
        raise DataError(f"id {image_id[:80]!r} {reason}; an id is a plain file name without its suffix: rename it")
    return image_id


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, or in UTF-16 with its byte order mark, as Excel writes it; in Unicode normal form C,
    without that mark, CRLF and blanks at the ends. Raises DataError for another file, and over 256 MiB or ten million lines."""
    try:
        content = read_whole(path, _MOST_BYTES)
        if (lines := content.count(b"\n")) > _MOST_LINES:
            raise DataError(f"{path} has {lines:,} lines; expected at most {_MOST_LINES:,}: is it the file that was meant?")
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a text file: check its name and "
                        "permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    return [unicodedata.normalize("NFC", line).strip() for line in text.split("\n")]


class Names:
    """The ids that people mean by a name: an id, or an image file with or without its folders and suffix."""

    def __init__(self, files: Mapping[str, str]) -> None:
        """`files`: id -> image file relative to the data set."""
        self.files = files
        self._by_path: dict[str, str | None] = {}   # the end of a path without suffix -> id; None: of several images

    def find(self, name: str) -> str | None:
        """The id, or None if there is no such image or several; the folders before the image's own may be others."""
        name = unicodedata.normalize("NFC", name).strip()
        if name in self.files:
            return name
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            return None
        if not self._by_path:
            self._index()
        stem, suffix = os.path.splitext(parts[-1])
        for last in dict.fromkeys((parts[-1], stem if suffix.lower() in SUFFIXES else parts[-1])):
            for first in range(len(parts)):
                path = "/".join([*parts[first:-1], last])
                if self._by_path.get(path, "") != "":
                    return self._by_path[path]
        return None

    def is_ambiguous(self, name: str) -> bool:
        """Whether a name that `find` does not know is the file name of several images."""
        return self._by_path.get(os.path.splitext(_file_name(name))[0], "") is None

    def _index(self) -> None:
        for image_id, file in self.files.items():
            parts = unicodedata.normalize("NFC", os.path.splitext(file)[0] or image_id).split("/")
            for first in range(len(parts)):
                path = "/".join(parts[first:])
                self._by_path[path] = image_id if self._by_path.get(path, image_id) == image_id else None


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def without_image(name: str, names: Names) -> str:
    """Explain why `names.find(name)` is None: the name is not valid, of several images, or of none."""
    if names.is_ambiguous(name):
        return f"{name!r} is the name of several images; write its folder too, as in {next(iter(names.files.values()))}"
    try:
        check_id(name if ".." in name else _file_name(name) or name)
    except DataError as error:
        return str(error)
    return f"{name!r} has no image; add the image or remove the line"


def read_list(path: Path, known: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of a text file with one id per line, in file order; a path and a suffix are left out, empty lines are skipped.

    Raises DataError for an empty list, duplicates, and ids that are not in `known` (id -> image file).
    """
    ids = [line for line in read_lines(path) if line]
    if not ids:
        raise DataError(f"list {path} is empty; expected one id per line: add ids, or remove the file")
    problems, seen, names = [], set(), Names(known)
    for line in ids:
        image_id = names.find(line)
        if image_id is None:
            problems.append(without_image(line, names))
        elif image_id in seen:
            problems.append(f"{line!r} is listed twice; keep one line")
        seen.add(image_id)
    refuse(f"list {path}", problems)
    return tuple(image_id for line in ids if (image_id := names.find(line)) is not None)


def union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The distinct ids of all lists, in order."""
    return tuple(dict.fromkeys(image_id for ids in lists for image_id in ids))


def smallest_hashes(ids: Iterable[str], most: int) -> list[str]:
    """The `most` ids with the smallest hashes: a sample that depends on no seed and on no order."""
    return sorted(ids, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())[:most]
