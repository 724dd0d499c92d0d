"""The published tables of papers, from `conf/published_*.yaml`, for reports and docs/published.md.

    python -m pipeline.report.tables > docs/published.md      writes that page
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.helptext import CONF
from pipeline.order import scored_kind, titles
from pipeline.report.kinds import measures
from steps.runtime.context import require
from wsss.errors import ConfigError

FILES = "published_*.yaml"
COMMAND = "python -m pipeline.report.tables > docs/published.md"


@dataclass
class Column:
    """`score` and `of`: the measured score and kind (`pipeline.report.published`); None: not measured, or set by the row."""

    name: str
    of: str | None = None
    score: str | None = None
    experiments: list[str] = field(default_factory=list)   # those of the row that measure it; empty: all


@dataclass
class Row:
    """`values`: percent, one per column; None: not published. `marks`: keys of the table's marks. `kinds`: the kind of a column
    -> that of this row."""

    name: str
    values: list[float | None]
    group: str | None = None
    of: str | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    experiments: list[str] = field(default_factory=list)   # that measure it
    marks: list[str] = field(default_factory=list)

    def kind(self, column: Column) -> str:
        """The kind that is measured in a cell of the row; "" if none."""
        of = column.of or self.of or ""
        return self.kinds.get(of, of)


@dataclass
class Table:
    """`number`: in the paper; None: not known. `marks`: footnotes of rows, key -> text. `notes`: remarks about the whole table.
    `percent`: whether the values are in percent. `decimals`: of the values as printed."""

    caption: str
    columns: list[Column]
    rows: list[Row]
    number: int | None = None
    marks: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    percent: bool = True
    decimals: int = 1

    def __post_init__(self) -> None:
        key = f"tables[{self.caption}]" if self.number is None else f"tables[number={self.number}]"
        for part in (*self.columns, *self.rows):
            require(part.of is None or part.of in titles(), f"{key}.{part.name}.of", part.of, f"one of {', '.join(titles())}")
        for column in self.columns:
            require(column.score is None or column.score in measures(), f"{key}.{column.name}.score", column.score,
                    f"one of {', '.join(measures())}")
        for row in self.rows:
            require({*row.kinds, *row.kinds.values()} <= {*titles()}, f"{key}.{row.name}.kinds", row.kinds,
                    f"keys and values of {', '.join(titles())}")
            require(len(row.values) == len(self.columns), f"{key}.{row.name}.values", row.values,
                    f"{len(self.columns)} values, one per column")
            require(all(value is None or 0 <= value <= (100 if self.percent else math.inf) for value in row.values),
                    f"{key}.{row.name}.values", row.values, "percent, from 0 to 100, or null")
            require(set(row.marks) <= set(self.marks), f"{key}.{row.name}.marks", row.marks,
                    f"keys of the table's marks ({', '.join(self.marks) or 'none'})")

    @property
    def experiments(self) -> list[str]:
        """The experiments that measure a cell."""
        return list(dict.fromkeys(name for row in self.rows for name in row.experiments))

    @property
    def title(self) -> str:
        return self.caption if self.number is None else f"Table {self.number}. {self.caption}"

    def cell(self, value: float | None) -> str:
        """A published value as text."""
        text = "–" if value is None else f"{value:.{self.decimals}f}"
        return text if value is None or float(text) == value else f"{value:g}"

    def note(self, row: Row) -> str:
        """The text of the footnotes of a row."""
        return "; ".join(self.marks[mark] for mark in row.marks)


@dataclass
class Paper:
    """The tables of one paper."""

    paper: str
    link: str
    tables: list[Table]


def load_papers(folder: Path = CONF) -> tuple[Paper, ...]:
    """The papers with tables in `folder`, sorted by file name.

    Raises ConfigError if a file cannot be read, or has an unknown key or an invalid value.
    """
    return tuple(_load(path) for path in sorted(folder.glob(FILES)))


def _load(path: Path) -> Paper:
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Paper), OmegaConf.load(path)))
    except (OSError, ValueError, OmegaConfBaseException) as error:
        why = " ".join(str(error).split(" full_key:")[0].split())
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{path} does not hold the tables of a paper ({f'{key}: ' if key else ''}{why}). It is part of the "
                          "repository: restore it, or correct the change") from error


def measured_cells(table: Table, experiment: str | None,
                   measured: Mapping[str, Mapping[str, Any]]) -> dict[tuple[int, int], float]:
    """The cells (row, column) of a table that an experiment reproduces, with the measured value in percent.

    `measured`: kind -> scores in [0, 1], those that can be compared (`pipeline.report.published.not_comparable`).
    """
    found = {}
    for i, row in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            if experiment not in row.experiments or column.experiments and experiment not in column.experiments:
                continue
            of = row.kind(column)
            value = next((scores[column.score] for key, scores in measured.items()
                          if scored_kind(key) == of and column.score in scores), None)
            if value is not None:
                found[i, j] = 100 * value
    return found


def markdown(papers: tuple[Paper, ...]) -> str:
    """The tables as a Markdown page."""
    lines = ["# Published scores", "", f"<!-- made by: {COMMAND} -->", "",
             "The tables of the papers that the experiments reproduce, as printed, in percent if not said otherwise; – is not "
             "published. The data is in `conf/published_*.yaml`. The [report](report.md) of such an experiment shows them with "
             "the measured scores; [recipes.md](recipes.md) describes how the two are compared."]
    for paper in papers:
        lines += ["", f"## {paper.paper.rpartition('(')[2].rstrip(')')}", "", f"[{paper.paper}]({paper.link})"]
        for table in paper.tables:
            lines += ["", f"### {table.title}", "", *_rows(table), "", *_below(table)]
    return "\n".join(lines).rstrip() + "\n"


def _rows(table: Table) -> list[str]:
    grouped, marked = any(row.group for row in table.rows), any(row.marks for row in table.rows)
    head = [*[""] * (1 + grouped), *(column.name for column in table.columns), *["note"] * marked]
    rows = [[*([row.group or ""] if grouped else []), row.name, *map(table.cell, row.values),
             *([table.note(row)] if marked else [])] for row in table.rows]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _below(table: Table) -> list[str]:
    experiments = ", ".join(f"`experiment={name}`" for name in table.experiments)
    return [" ".join([*table.notes, f"Measured by {experiments}." if experiments else
                      "Not measured here."])]


if __name__ == "__main__":
    print(markdown(load_papers()), end="")
