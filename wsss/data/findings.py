"""The report of preparing a data set: table rows of the same form for every kind of data set."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsss.text import aligned


@dataclass(frozen=True)
class Finding:
    """One line of the report: `found` and `expected` counts (None: any), and a note on what was made or is missing."""

    what: str
    found: int
    expected: int | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.expected is None or self.found == self.expected


def report_table(findings: Sequence[Finding]) -> str:
    """The findings as aligned lines: what, found, expected, "ok" or "!", note."""
    rows = [("", "found", "expected", "", "")]
    rows += [(finding.what, f"{finding.found:,}", "" if finding.expected is None else f"{finding.expected:,}",
              "ok" if finding.ok else "!", finding.note) for finding in findings]
    return "\n".join(aligned(rows, left=(0, 3, 4)))
