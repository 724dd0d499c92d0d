"""Score CAM, LPCAM-F and LPCAM against the masks at every threshold, and choose the thresholds on val masks.

Official file: `step/eval_cam.py`. Reads the maps and the masks; writes `scores.json` and `counts.npz` (the confusion
counts of each kind of map at all 101 thresholds).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.parts.thresholds import FALLBACK, Chosen, choose, count
from steps.runtime.artifacts import FG_ONLY, Maps, check_keys, read_arrays, write_arrays, write_json
from steps.runtime.context import StepContext, require
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts

VERSION = 1
SCORES, COUNTS = "scores.json", "counts.npz"


@dataclass
class Thresholds:
    """The background threshold of each kind of map; null: chosen on val masks, or published when there are none."""

    cam: float | None
    lpcam_fg: float | None
    lpcam: float | None

    def __post_init__(self) -> None:
        for kind in ("cam", "lpcam_fg", "lpcam"):
            value = getattr(self, kind)
            require(value is None or 0 <= value <= 1, f"eval_cam.threshold.{kind}", value, "null or a number in [0, 1]")


@dataclass
class Settings:
    """`eval_cam.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    threshold: Thresholds


def run(context: StepContext) -> dict[str, Any]:
    kinds = kinds_of_maps(context)
    scored, val = context.lists["scored"], context.lists["val"]
    total, chosen, scores, counts = len(kinds) * (len(scored) + len(val)), {}, {}, {}
    for number, (kind, maps) in enumerate(kinds.items()):
        before = number * total // len(kinds)
        setting = getattr(context.settings.threshold, kind)
        grid = tuple(sorted({*THRESHOLDS, THRESHOLDS[0] if setting is None else round(setting, 4)}))
        val_counts = count_maps(context, maps, val, grid, before, total) if val else None
        chosen[kind] = choose(setting, f"eval_cam.threshold.{kind}", val_counts, len(val), FALLBACK[kind].evaluation)
        if val_counts:
            counts[f"{kind}_val"] = val_counts.counts
        if scored:
            scored_counts = count_maps(context, maps, scored, grid, before + len(val), total)
            scores[kind] = score(scored_counts, chosen[kind], len(scored))
            counts[kind] = scored_counts.counts
    if not context.group.is_main:
        return {}
    write_arrays(context.folder / COUNTS, **counts)
    write_json(context.folder / SCORES, {"chosen": {kind: choice.as_dict() for kind, choice in chosen.items()},
                                         "scores": scores})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    read_arrays(folder / COUNTS)
    check_keys(folder / SCORES, ("chosen", "scores"))


def count_maps(context: StepContext, maps: Maps, ids: tuple[str, ...], thresholds: tuple[float, ...], before: int,
               total: int) -> ThresholdCounts:
    """The confusion counts of stored maps at full size."""
    return count(context, ids, lambda image_id: maps.map(image_id, "full", context.device), maps.classes, "maps", thresholds,
                 before, total)


def score(counts: ThresholdCounts, chosen: Chosen, n_images: int) -> dict[str, Any]:
    """The scores at the chosen threshold, and as an oracle the best threshold on the scored list."""
    best, best_scores = counts.best()
    confusion = counts.confusion(counts.nearest(chosen.threshold))
    return {**confusion.scores().as_dict(), "among_predfg_bg": confusion.among_predfg_bg(),
            "threshold": chosen.threshold, "threshold_source": chosen.source,
            "images": n_images, "oracle": {"threshold": best, "miou": best_scores.miou},
            "curve": {"threshold": [round(float(t), 4) for t in counts.thresholds], "miou": counts.miou_curve()}}


def kinds_of_maps(context: StepContext) -> dict[str, Maps]:
    kinds = {"cam": Maps(context.inputs["make_cam"])} if "make_cam" in context.inputs else {}
    if "make_lpcam" in context.inputs:
        folder = context.inputs["make_lpcam"]
        if fg_maps := Maps(folder, FG_ONLY):
            kinds["lpcam_fg"] = fg_maps
        kinds["lpcam"] = Maps(folder)
    return kinds
