"""What the steps of a run show (`shown` in `steps.step`): collected, and drawn where it is no picture of an image."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from pipeline.report import figures
from pipeline.report.kinds import title_of, with_titles
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.pieces import Column, Curve, Matrix, Table
from wsss.errors import WsssError

CONFUSIONS = 12   # listed beside a matrix
T = TypeVar("T")
Pieces = list[tuple[str, Any]]   # (step, what it shows), in the order of the steps


def pieces(run: RecordedRun, missing: list[str]) -> Pieces:
    """What the steps show. If an artifact cannot be read, the rest of its step is left out, and `missing` gets the reason.

    A title of tables or matrices that several steps use gets the name of the step.
    """
    found: Pieces = []
    for planned in run.plan:
        try:
            for piece in planned.step.shown(run.context(planned.name)):
                found.append((planned.name, _named(piece, run.summary)))
        except WsssError as error:
            if run.place(planned.name):   # else the step is listed as missing
                missing.append(str(error))
    return _told_apart(found)


def _told_apart(found: Pieces) -> Pieces:
    # Curves of one title are drawn as one, and the traces name the step of a column themselves.
    users = defaultdict(set)
    for step, piece in found:
        if isinstance(piece, (Table, Matrix)):
            users[piece.title].add(step)
    return [(step, replace(piece, title=f"{piece.title} ({step})")
             if isinstance(piece, (Table, Matrix)) and len(users[piece.title]) > 1 else piece) for step, piece in found]


def _named(piece: Any, summary: Mapping[str, Any]) -> Any:
    """The piece with the titles of kinds of results: of lines without a name, in tables, and before the titles of columns."""
    if isinstance(piece, Curve):
        return replace(piece, lines=[replace(line, name=line.name or title_of(summary, line.kind)) if line.kind else line
                                     for line in piece.lines])
    if isinstance(piece, Column) and piece.kind:
        return replace(piece, title=f"{title_of(summary, piece.kind)}: {piece.title}")
    return with_titles(piece, summary) if isinstance(piece, Table) else piece


def of(found: Pieces, kind: type[T]) -> list[T]:
    """The pieces of one type."""
    return [piece for _, piece in found if isinstance(piece, kind)]


def section(found: Pieces, name: str, tones: Mapping[str, str]) -> dict[str, list[Any]]:
    """The figures and tables of a section of the page. `tones`: of kinds of results."""
    curves, tables = ([piece for piece in of(found, kind) if piece.section == name] for kind in (Curve, Table))
    return {"figures": [figures.plot(curve, tones) for curve in figures.merged(curves)], "tables": tables}


def matrices(found: Iterable[Matrix], names: list[str]) -> list[dict[str, Any]]:
    """Each matrix as a figure, and its largest entries off the diagonal as shares of the true pixels."""
    drawn = []
    for matrix in found:
        share = figures.row_shares(matrix.counts)
        np.fill_diagonal(share, 0)
        worst = np.argsort(-share, axis=None, kind="stable")[:CONFUSIONS]
        pairs = [(names[row], names[column], f"{100 * share[row, column]:.0f}") for row, column in
                 zip(*np.unravel_index(worst, share.shape)) if share[row, column] > 0]
        drawn.append({"figure": figures.confusion_matrix(matrix.counts, names, matrix.title, matrix.predicted), "pairs": pairs,
                      "title": matrix.title, "predicted": matrix.predicted, "wide": len(names) > 21})
    return drawn
