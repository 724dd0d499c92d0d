"""Masks that were corrected by hand (`Dataset.corrections`) are told apart in scores: they show the work of a person, and no step
made them."""

from collections.abc import Sequence
from typing import Any

from wsss.data.dataset import Dataset

_COUNT, _WITH = "corrected", "with_corrected"


def told_apart(dataset: Dataset, scored: Sequence[str], with_them: float | None) -> dict[str, Any]:
    """The values of a score about corrected masks: "images", those that were scored without one, and if there are others
    their number and the main measure with them, `with_them` in [0, 1]."""
    corrected = sum(image_id in dataset.corrections for image_id in scored)
    values: dict[str, Any] = {"images": len(scored) - corrected}
    if corrected:
        values |= {_COUNT: corrected, _WITH: "-" if with_them is None else f"{100 * with_them:.1f}"}
    return values


def columns_of(values: dict[str, Any], measure: str) -> dict[str, str]:
    """The columns of a score for what `told_apart` has added; `measure` is the heading of the main measure."""
    return {_COUNT: "corrected, not counted", _WITH: f"{measure} with them"} if _COUNT in values else {}
