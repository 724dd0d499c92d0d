"""Spread the seed maps by IRN's random walk and write the pseudo masks.

Official file: `step/make_sem_seg_labels.py` (IRN, LPCAM). Reads the maps that go on and IRN; writes `ID.png`, palette PNGs
in the size of the photograph, ready to be used as `SegmentationClass`, and with `save_soft` the edge map `edge/ID.npy`
(h, w) and the walked maps `walk/ID.npy` (K, h, w), float16 at stride 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.artifacts import Labels, encode_array, read_array, write_json
from steps.context import StepContext, require, require_prepared
from steps.inference import for_each_image
from steps.thresholds import PUBLISHED, choose, count, read_chosen
from wsss.data.images import encode_mask

if TYPE_CHECKING:
    from steps.walk import Walk

VERSION = 2
THRESHOLD = "threshold.json"


@dataclass
class Settings:
    """`make_sem_seg_labels.`: the values and their sources stand in `conf/recipe/`."""

    split: str | None                # null: what eval_sem_seg scores
    beta: float                      # exponent of the affinity
    exp_times: int                   # the walk has 2^exp_times steps
    radius: int                      # of a step, in cells of stride 4
    pad_to: int | None               # the input of IRN is padded to sides of at least so many pixels
    bg_threshold: float | None       # null: chosen on val masks, else the published constant
    save_soft: bool

    def __post_init__(self) -> None:
        require(self.beta > 0, "make_sem_seg_labels.beta", self.beta, "above 0")
        require(0 <= self.exp_times <= 16, "make_sem_seg_labels.exp_times", self.exp_times, "from 0 to 16")
        require(self.radius >= 2, "make_sem_seg_labels.radius", self.radius, "at least 2")
        require(self.pad_to is None or self.pad_to >= 1, "make_sem_seg_labels.pad_to", self.pad_to, "null or at least 1")
        require(self.bg_threshold is None or 0 <= self.bg_threshold <= 1, "make_sem_seg_labels.bg_threshold",
                self.bg_threshold, "null or a number in [0, 1]")


def prepare(context: StepContext) -> None:
    """Choose the background threshold, which all images need."""
    from steps.walk import Walk

    background_threshold(context, Walk(context))


def run(context: StepContext) -> dict[str, Any]:
    from steps.walk import Walk, mask_of

    walk = Walk(context)
    chosen = background_threshold(context, walk)

    def make(image_id: str):
        walked, edge = walk(image_id)
        soft, size = walk.soft(walked, image_id)
        label = mask_of(soft, walk.maps.classes(image_id), chosen["threshold"])
        contents = {f"{image_id}.png": encode_mask(label)}
        if context.settings.save_soft:
            for kind, array in (("walk", walked), ("edge", edge)):
                contents[f"{kind}/{image_id}.npy"] = encode_array(array.cpu().numpy().astype(np.float16))
        return contents, {"height": size[0], "width": size[1]}

    for_each_image(context, make)
    return chosen


def reader(folder: Path, n_classes: int) -> Callable[[str], None]:
    labels = Labels(folder, n_classes)
    read_chosen(folder / THRESHOLD)

    def read(image_id: str) -> None:
        labels(image_id)
        for name in labels.index[image_id]["files"]:
            if name.endswith(".npy"):
                read_array(labels.store.file(image_id, name), "make_sem_seg_labels")
    return read


def background_threshold(context: StepContext, walk: Walk) -> dict[str, Any]:
    """The background threshold and its source; the sweep over val is recorded in `threshold.json`."""
    path, val = context.folder / THRESHOLD, context.lists["val"]
    if context.group.first(path.exists):
        return read_chosen(path)
    require_prepared(context, path)
    counts = count(context, val, lambda image_id: walk.soft(walk(image_id)[0], image_id)[0], walk.maps.classes,
                   "val images, to choose the background threshold") if val else None
    chosen = choose(context.settings.bg_threshold, "make_sem_seg_labels.bg_threshold", counts, len(val),
                    PUBLISHED[context.seed_maps].walk_bg).as_dict()
    if counts is not None:
        chosen["val_miou"] = [counts.scores(i).miou for i in range(len(counts.thresholds))]
    if context.group.leads:
        write_json(path, chosen)
    return chosen
