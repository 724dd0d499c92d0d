"""Where a threshold comes from: a number in the configuration, a sweep over val masks, or the published constant.

Never from the list that is scored. The source stands beside every threshold in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.runtime.artifacts import read_json
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext
from steps.runtime.memory import trim_heap
from wsss.errors import ArtifactError
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Published:
    """The published thresholds for one kind of seed, equal for VOC and COCO."""

    evaluation: float
    conf_fg: float
    conf_bg: float


PUBLISHED = {
    "cam": Published(0.15, 0.30, 0.05),      # IRN, run_sample.py
    "lpcam": Published(0.30, 0.45, 0.25),    # LPCAM, run_sample.py
    "lpcam_fg": Published(0.30, 0.45, 0.25),
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

    def read(image_id: str) -> tuple[Tensor, np.ndarray]:
        truth = context.dataset.mask(image_id)
        return at_size(soft(image_id), truth.shape), truth
    with closing(ordered_map(context, read, context.part(ids), max_concurrent(context.device))) as results:
        for number, (image_id, result) in enumerate(results, start=1):
            maps, truth = result()
            counts.update(maps, classes(image_id), truth)
            context.progress(before + number, total or len(ids), note)
            trim_heap()
    counts.counts = context.reduce(counts.counts)
    return counts


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
