"""Human-readable text: tables with aligned columns, times and sizes."""

import csv
import io
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import quote

LONGEST_NAME = 120   # bytes of a `safe_names`; file systems allow 255 for a name with its other parts


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """One line per row, with cells padded to the width of their column; the columns `left` are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
            .rstrip() for row in rows]


def safe_names(names: Iterable[str]) -> list[str]:
    """Names as parts of file names: letters and digits of any language as they are, other characters percent-encoded ("a/b" is
    `a%2Fb`), shortened to `LONGEST_NAME` bytes. Of names that are equal but for case, Unicode form or their end, the later ones
    get a number, because some file systems do not tell them apart."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        encoded = "".join(character if character.isalnum() else quote(character, safe="") for character in name)
        encoded = encoded if encoded.strip(".") else encoded.replace(".", "%2E")   # not the folder, nor that above
        safe, number = encoded.encode()[:LONGEST_NAME].decode(errors="ignore"), 1
        short = safe
        while (key := unicodedata.normalize("NFKC", safe).casefold()) in taken:
            number += 1
            safe = f"{short}~{number}"
        taken.add(key)
        found.append(safe)
    return found


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a csv file to look at. A spreadsheet computes cells that begin with = + - or @, also of full width:
    text that does, such as the name of a class, gets an apostrophe before it; numbers stay. So does each part of a cell between
    ";", which separates cells in some languages."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_as_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def _as_text(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    return ";".join(map(_part_as_text, cell.split(";"))).replace("\r", " ")   # the writer does not quote it


def _part_as_text(part: str) -> str:
    if not unicodedata.normalize("NFKC", part[:1]).startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return part
    try:
        float(part)
    except ValueError:
        return f"'{part}"
    return part


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def mib(mb: float | None) -> str:
    """Format a size in MiB in a suitable unit; an empty string for None."""
    if mb is None:
        return ""
    if mb < 100:
        return f"{mb * 1024:.0f} kB" if mb < 1 else f"{mb:.1f} MB"
    return f"{mb:.0f} MB" if mb < 4096 else f"{mb / 1024:.1f} GB"


def in_cell(value: int | float | str) -> str:
    """A value in a table: text as it is, a number with separators of thousands."""
    return value if isinstance(value, str) else f"{value:,}"
