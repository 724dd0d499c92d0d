"""Refine the seed maps and write the pseudo masks.

Official file: `step/make_sem_seg_labels.py` (IRN, LPCAM), which has only the random walk (`refiner=walk`). Reads the seed
maps and, if the walk is used or tried, IRN. Writes `ID.png`, palette PNGs in the size of the image that can be used as
`SegmentationClass`, and with `save_soft` the edge map `edge/ID.npy` (h, w) and the walked maps `walk/ID.npy` (K, h, w),
float16 at stride 4. `threshold.json` records the refiner, the background threshold and the scores on val.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.official import OfficialLabels
from steps.parts.refiner import WITHOUT_MASKS, Refiner, Unary, check_walk
from steps.parts.shown import choice_on_val, label_column, walk_columns
from steps.parts.thresholds import THRESHOLD, read_chosen, require_fallback
from steps.runtime.artifacts import Labels, encode_array, read_array
from steps.runtime.context import StepContext, require
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Column, Curve, Lists, Setup, StepSettings, Table, facts, per_map, val_with_masks
from wsss.data.ids import union
from wsss.data.images import encode_mask

VERSION = 3
KIND = IMAGES
MASKS = True
COMMON = (THRESHOLD,)
OFFICIAL = OfficialLabels("sem_seg", original=True, common={THRESHOLD: {"threshold": None, "source": "imported pseudo masks"}})


@dataclass
class CRFSettings:
    """`make_sem_seg_labels.crf.`: the dense CRF applied to the seed maps or to the walked maps."""

    iterations: int
    unary: Unary
    gt_prob: float               # for unary=labels
    sharpness: float             # for unary=scores
    gaussian_sxy: float          # standard deviation of the spatial kernel, in pixels
    gaussian_compat: float       # its weight
    bilateral_sxy: float         # of the bilateral kernel: in pixels,
    bilateral_srgb: float        # and in grey levels of 0..255
    bilateral_compat: float

    def check(self, where: str) -> None:
        """Raise ConfigError for an impossible value; `where` is the key of the settings."""
        require(self.iterations >= 1, f"{where}.iterations", self.iterations, "at least 1")
        require(0 < self.gt_prob < 1, f"{where}.gt_prob", self.gt_prob, "a probability above 0 and below 1")
        for key in ("sharpness", "gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            require(getattr(self, key) > 0, f"{where}.{key}", getattr(self, key), "above 0")
        for key in ("gaussian_compat", "bilateral_compat"):
            require(getattr(self, key) >= 0, f"{where}.{key}", getattr(self, key), "0 or more")

    @property
    def kernels(self) -> dict[str, float]:
        """The arguments of `wsss.refinement.crf.DenseCRF`."""
        return {key: getattr(self, key) for key in ("gaussian_sxy", "gaussian_compat", "bilateral_sxy", "bilateral_srgb",
                                                    "bilateral_compat")}


@dataclass
class Settings(StepSettings):
    """`make_sem_seg_labels.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what eval_sem_seg scores
    refiner: Refiner | None          # null: the best of all four on val masks; without val masks crf
    beta: float                      # exponent of the affinity
    exp_times: int                   # the walk has 2^exp_times steps
    scale_steps: bool                # this many on a VOC image, on other sizes in proportion to the area
    radius: int                      # of one step, in cells of stride 4
    pad_to: int | None               # pad the input of IRN to sides of at least this many pixels
    crf: CRFSettings
    bg_threshold: float | None       # null: chosen on val masks, else `fallback`
    fallback: dict[str, float | None] = per_map()   # the background threshold without val masks
    save_soft: bool

    def __post_init__(self) -> None:
        check_walk(self)
        self.crf.check(f"{self.step}.crf")
        self.require(self.bg_threshold is None or 0 <= self.bg_threshold <= 1, "bg_threshold", "null or a number in [0, 1]")
        for kind, value in self.fallback.items():
            require(value is None or 0 <= value <= 1, f"{self.step}.fallback.{kind}", value, "null or a number in [0, 1]")

    @property
    def chooses(self) -> bool:
        """Whether val masks, if there are any, are used to choose the refiner or the threshold."""
        return self.refiner is None or self.bg_threshold is None

    def refiners(self, has_val: bool) -> tuple[Refiner, ...]:
        """The refiner to use, or the candidates to compare on val masks."""
        if self.refiner is not None:
            return (self.refiner,)
        return tuple(Refiner) if has_val else (WITHOUT_MASKS,)


def lists(setup: Setup) -> Lists:
    val = val_with_masks(setup.dataset) if setup.settings.chooses else ()
    for name, ids in setup.wanted.items():
        setup.refuse_choosing_on_scored(name, ids, val, "bg_threshold")
    return {"ids": setup.ids(union([setup.dataset.lists["train"], *setup.wanted.values()])), "val": val}


def identity(setup: Setup) -> dict[str, Any]:
    """Only the fallback of the seed maps counts."""
    found = facts(setup, "precision")
    own = found[setup.name]
    return {**found, setup.name: {**own, "fallback": own["fallback"][setup.seeds]}}


def unused(setup: Setup) -> dict[str, str]:
    refiners = setup.settings.refiners(bool(val_with_masks(setup.dataset)))
    return {} if any(refiner.walks for refiner in refiners) else {"irn": f"refiner={refiners[0].value}"}


def check(setup: Setup) -> None:
    if setup.settings.bg_threshold is None and not setup.lists["val"]:
        require_fallback(setup, [setup.seeds], f"{setup.name}.bg_threshold")


def prepare(context: StepContext) -> None:
    """Choose the refiner and the background threshold, which all images need."""
    from steps.parts.refining import Refining, choose_refiner

    choose_refiner(context, Refining(context))


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.refining import Refining, choose_refiner

    refining = Refining(context)
    chosen = choose_refiner(context, refining)
    refiner = Refiner(chosen["refiner"])

    def make(image_id: str) -> Made:
        label, soft = refining(image_id, refiner, chosen["threshold"])
        contents = {f"{image_id}.png": encode_mask(label)}
        if context.settings.save_soft:
            contents |= {f"{kind}/{image_id}.npy": encode_array(array.cpu().numpy().astype(np.float16))
                         for kind, array in soft.items()}
        return contents, {"height": label.shape[0], "width": label.shape[1]}

    for_each_image(context, make, cpu_parallel=refiner is Refiner.crf)
    return chosen


def reader(folder: Path, n_classes: int) -> Callable[[str], None]:
    labels = Labels(folder, n_classes)
    read_chosen(folder / THRESHOLD)

    def read(image_id: str) -> None:
        labels(image_id)
        for name in labels.index[image_id]["files"]:
            if name.endswith(".npy"):
                read_array(labels.store.file(image_id, name), folder.name)
    return read


def shown(context: StepContext) -> Iterator[Column | Curve | Table]:
    """Edge map, random walk and pseudo mask of each image, and the choice on val."""
    yield from walk_columns(context)
    yield label_column(context, "pseudo mask")
    yield from choice_on_val(context)
