"""The published scores of an experiment's paper and their differences from the measured ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.order import maker, titles
from pipeline.report.kinds import measures
from steps.runtime.context import require
from wsss.data.messages import did_you_mean

AVERAGES = ("precision and recall: the paper does not say how they are averaged over the classes; the measured ones are means "
            "over the classes without background")


@dataclass
class Published:
    """`published.`: set by the files in `conf/experiment/` that reproduce a paper."""

    source: str
    images: int                            # number of scored images; scores of other lists are not compared
    tolerance: float                       # allowed difference in percentage points; our choice, no paper gives one
    scores: dict[str, dict[str, float]]    # kind of result (`pipeline.order.titles`) -> measure of a step -> percent

    def __post_init__(self) -> None:
        require(self.images >= 1, "published.images", self.images, "at least 1")
        require(self.tolerance >= 0, "published.tolerance", self.tolerance, "at least 0")
        for what, scores in self.scores.items():
            require(what in titles(), "published.scores", what, _one_of(what, titles()))
            for name, value in scores.items():
                require(name in measures(), f"published.scores.{what}", name, _one_of(name, measures()))
                require(0 <= value <= 100, f"published.scores.{what}.{name}", value, "percent, from 0 to 100")


def _one_of(name: str, known: Iterable[str]) -> str:
    return f"one of {', '.join(known)}{did_you_mean(name, known)}"


def averages_note(comparison: dict[str, Any] | None) -> str:
    """`AVERAGES` if the result of `against` has precision or recall, else ""."""
    return AVERAGES if any(row["score"] in ("precision", "recall") for row in (comparison or {}).get("rows", ())) else ""


def against(published: Published, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the published and the measured scores (`measured`: kind -> scores in [0, 1]).

    Returns a JSON-able dict: source and tolerance; `rows`, in the order of the steps, each with `of`, `score`, `published`,
    `measured` and `difference` in percent, whether it is `within` the tolerance, and the `step` that made the result;
    `first_outside`: the first step with a row outside; `not_comparable`: the number of scored images if it differs.
    """
    rows, images = [], []
    for of, scores in measured.items():
        if of not in published.scores:
            continue
        if scores["images"] != published.images:
            images.append(scores["images"])
            continue
        for score, value in published.scores[of].items():
            if scores.get(score) is None:
                continue
            difference = 100 * scores[score] - value
            rows.append({"of": of, "title": scores["title"], "step": maker(of).name, "score": score, "published": value,
                         "measured": round(100 * scores[score], 2), "difference": round(difference, 2),
                         "within": abs(difference) <= published.tolerance})
    return {"source": published.source, "tolerance": published.tolerance, "images": published.images, "rows": rows,
            "first_outside": next((row["step"] for row in rows if not row["within"]), None),
            "not_comparable": max(images, default=None)}
