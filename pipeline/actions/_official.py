"""What the import from and the export to the official code share."""

from collections.abc import Iterable

from pipeline.order import Row
from wsss.errors import ConfigError


def refuse_same_files(rows: Iterable[Row]) -> None:
    """Raise ConfigError if two of the steps have the same official files: only one of them can be in a folder."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.setdefault(row.OFFICIAL.name, row)
        if other is not row:
            raise ConfigError(f"{other.name} and {row.name} have the same official files, {row.OFFICIAL.name}. Choose one with "
                              f"{other.flag}=true or {row.flag}=true, or leave one out with {row.flag}=false")
