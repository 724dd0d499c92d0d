"""Ids of images, and the text files that list them."""

import hashlib
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from wsss.data.messages import refuse
from wsss.errors import DataError

_MAX_ID_BYTES = 200  # file systems allow 255 for a name; artifacts add a suffix


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
    """The lines of a UTF-8 text file in Unicode normal form C, without byte order mark, CRLF and blanks at the ends."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a text file: check its name and "
                        "permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    return [unicodedata.normalize("NFC", line).strip() for line in text.split("\n")]


def read_list(path: Path, known: Mapping[str, str]) -> tuple[str, ...]:
    """The ids of a text file with one id per line, in file order; empty lines are skipped.

    Raises DataError for an empty list, duplicates, and ids that are not in `known` (id -> image file).
    """
    ids = [line for line in read_lines(path) if line]
    if not ids:
        raise DataError(f"list {path} is empty; expected one id per line: add ids, or remove the file")
    problems, seen = [], set()
    for image_id in ids:
        if image_id in seen:
            problems.append(f"{image_id!r} is listed twice; keep one line")
        elif image_id not in known:
            problems.append(without_image(image_id, known))
        seen.add(image_id)
    refuse(f"list {path}", problems)
    return tuple(ids)


def without_image(image_id: str, known: Container[str]) -> str:
    """Explain why an id has no image: it is not a valid id, it has a suffix, or there is no such image."""
    try:
        check_id(image_id)
    except DataError as error:
        return str(error)
    stem = image_id.rpartition(".")[0]
    if stem in known:
        return f"{image_id!r} has no image; write {stem!r}, without the suffix"
    return f"{image_id!r} has no image; add the image or remove the line"


def union(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The distinct ids of all lists, in order."""
    return tuple(dict.fromkeys(image_id for ids in lists for image_id in ids))


def smallest_hashes(ids: Iterable[str], most: int) -> list[str]:
    """The `most` ids with the smallest hashes: a sample that depends on no seed and on no order."""
    return sorted(ids, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())[:most]
