"""Human-readable text: tables with aligned columns, times and sizes."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """One line per row, with cells padded to the width of their column; the columns `left` are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
            .rstrip() for row in rows]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


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
