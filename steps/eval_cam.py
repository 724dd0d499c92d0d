"""Score each kind of maps against the masks at every threshold, and choose the thresholds on val masks.

Official file: `step/eval_cam.py`. Reads the maps and the masks; writes `scores.json` and `counts.npz` (the confusion
counts of each kind of map at all 101 thresholds).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from steps.parts.pieces import Adjustable, Curve, Line
from steps.parts.scored_maps import read_maps
from steps.parts.shown import ON_SCORED, ON_VAL, adjustable_maps, threshold_curve
from steps.parts.thresholds import SCORES, Chosen, by_rule, choose, count_maps, read_chosen
from steps.parts.tuning import CONFIDENT_NAMES, SCORE_NAMES, Tuned, Tuning, at, confident_curve, rows_of, scored, tuning_curve
from steps.runtime.artifacts import check_keys, read_arrays, read_json, write_arrays, write_json
from steps.runtime.context import StepContext, require
from steps.runtime.setup import val_with_masks
from steps.step import AS_MAIN, PER_MAP, SCORE, Lists, Needs, Score, Setup, StepSettings, facts
from wsss.errors import ConfigError
from wsss.metrics.semantic import MEASURES, THRESHOLDS, ThresholdCounts

VERSION = 1
KIND = SCORE
COUNTS = "counts.npz"


@dataclass
class Settings(StepSettings):
    """`eval_cam.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    threshold: dict[str, float | None] = field(metadata=PER_MAP)   # of the background; null: chosen on val masks, else `fallback`
    fallback: dict[str, float | None] = field(metadata=AS_MAIN)    # without val masks; null: by the separation rule

    def __post_init__(self) -> None:
        for key in ("threshold", "fallback"):
            for kind, value in getattr(self, key).items():
                require(value is None or 0 <= value <= 1, f"{self.step}.{key}.{kind}", value, "null or a number in [0, 1]")


def kinds(setup: Setup) -> list[str]:
    """The kinds of maps that are scored."""
    return [kind for source in setup.sources.get("maps", ()) for kind in source.kinds]


def lists(setup: Setup) -> Lists:
    scored = setup.ids_with_masks()
    if all(setup.settings.threshold[kind] is not None for kind in kinds(setup)):
        return {"scored": scored, "val": ()}
    val = val_with_masks(setup.dataset)
    setup.refuse_choosing_on_scored(setup.name, scored, val, "threshold")
    return {"scored": scored, "val": val}


def identity(setup: Setup) -> dict[str, Any]:
    """Only the thresholds of the kinds that are scored count."""
    found = facts(setup)
    own = {key: {kind: value[kind] for kind in kinds(setup)} if key in ("threshold", "fallback") else value
           for key, value in found[setup.name].items()}
    if setup.lists["val"]:
        del own["fallback"]
    return {setup.name: own}


def seen_by(name: str, identity: dict[str, Any], reader: Setup) -> dict[str, Any]:
    """Readers use the threshold that was chosen on val: a changed training mask or score does not make labels stale."""
    if "seeds" not in reader.sources:
        return identity
    own = identity[name]
    if reader.seeds not in own["threshold"]:
        raise ConfigError(f"{reader.name} reads the threshold of the maps of {reader.seeds}, but {name} scores those of "
                          f"{', '.join(own['threshold'])}. Choose one of these as seed_maps, or other steps")
    return {"version": identity["version"], "reads": identity["reads"].get(reader.seeds),
            **{key: values[reader.seeds] for key, values in own.items() if key in ("threshold", "fallback")},
            **{key: value for key, value in identity["data"].items() if key.endswith(" of val")}}


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate, number = Estimate(setup), len(kinds(setup))
    lists = [estimate.images(purpose, original=True) for purpose in ("scored", "val")]
    matrix = 8 * (len(setup.dataset.classes) + 1) ** 2   # int64
    counts = number * matrix * (len(THRESHOLDS) + 1) * sum(images.number > 0 for images in lists)
    return estimate.finish(counts + 4500 * number,   # the curve of a kind of maps in scores.json
                           estimate.on_host(counts),
                           max(images.most(42, 7) for images in lists))   # a map counted at all thresholds, measured


def run(context: StepContext) -> dict[str, Any]:
    kinds, settings = read_maps(context), context.settings
    scored, val = context.lists["scored"], context.lists["val"]
    total, chosen, scores, counts = len(kinds) * (len(scored) + len(val)), {}, {}, {}
    for number, (kind, maps) in enumerate(kinds.items()):
        before = number * total // len(kinds)
        setting, key = settings.threshold[kind], f"{context.name}.threshold.{kind}"
        grid = tuple(sorted({*THRESHOLDS, THRESHOLDS[0] if setting is None else round(setting, 4)}))
        val_counts = count_maps(context, maps, val, grid, before, total) if val else None
        chosen[kind] = choose(setting, key, val_counts, len(val), settings.fallback[kind],
                              partial(by_rule, context, maps, key))
        if val_counts:
            counts[f"{kind}_val"] = val_counts.counts
        if scored:
            scored_counts = count_maps(context, maps, scored, grid, before + len(val), total)
            scores[kind] = {**score(scored_counts, chosen[kind], len(scored)), "threshold_key": key}
            counts[kind] = scored_counts.counts
    if not context.runtime.group.is_main:
        return {}
    write_arrays(context.folder / COUNTS, **counts)
    write_json(context.folder / SCORES, {"chosen": {kind: choice.as_dict() for kind, choice in chosen.items()},
                                         "scores": scores})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    read_arrays(folder / COUNTS)
    check_keys(folder / SCORES, ("chosen", "scores"))


def scores(folder: Path) -> list[Score]:
    return [Score(kind, MEASURES, values) for kind, values in read_json(folder / SCORES)["scores"].items()]


def score(counts: ThresholdCounts, chosen: Chosen, n_images: int) -> dict[str, Any]:
    """The scores at the chosen threshold, and as an oracle the best threshold on the scored list."""
    best, best_scores = counts.best()
    confusion = counts.confusion(counts.nearest(chosen.threshold))
    return {**confusion.scores().as_dict(), "among_predfg_bg": confusion.among_predfg_bg(),
            "threshold": chosen.threshold, "threshold_source": chosen.source,
            "images": n_images,
            "oracle": None if best_scores.miou is None else {"threshold": best, "miou": best_scores.miou},
            "curve": {"threshold": [round(float(t), 4) for t in counts.thresholds], "miou": counts.miou_curve()}}


def tune(context: StepContext, tuning: Tuning) -> Tuned | None:
    """The best background threshold of each kind of maps; None without maps."""
    found = read_maps(context)
    if not found:
        return None
    tuning.require(found)
    result: dict[str, Any] = {}
    lines, words, names, rows = [], [], ("threshold", *SCORE_NAMES, *CONFIDENT_NAMES), []
    for number, (kind, maps) in enumerate(found.items()):
        counts = tuning.counts(context, maps, number, len(found))
        run = read_chosen(context.folder / SCORES, kind) if (context.folder / SCORES).exists() else None
        scored_kind = result[kind] = scored(counts, run)
        lines.append(f"  {kind}: background threshold {at(scored_kind['best'])}"
                     + (f"; the run has {at(scored_kind['run'])}" if run else ""))
        words.append(f"{context.name}.threshold.{kind}={scored_kind['best']['threshold']:g}")
        rows += rows_of({**scored_kind["curve"], **confident_curve(counts)}, names, kind)
    return Tuned(result, lines, words, {"thresholds.csv": [("maps", *names), *rows]}, [tuning_curve(result)])


def shown(context: StepContext) -> Iterator[Curve | Adjustable]:
    """The mIoU at every threshold on the scored images and, of the kinds that were counted on it, on val; each kind of maps, to
    try its threshold."""
    if not (context.folder / SCORES).exists():
        return
    content, lines = read_json(context.folder / SCORES), []
    for kind, values in content["scores"].items():
        curve = values["curve"]
        if values["oracle"]:   # else the masks hold no class
            marks = [(values["oracle"]["threshold"], False), (values["threshold"], True)]
            lines.append(Line(curve["threshold"], curve["miou"], kind=kind, marks=marks))
    yield from threshold_curve(ON_SCORED, lines)
    counts, lines = read_arrays(context.folder / COUNTS), []
    for kind, choice in content["chosen"].items():
        grid = content["scores"][kind]["curve"]["threshold"] if kind in content["scores"] else THRESHOLDS
        if (found := counts.get(f"{kind}_val")) is not None and found.shape[2] == len(grid) + 1:
            curve = ThresholdCounts(len(context.dataset.classes), grid, found).miou_curve()
            if None not in curve:   # the masks of val hold a class
                lines.append(Line(grid, curve, kind=kind, marks=[(choice["threshold"], True)]))
    yield from threshold_curve(ON_VAL, lines)
    for kind, maps in read_maps(context).items():
        if kind in content["chosen"]:
            in_use = content["chosen"][kind]["threshold"]
            yield adjustable_maps("", maps, {f"{context.name}.threshold.{kind}": in_use}, kind=kind)
