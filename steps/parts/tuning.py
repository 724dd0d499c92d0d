"""Scores over thresholds and settings of the walk on the stored maps of a finished run, to choose both.

It writes no artifact of a step. The maps are read from the run; the walks are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.eval_cam import SCORES, count_maps, read_maps
from steps.parts.thresholds import THRESHOLD, confident_pair, read_chosen
from steps.runtime.context import StepContext, require
from wsss.data.dataset import Dataset
from wsss.data.folder import held_out
from wsss.errors import ConfigError
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts

if TYPE_CHECKING:
    from steps.parts.walk import Walk

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


def tune(context: StepContext, settings: TuneSettings) -> dict[str, Any]:
    """Score on `context.lists["ids"]`; `context.settings` are those of the run's walk.

    Returns
    -------
    "maps": for each kind of map the curve over background thresholds, its best, the run's own, and the confident pair;
    "walk": for each pair of exponents the curve and its best; None if the run has no walk.

    Raises ConfigError if the run has no maps of some of the images.
    """
    from steps.parts.walk import Walk

    ids, kinds = context.ids, read_maps(context.inputs["maps"])
    seeds = kinds.get(context.seed_maps)
    walk = Walk(context, seeds) if seeds is not None and "train_irn" in context.inputs else None
    for name, maps in kinds.items():
        if missing := [image_id for image_id in ids if image_id not in maps.index]:
            raise ConfigError(f"tune.split={settings.split!r}: the run has no {name} maps of {len(missing)} of its {len(ids)} "
                              f"images (first missing: {missing[0]!r}). Choose a list that the run covers, or make them with "
                              f"{maps.step}.split")
    total = len(ids) * (len(kinds) + bool(walk))
    result: dict[str, Any] = {"maps": {}, "walk": None}
    for number, (kind, maps) in enumerate(kinds.items()):
        counts = count_maps(context, maps, ids, THRESHOLDS, number * len(ids), total)
        result["maps"][kind] = _scored(counts, _now(context, kind)) | {"confident": _confident(counts, settings.confidence)}
    if walk:
        result["walk"] = _walks(context, settings, walk, len(kinds) * len(ids), total)
    return result


def _now(context: StepContext, kind: str) -> dict[str, Any] | None:
    """The threshold of the run and its source; None if it has none yet."""
    step, name = ("make_sem_seg_labels", THRESHOLD) if kind == "walk" else ("eval_cam", SCORES)
    if step not in context.inputs:
        return None
    chosen = read_chosen(context.inputs[step] / name, None if kind == "walk" else kind)
    if kind == "walk" and chosen.get("refiner") != "walk":   # the run's threshold is of other scores
        return None
    return {key: chosen[key] for key in ("threshold", "source")}


def _scored(counts: ThresholdCounts, now: dict[str, Any] | None) -> dict[str, Any]:
    """The curve over the thresholds, the best of it, and the run's own threshold on the same images."""
    scores = [counts.scores(i) for i in range(len(counts.thresholds))]
    threshold, best = counts.best()
    if now is not None:
        now = {**now, "miou": scores[counts.nearest(now["threshold"])].miou}
    return {"best": {"threshold": threshold, "miou": best.miou}, "run": now,
            "curve": {"threshold": list(counts.thresholds), **{name: [getattr(s, name) for s in scores] for name in SCORE_NAMES}}}


def _confident(counts: ThresholdCounts, confidence: float) -> dict[str, Any]:
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
    return {"rule": {**rule, **measured}, "confidence": confidence, "best": {"conf_fg": fg, "conf_bg": bg}, "curve": curve}


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


def _walks(context: StepContext, settings: TuneSettings, walk: Walk, before: int, total: int) -> dict[str, Any]:
    """Score every walk on every image; the edge map of an image is computed once."""
    own, dataset, maps = (context.settings.beta, context.settings.exp_times), context.dataset, walk.maps
    pairs = sorted({own, *((beta, times) for beta in settings.beta for times in settings.exp_times)})
    counts = {pair: ThresholdCounts(len(dataset.classes)) for pair in pairs}
    for number, image_id in enumerate(context.ids, start=1):
        truth, (walked, edge) = dataset.mask(image_id), walk(image_id)
        for pair in pairs:
            context.runtime.check_stop()
            soft = walk.soft(walked if pair == own else walk.again(edge, image_id, *pair), image_id, dataset.size(image_id))
            counts[pair].update(soft, maps.classes(image_id), truth)
        context.runtime.progress(before + number, total, f"images, {len(pairs)} walks each")
    points = []
    for (beta, times), counted in counts.items():
        now = _now(context, "walk") if (beta, times) == own else None
        points.append({"beta": beta, "exp_times": times, **_scored(counted, now)})
    best = max(points, key=lambda point: point["best"]["miou"])
    current = next(point for point in points if (point["beta"], point["exp_times"]) == own)
    return {"seed_maps": context.seed_maps, "points": points,
            "best": {"beta": best["beta"], "exp_times": best["exp_times"], **best["best"]},
            "run": {"beta": own[0], "exp_times": own[1], **(current["run"] or {})}}
