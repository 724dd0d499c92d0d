"""The published scores of an experiment's paper and their differences from the measured ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.order import maker, scored_kind, titles
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
    images_of: dict[str, int] = field(default_factory=dict)   # kinds of another list than the others -> its number of images
    titles: dict[str, str] = field(default_factory=dict)      # kinds that another method made -> its title, as "Grad-CAM"

    def __post_init__(self) -> None:
        for key, images in {"images": self.images, **{f"images_of.{what}": n for what, n in self.images_of.items()}}.items():
            require(images >= 1, f"published.{key}", images, "at least 1")
        require(self.tolerance >= 0, "published.tolerance", self.tolerance, "at least 0")
        for place in ("images_of", "titles", "scores"):
            for what in getattr(self, place):
                require(what in titles(), f"published.{place}", what, _one_of(what, titles()))
        for what, scores in self.scores.items():
            for name, value in scores.items():
                require(name in measures(), f"published.scores.{what}", name, _one_of(name, measures()))
                require(0 <= value <= 100, f"published.scores.{what}.{name}", value, "percent, from 0 to 100")


def _one_of(name: str, known: Iterable[str]) -> str:
    return f"one of {', '.join(known)}{did_you_mean(name, known)}"


def averages_note(comparison: dict[str, Any] | None) -> str:
    """`AVERAGES` if the result of `against` has precision or recall, else ""."""
    return AVERAGES if any(row["score"] in ("precision", "recall") for row in (comparison or {}).get("rows", ())) else ""


def not_comparable(published: Published, kind: str, scores: Mapping[str, Any]) -> str:
    """Why the scores of a kind cannot be compared with the published ones: another list, or another result that has a title of
    its own, such as Grad-CAM instead of CAM, or another pretraining; "" if they can."""
    images, row = published.images_of.get(kind, published.images), maker(kind)
    if scores["images"] != images:
        return f"published scores are of {images:,} images, here {scores['images']:,} were scored"
    title = published.titles.get(kind, row.results[row.kinds[kind]])
    if scores["title"] != title and (kind in published.titles or scores["title"] != titles()[kind]):
        return f"the published score of {title} is not of {scores['title']}"
    return ""


def against(published: Published, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare the published and the measured scores (`measured`: kind -> scores in [0, 1]).

    Returns a JSON-able dict: source and tolerance; `rows`, in the order of the steps, each with `of`, `score`, `published`,
    `measured` and `difference` in percent, whether it is `within` the tolerance, and the `step` that made the result;
    `first_outside`: the first step with a row outside; `not_comparable`: why scores were not compared -> their titles.
    """
    rows: list[dict[str, Any]] = []
    refused: dict[str, list[str]] = {}
    for of, scores in measured.items():
        wanted = {score: value for score, value in published.scores.get(scored_kind(of), {}).items() if score in scores}
        if wanted and (why := not_comparable(published, scored_kind(of), scores)):
            refused.setdefault(why, []).append(scores["title"])
            continue
        for score, value in wanted.items():
            if scores.get(score) is None:
                continue
            difference = 100 * scores[score] - value
            rows.append({"of": of, "title": scores["title"], "step": maker(of).name, "score": score, "published": value,
                         "measured": round(100 * scores[score], 2), "difference": round(difference, 2),
                         "within": abs(difference) <= published.tolerance})
    return {"source": published.source, "tolerance": published.tolerance, "rows": rows,
            "first_outside": next((row["step"] for row in rows if not row["within"]), None), "not_comparable": refused}


def without_comparison(comparison: dict[str, Any] | None) -> list[str]:
    """A sentence for each reason why scores were not compared, in the result of `against`."""
    refused = (comparison or {}).get("not_comparable")   # in the summary of an older version a number
    return [f"{', '.join(names)}: {why}: no comparison" for why, names in refused.items()] if isinstance(refused, dict) else []
