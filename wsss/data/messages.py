"""Helpers for error messages about data: several problems in one error, sizes, suggestions, contents of a folder."""

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from wsss.errors import DataError

MAX_REPORTED = 10
_COMPARED, _LONGEST = 20_000, 200   # names that are looked at for a suggestion, and characters of one: a second at most


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of `known`, or an empty string."""
    if len(name) > _LONGEST:
        return ""
    nearest = difflib.get_close_matches(name, (other for other in islice(known, _COMPARED) if len(other) <= _LONGEST), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def format_size(size: tuple[int, int]) -> str:
    """(H, W) in words for a message, because sizes are written in both orders."""
    return f"{size[0]} high and {size[1]} wide"


def refuse(where: str, problems: Sequence[str]) -> None:
    """Raise one DataError for all `problems`, listing the first 10, or do nothing if there is none."""
    if not problems:
        return
    shown = list(problems[:MAX_REPORTED])
    if len(problems) > MAX_REPORTED:
        shown.append(f"... and {len(problems) - MAX_REPORTED} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError("\n  - ".join([f"{where}: {count}", *shown]))


def contents(folder: Path) -> str:
    """The contents of a folder for a message: the first eight names, or "nothing". Raises DataError if it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}; expected a data set: check its name and "
                        "permissions") from error
    return ", ".join(names[:8] + ["..."] * (len(names) > 8)) or "nothing"
