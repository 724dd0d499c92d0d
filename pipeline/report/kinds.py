"""The scores of a summary, by kind of result: the maps of a step, or its masks (`pipeline.order.titles`)."""

from collections.abc import Mapping
from typing import Any

from pipeline.order import STEPS, titles

TITLES = titles()   # TODO


def measured(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a summary by kind, in the order of the steps."""
    return summary.get("scores") or {}


def main_measure(score: Mapping[str, Any]) -> float | None:
    """The value of the first measure of a score, in [0, 1]."""
    return score[next(iter(score["measures"]))]


def measures() -> dict[str, str]:
    """The headings of everything that a step measures, by name."""
    return {name: heading for row in STEPS for name, heading in row.MEASURES.items()}
