"""Where a threshold comes from: a number in the configuration, a sweep over val masks, or the published constant.

Never from the list that is scored. The source stands beside every threshold in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from steps.runtime.artifacts import read_json
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext
from steps.runtime.memory import give_back
from wsss.errors import ArtifactError
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = "threshold.json"   # of make_sem_seg_labels and make_ins_seg_labels: the chosen background threshold and its source
T = TypeVar("T")


@dataclass(frozen=True)
class FallbackThresholds:
    """The published thresholds of one kind of map, equal for VOC and COCO; used where no val masks choose."""

    evaluation: float
    conf_fg: float
    conf_bg: float


FALLBACK = {
    "cam": FallbackThresholds(0.15, 0.30, 0.05),      # IRN, run_sample.py
    "lpcam": FallbackThresholds(0.30, 0.45, 0.25),    # LPCAM, run_sample.py
    "lpcam_fg": FallbackThresholds(0.30, 0.45, 0.25),
}


@dataclass(frozen=True)
class Chosen:
    """A threshold and the labels that chose it."""

    threshold: float
    source: str

    def as_dict(self) -> dict:
        return asdict(self)


def count(context: StepContext, ids: Sequence[str], soft: Callable[[str], Tensor], classes: Callable[[str], Sequence[int]],
          note: str, thresholds: Sequence[float] = THRESHOLDS, before: int = 0, total: int | None = None) -> ThresholdCounts:
    """The confusion counts of `ids` at every threshold, over all processes.

    `soft(id)`: maps (K, h, w) of the K `classes(id)`, brought to the size of the mask where they have another
    (`data.max_side` shrank the image). `note`, `before` and `total` are of the progress that is shown.
    """
    from wsss.cams.maps import at_size

    counts = ThresholdCounts(len(context.dataset.classes), thresholds)
    for_each_mask(context, ids, lambda image_id, truth: at_size(soft(image_id), truth.shape),
                  lambda image_id, maps, truth: counts.update(maps, classes(image_id), truth),
                  max_concurrent(context.device), note, before, total)
    counts.counts = context.reduce(counts.counts)
    return counts


def for_each_mask(context: StepContext, ids: Sequence[str], make: Callable[[str, np.ndarray], T],
                  take: Callable[[str, T, np.ndarray], None], at_once: int, note: str, before: int = 0,
                  total: int | None = None) -> None:
    """Call `take(id, made, truth)` in the order of `ids`, for this process's part of them, with what `make(id, truth)` returned.

    `make` may be called by several threads, `take` is not. `truth` is the mask of the image.
    """
    def one(image_id: str) -> tuple[T, np.ndarray]:
        truth = context.dataset.mask(image_id)
        return make(image_id, truth), truth
    with closing(ordered_map(context, one, context.part(ids), at_once)) as results:
        for number, (image_id, result) in enumerate(results, start=1):
            take(image_id, *result())
            context.progress(before + number, total or len(ids), note)
            give_back()


def choose(setting: float | None, key: str, val_counts: ThresholdCounts | None, n_val: int, published: float) -> Chosen:
    """The configured threshold, else the best on val, else (no val masks) the published one."""
    if setting is not None:
        return Chosen(setting, f"{key} in the configuration")
    if val_counts is not None:
        return Chosen(val_counts.best()[0], f"best mIoU on the masks of {n_val} val images")
    return Chosen(published, "published constant (no val masks to choose by)")


def read_chosen(path: Path, kind: str | None = None) -> dict[str, Any]:
    """A chosen threshold and its source, from the `threshold.json` of a step or, for the maps `kind`, from a `scores.json`.

    Raises
    ------
    ArtifactError
        when the file is missing or damaged or holds no such threshold.
    """
    content = read_json(path)
    try:
        chosen = content["chosen"][kind] if kind else content
        value = chosen["threshold"]   # None: of pseudo masks that were imported
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
