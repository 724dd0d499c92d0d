"""Scores over thresholds and settings of the walk on the stored maps of a finished run, to choose both: the function `tune` of a
step, and what these functions share.

They write no artifact of a step. The maps are read from the run; the walks are computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.pieces import Curve, Line
from steps.parts.thresholds import THRESHOLD, confident_pair, count_maps, read_chosen
from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext, require
from wsss.data.dataset import Dataset
from wsss.data.folder import held_out
from wsss.errors import ConfigError, DataError
from wsss.metrics.semantic import ThresholdCounts
from wsss.refiners.method import RefinerMethod

if TYPE_CHECKING:
    from pathlib import Path

SCORE_NAMES = ("miou", "fp", "fn", "precision", "recall")
CONFIDENT_NAMES = ("fg_right", "fg_share", "bg_right", "bg_share")


@dataclass
class TuneSettings:
    """`tune.`: the values are in `conf/config.yaml`."""

    split: str                   # the list (or file) whose masks are used
    held_out: float | None       # only this share of it, drawn by a hash of the id
    confidence: float            # share of the pixels labelled by each threshold of the confident pair that must be right
    beta: list[float]            # exponents to try, in addition to those of the run
    exp_times: list[int]

    def __post_init__(self) -> None:
        require(self.held_out is None or 0 < self.held_out < 1, "tune.held_out", self.held_out,
                "null or a share above 0 and below 1")
        require(0 < self.confidence < 1, "tune.confidence", self.confidence, "a share above 0 and below 1")
        require(all(beta > 0 for beta in self.beta), "tune.beta", self.beta, "numbers above 0")
        require(all(0 <= times <= 16 for times in self.exp_times), "tune.exp_times", self.exp_times, "numbers from 0 to 16")


@dataclass(frozen=True)
class Tuned:
    """What a step found. `result` is JSON-able."""

    result: dict[str, Any]
    lines: list[str]                                   # of text: the best values, and those of the run
    words: list[str]                                   # KEY=VALUE: the settings that have the best values
    # name of a CSV file -> rows, the first has the heads; STEP-NAME if two steps have this name
    tables: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)


class Tuning:
    """The images whose masks are used, and what is counted on them: each kind of maps once, whatever number of steps ask."""

    def __init__(self, settings: TuneSettings, ids: tuple[str, ...]):
        self.settings, self.ids = settings, ids
        self._counts: dict[Path, ThresholdCounts] = {}

    def require(self, found: Mapping[str, Maps]) -> None:
        """Raise ConfigError if maps, by kind, do not cover the images."""
        for kind, maps in found.items():
            if missing := [image_id for image_id in self.ids if image_id not in maps.index]:
                raise ConfigError(f"tune.split={self.settings.split!r}: the run has no {kind} maps of {len(missing)} of its "
                                  f"{len(self.ids)} images (first missing: {missing[0]!r}). Choose a list that the run covers, "
                                  f"or make them with {maps.step}.split")

    def counts(self, context: StepContext, maps: Maps, number: int = 0, of: int = 1) -> ThresholdCounts:
        """The confusion counts of stored maps at full size, at all thresholds. These are the maps `number` of `of`."""
        if maps.folder not in self._counts:
            self._counts[maps.folder] = count_maps(context, maps, self.ids, before=number * len(self.ids),
                                                   total=of * len(self.ids))
        return self._counts[maps.folder]


def choosing_ids(dataset: Dataset, settings: TuneSettings) -> tuple[str, ...]:
    """The ids whose masks are used to choose.

    Raises
    ------
    ConfigError
        for test labels, too few images to hold some out, or images without masks.
    DataError
        if there is no such list.
    """
    key, ids = f"tune.split={settings.split!r}", dataset.list_ids(settings.split)
    of_test = set(ids).intersection(*[set().union(*(listed for name, listed in dataset.lists.items() if _is_test(name)))])
    if _is_test(settings.split) or of_test:
        raise ConfigError(f"{key} holds test images, whose masks must not be used to choose: their scores would mean nothing. "
                          "Choose val, train, or a held-out part of train: tune.held_out=0.2")
    if settings.held_out is not None:
        ids = held_out(ids, settings.held_out)
        if not ids:
            raise ConfigError(f"{key} has too few images to hold out tune.held_out={settings.held_out} of them. Set it to null")
    if not dataset.has_masks(ids):
        raise ConfigError(f"{key}: not all of its {len(ids)} images have masks in {dataset.root}, so they cannot be used to "
                          "choose. Add the masks, or choose another list")
    return ids


def _is_test(name: str) -> bool:
    return name.replace("\\", "/").rpartition("/")[2].lower().startswith("test")


def scored(counts: ThresholdCounts, now: dict[str, Any] | None) -> dict[str, Any]:
    """The curve over the thresholds, the best of it, and the run's own threshold on the same images."""
    scores = [counts.scores(i) for i in range(len(counts.thresholds))]
    threshold, best = counts.best()
    if best.miou is None:
        raise DataError("no mask of the list tune.split holds a class, so nothing can be tuned; expected masks with classes: "
                        "choose another list, or draw the classes")
    if now is not None:
        now = {"threshold": now["threshold"], "source": now["source"], "miou": scores[counts.nearest(now["threshold"])].miou}
    return {"best": {"threshold": threshold, "miou": best.miou}, "run": now,
            "curve": {"threshold": list(counts.thresholds), **{name: [getattr(s, name) for s in scores] for name in SCORE_NAMES}}}


def tuning_curve(lines: Mapping[str, dict[str, Any]]) -> Curve:
    """mIoU over the background threshold, of results of `scored` by name."""
    return Curve("mIoU; ring: best, dot: of the run", "background threshold", "mIoU, percent", [
        Line(name=name, x=found["curve"]["threshold"], y=found["curve"]["miou"], marks=[
            (found["best"]["threshold"], False), *([(found["run"]["threshold"], True)] if found["run"] else [])])
        for name, found in lines.items()], percent=True, section="thresholds")


def at(point: Mapping[str, Any]) -> str:
    """A threshold and its mIoU as text."""
    return f"{point['threshold']:.2f} (mIoU {100 * point['miou']:.1f})"


def rows_of(curve: Mapping[str, Iterable[Any]], names: Sequence[str], *first: Any) -> list[tuple[Any, ...]]:
    """The values `names` of a curve as rows that begin with `first`."""
    return [(*first, *values) for values in zip(*(curve[name] for name in names))]


def confident(counts: ThresholdCounts, confidence: float) -> dict[str, Any]:
    """The pair (conf_fg, conf_bg): by the rule of LPCAM's author, and by the accuracy of each threshold without a CRF.

    The second is the lowest conf_fg and the highest conf_bg that are right for the share `confidence` of the pixels they
    label; None if there is no such threshold. If the two cross, conf_bg is conf_fg, so that no pixel is ignored.
    """
    curve = confident_curve(counts)
    fg = next((t for t, right in zip(counts.thresholds, curve["fg_right"]) if right is not None and right >= confidence), None)
    bg = next((t for t, right in reversed(list(zip(counts.thresholds, curve["bg_right"])))
               if right is not None and right >= confidence), None)
    if fg is not None and bg is not None:
        bg = min(fg, bg)
    rule = dict(zip(("conf_fg", "conf_bg"), confident_pair(counts.best()[0])))
    at = {half: counts.nearest(rule[f"conf_{half}"]) for half in ("fg", "bg")}
    measured = {f"{half}_{what}": curve[f"{half}_{what}"][at[half]] for half in ("fg", "bg") for what in ("right", "share")}
    return {"rule": {**rule, **measured}, "confidence": confidence, "best": {"conf_fg": fg, "conf_bg": bg},
            "curve": {"threshold": list(counts.thresholds), **curve}}


def confident_curve(counts: ThresholdCounts) -> dict[str, list[float | None]]:
    """The accuracy and the share of the pixels labelled foreground, and of those labelled background, at each threshold.

    "fg_right", "bg_right": share of these pixels whose label is right; "fg_share", "bg_share": share of these pixels among
    all. None if there is no such pixel. Pixels with ground truth 255 are not counted.
    """
    table = counts.counts   # (C + 1 ground truth, C + 1 greatest class, T + 1 thresholds below)
    total = table.sum()
    right = np.array([table[c, c] for c in range(1, len(table))]).sum(axis=0)      # (T + 1,)
    classes = table[:, 1:].sum(axis=(0, 1))
    above = {"all": classes[::-1].cumsum()[::-1][1:], "right": right[::-1].cumsum()[::-1][1:]}   # (T,): passes threshold i
    bg_all = total - above["all"]
    bg_right = table[0].sum() - table[0, 1:].sum(axis=0)[::-1].cumsum()[::-1][1:]
    return {"fg_right": _shares(above["right"], above["all"]), "fg_share": _shares(above["all"], total),
            "bg_right": _shares(bg_right, bg_all), "bg_share": _shares(bg_all, total)}


def _shares(part: np.ndarray, whole: np.ndarray | int) -> list[float | None]:
    return [float(p / w) if w else None for p, w in np.broadcast(part, whole)]


def confident_lines(kind: str, pair: Mapping[str, Any]) -> Curve:
    """The curves of `confident` for one kind of maps; the marks are the pair by the rule."""
    curve = pair["curve"]
    return Curve(f"confident pixels of {kind}; dot: by the rule", "threshold", "percent of pixels", [
        Line(name=f"{name}: {words}", x=curve["threshold"],
             y=[np.nan if value is None else value for value in curve[f"{half}_{what}"]],
             marks=[(pair["rule"][f"conf_{half}"], True)])
        for half, name in (("fg", "class"), ("bg", "background"))
        for what, words in (("right", "right"), ("share", "share of pixels"))], percent=True, section="thresholds")


def tune_walk(context: StepContext, tuning: Tuning) -> Tuned | None:
    """The scores of the refiner's maps with each pair of `tune.beta` and `tune.exp_times`; None if it has no such settings, or
    without its network or seed maps."""
    tried = _walk(context.methods["refiner"])
    if tried is None or not (context.reads("seeds") and context.reads(tried[1].reads)):
        return None
    tuning.require({context.seeds: Maps(context.input("seeds"))})
    result = _walks(context, tuning, *tried)
    best, run, points = result["best"], result["run"], result["points"]
    line = (f"  walk from {context.seeds}: beta {best['beta']:g}, exp_times {best['exp_times']}, background threshold "
            f"{at(best)}; the run has {run['beta']:g}, {run['exp_times']}" + (f", {at(run)}" if "threshold" in run else ""))
    words = [f"refiner.beta={best['beta']:g}", f"refiner.exp_times={best['exp_times']}",
             f"{context.name}.bg_threshold={best['threshold']:g}"]
    names = ("threshold", *SCORE_NAMES)
    rows = [row for point in points for row in rows_of(point["curve"], names, point["beta"], point["exp_times"])]
    by_times = {times: [point for point in points if point["exp_times"] == times]
                for times in sorted({point["exp_times"] for point in points})}
    curve = Curve("walks, each at its best threshold", "beta", "mIoU, percent", [
        Line(name=f"2^{times} steps", x=[point["beta"] for point in found], y=[point["best"]["miou"] for point in found])
        for times, found in by_times.items()], percent=True, section="thresholds")
    first = max(points, key=lambda point: point["best"]["miou"])
    return Tuned(result, [line], words, {"walk.csv": [("beta", "exp_times", *names), *rows]},
                 [tuning_curve({"walk (best)": {**first, "run": None}}), curve])


def _walk(method: RefinerMethod) -> tuple[str, Any] | None:
    """The refiner whose `beta` and `exp_times` can be tuned, with its name: one that refines before the threshold only, if the
    method tries such a one."""
    found = [(name, each) for name, each in method.candidates(True).items()
             if {"beta", "exp_times"} <= {item.name for item in fields(each)}]
    return min(found, key=lambda each: each[1].after_threshold, default=None)


def _walks(context: StepContext, tuning: Tuning, name: str, method: Any) -> dict[str, Any]:
    """Score every walk on every image; what the network makes of an image is computed once."""
    from steps.parts.refining import Refining

    refining, own = Refining(context, [method]), (method.beta, method.exp_times)
    dataset, settings = context.dataset, tuning.settings
    pairs = sorted({own, *((beta, times) for beta in settings.beta for times in settings.exp_times)})
    counts = {pair: ThresholdCounts(len(dataset.classes)) for pair in pairs}
    for number, image_id in enumerate(tuning.ids, start=1):
        truth, image = dataset.mask(image_id), refining.image(image_id)
        for beta, times in pairs:
            context.runtime.check_stop()
            walked = refining.refined(image, replace(method, beta=beta, exp_times=times))
            soft = refining.in_size(image_id, method, walked, dataset.size(image_id))
            counts[beta, times].update(soft, refining.maps.classes(image_id), truth)
        context.runtime.progress(number, len(tuning.ids), f"images, {len(pairs)} walks each")
    now = _threshold_of(context, name, method)
    points = [{"beta": pair[0], "exp_times": pair[1], **scored(counted, now if pair == own else None)}
              for pair, counted in counts.items()]
    best = max(points, key=lambda point: point["best"]["miou"])
    current = points[pairs.index(own)]
    return {"seed_maps": context.seeds, "points": points,
            "best": {"beta": best["beta"], "exp_times": best["exp_times"], **best["best"]},
            "run": {"beta": own[0], "exp_times": own[1], **(current["run"] or {})}}


def _threshold_of(context: StepContext, name: str, method: RefinerMethod) -> dict[str, Any] | None:
    """The background threshold of the run; None if it has none of this refiner's maps without a further step."""
    path = context.folder / THRESHOLD
    chosen = read_chosen(path) if path.exists() else {}
    return chosen if chosen.get("refiner") == name and not method.after_threshold else None
