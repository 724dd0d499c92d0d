"""The scores of a summary, by kind of result: the maps of a step, or its masks (`pipeline.order.titles`)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.order import STEPS, scored_kind, titles
from steps.parts.pieces import Kind, Table

N_TONES = 8   # colours and marks of kinds, `--k1` to `--k8` in the style sheet


def measured(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a summary by kind, in the order of the steps."""
    return summary.get("scores") or {}


def title_of(summary: Mapping[str, Any], kind: str) -> str:
    """The title of a kind of result: the one in the result of its step (`steps.step`: run), else that of `titles`."""
    kind = scored_kind(kind)
    result = summary.get("steps", {}).get(kind, {}).get("result") or {}
    return result.get("title", titles().get(kind, kind))


def with_titles(table: Table, summary: Mapping[str, Any]) -> Table:
    """The table with the titles of the kinds of results that it names (`Kind`)."""
    def shown(cells: Sequence[str]) -> list[str]:
        return [title_of(summary, cell) if isinstance(cell, Kind) else cell for cell in cells]
    return replace(table, heads=shown(table.heads), rows=[shown(row) for row in table.rows])


def of_runs(found: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """From the scores of several runs one of each kind, for its measures. Its title has those of all runs: "CAM / Grad-CAM"."""
    keys = dict.fromkeys(key for kind in titles() for scores in found for key in scores if scored_kind(key) == kind)
    by_kind = {key: [scores[key] for scores in found if key in scores] for key in keys}
    return {kind: {**scores[0], "title": " / ".join(dict.fromkeys(score["title"] for score in scores))}
            for kind, scores in by_kind.items() if scores}


def main_name(score: Mapping[str, Any]) -> str:
    """The name of the main measure of a score."""
    return next(iter(score["measures"]))


def main_measure(score: Mapping[str, Any]) -> float | None:
    """The value of the main measure of a score, in [0, 1]."""
    return score[main_name(score)]


def main_heading(score: Mapping[str, Any]) -> str:
    """The heading of the main measure of a score."""
    return score["measures"][main_name(score)]


def grouped(scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """The scores by kind, those with the same measures and columns together: one table each."""
    groups: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for kind, score in scores.items():
        groups.setdefault((*score["measures"].items(), None, *score["columns"].items()), {})[kind] = score
    return list(groups.values())


def with_first_measure(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The scores with the same main measure as the first: those that one figure can show."""
    first = next(iter(scores.values()), None)
    return {kind: score for kind, score in scores.items() if main_name(score) == main_name(first or score)}


def tones(found: Iterable[str]) -> dict[str, str]:
    """The names of the colours and marks, "k1" to "k8", of kinds that are shown together: by the position among all kinds. Those
    of further methods have what is left, from the last on. All scores of a kind have the same."""
    fixed, shown = list(titles(further=False)), {key: scored_kind(key) for key in found}
    named = {kind: f"k{1 + fixed.index(kind) % N_TONES}" for kind in shown.values() if kind in fixed}
    for kind in shown.values():
        taken = Counter(named.values())
        named.setdefault(kind, min((f"k{number}" for number in range(N_TONES, 0, -1)), key=lambda tone: taken[tone]))
    return {key: named[kind] for key, kind in shown.items()}


def measures() -> list[str]:
    """The names of everything that a step measures. Their headings are in the scores: two steps may have different ones."""
    return list(dict.fromkeys(name for row in STEPS for name in row.MEASURES))
