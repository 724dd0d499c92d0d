"""Thresholds: a number in the configuration, the best on val masks, the `fallback` of the recipe, or without one that of a rule.

Never chosen on the scored list. Results contain the source of every threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from steps.runtime.artifacts import Maps, read_json
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext
from steps.runtime.memory import trim_heap
from wsss.data.ids import smallest_hashes
from wsss.errors import ArtifactError, DataError
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts

if TYPE_CHECKING:
    from torch import Tensor

SCORES = "scores.json"         # of the steps that score
THRESHOLD = "threshold.json"   # of make_sem_seg_labels and make_ins_seg_labels: the background threshold and its source
NO_VAL = "no val masks to choose by"
FALLBACK = f"fallback of the recipe ({NO_VAL})"   # a source
ANY = 0.5   # of maps whose threshold changes nothing on val
RULE = "separation rule"   # in a source
RULE_IMAGES = 200          # that the rule looks at
T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """A threshold and its source."""

    threshold: float
    source: str

    def as_dict(self) -> dict:
        return asdict(self)


def count(context: StepContext, ids: Sequence[str], soft: Callable[[str], Tensor], classes: Callable[[str], Sequence[int]],
          note: str, thresholds: Sequence[float] = THRESHOLDS, before: int = 0, total: int | None = None) -> ThresholdCounts:
    """The confusion counts of `ids` at every threshold, over all processes.

    `soft(id)`: maps (K, h, w) of the K `classes(id)`, resized to the mask if they have another size (`data.max_side`).
    `note`, `before` and `total` are for `context.runtime.progress`.
    """
    from wsss.cams.maps import at_size

    counts = ThresholdCounts(len(context.dataset.classes), thresholds)
    for_each_mask(context, ids, lambda image_id, truth: at_size(soft(image_id), truth.shape),
                  lambda image_id, maps, truth: counts.update(maps, classes(image_id), truth),
                  max_concurrent(context.runtime.device), note, before, total)
    counts.counts = context.runtime.reduce(counts.counts)
    return counts


def count_maps(context: StepContext, maps: Maps, ids: Sequence[str], thresholds: Sequence[float] = THRESHOLDS, before: int = 0,
               total: int | None = None) -> ThresholdCounts:
    """The confusion counts of stored maps at full size; the arguments as of `count`."""
    return count(context, ids, lambda image_id: maps.at(image_id, "full", context.runtime.device), maps.classes, "maps",
                 thresholds, before, total)


def for_each_mask(context: StepContext, ids: Sequence[str], make: Callable[[str, np.ndarray], T],
                  take: Callable[[str, T, np.ndarray], None], at_once: int, note: str, before: int = 0,
                  total: int | None = None) -> None:
    """Call `take(id, make(id, truth), truth)` for this process's part of `ids`, in order. `truth` is the mask of the image.

    Several threads may call `make`; only one calls `take`.
    """
    def one(image_id: str) -> tuple[T, np.ndarray]:
        truth = context.dataset.mask(image_id)
        return make(image_id, truth), truth
    with closing(ordered_map(context, one, context.runtime.part(ids), at_once)) as results:
        for number, (image_id, result) in enumerate(results, start=1):
            take(image_id, *result())
            context.runtime.progress(before + number, total or len(ids), note)
            trim_heap()


def choose(setting: float | None, key: str, val_counts: ThresholdCounts | None, n_val: int, fallback: float | None,
           rule: Callable[[str], Chosen]) -> Chosen:
    """The configured threshold, else the best on val, else, or if all are as good there, that of `fallen_back`."""
    if setting is not None:
        return Chosen(setting, f"{key} in the configuration")
    if val_counts is not None and not is_flat(val_counts.miou_curve()):
        return Chosen(val_counts.best()[0], f"best mIoU on the masks of {n_val} val images")
    return fallen_back(fallback, rule, n_val)


def is_flat(curve: Sequence[float | None]) -> bool:
    """Whether the mIoU is the same everywhere, so that no threshold is better than another."""
    return len(set(curve)) == 1


def fallen_back(fallback: float | None, rule: Callable[[str], Chosen], n_val: int) -> Chosen:
    """The fallback of the recipe, else the threshold of the `rule`, which is called with the reason: that there are no val masks
    (`n_val` 0), or that they cannot choose. Raises ArtifactError if there are none and the rule finds none."""
    why = f"every threshold has the same mIoU on the masks of {n_val} val images" if n_val else NO_VAL
    if fallback is not None:
        return Chosen(fallback, f"fallback of the recipe ({why})")
    try:
        return rule(why)
    except ArtifactError:
        if n_val:   # constant maps: each threshold is as good, or as bad, on val
            return Chosen(ANY, f"any threshold ({why})")
        raise


def by_rule(context: StepContext, maps: Maps, key: str, why: str = NO_VAL,
            soft: Callable[[str], Tensor] | None = None) -> Chosen:
    """The threshold that best separates maps and image colours (`wsss.cams.separation`), over all processes. No mask is read.

    It is that of at most `RULE_IMAGES` images with classes of the train list, chosen by a hash of the id, so that all steps have
    the same one for the same maps. `soft(id)`: maps (K, h, w) in the working frame, by default the stored `maps`. `key`: the
    setting to name in an error. `why` val masks do not choose: for the source. Raises ArtifactError if nothing is separated.
    """
    from wsss.cams.separation import Separation

    dataset, device = context.dataset, context.runtime.device
    ids = smallest_hashes([image_id for image_id in dataset.lists["train"] if image_id in maps.index and maps.classes(image_id)],
                          RULE_IMAGES)
    separation = Separation()

    def one(image_id: str) -> tuple[Tensor, np.ndarray]:
        return soft(image_id) if soft else maps.at(image_id, "full", device), dataset.image(image_id)
    with closing(ordered_map(context, one, context.runtime.part(ids), max_concurrent(device))) as results:
        for number, (_, result) in enumerate(results, start=1):
            separation.update(*result())
            context.runtime.progress(number, len(ids), "images, threshold by rule")
            trim_heap()
    separation.sums = context.runtime.reduce(separation.sums)
    try:
        return Chosen(separation.best(), f"{RULE} on {len(ids)} images ({why})")
    except DataError as error:
        raise ArtifactError(f"{context.name}: the separation rule finds no threshold on {len(ids)} images: {error}. "
                            f"Set {key}") from error


def read_chosen(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a threshold and its source from a step's `threshold.json` or, for the maps `kind`, from a `scores.json`.

    Raises ArtifactError if the file is missing or damaged or contains no such threshold.
    """
    content = read_json(path)
    try:
        chosen = content["chosen"][kind] if kind else content
        value = chosen["threshold"]   # None: imported pseudo masks
        good = (value is None and kind is None or 0 <= value <= 1) and isinstance(chosen["source"], str)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ArtifactError(f"{path} holds no threshold{f' of the {kind} maps' if kind else ''}, expected one in [0, 1] with its "
                            "source. Delete it; the same command makes it again", damaged=path)
    return chosen


def confident_pair(threshold: float) -> tuple[float, float]:
    """(conf_fg, conf_bg) from an evaluation threshold, by the rule of thumb of LPCAM's author (ReCAM issue 15).

    The rule is threshold + 0.15 and threshold - 0.10; near 0 and 1 the steps shrink so that 0 < conf_bg < threshold <
    conf_fg < 1. It gives IRN's published pair (0.30, 0.05) at IRN's threshold 0.15.
    """
    return round(min(threshold + 0.15, (1 + threshold) / 2), 4), round(max(threshold - 0.10, threshold / 3), 4)
