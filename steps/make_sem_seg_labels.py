"""Refine the seed maps and write the pseudo masks.

Official file: `step/make_sem_seg_labels.py` (IRN, LPCAM), which has only the random walk (`refiner=walk`). Reads the seed
maps and, if the walk is used or tried, IRN. Writes `ID.png`, palette PNGs in the size of the image that can be used as
`SegmentationClass`, and with `save_soft` the edge map `edge/ID.npy` (h, w) and the walked maps `walk/ID.npy` (K, h, w),
float16 at stride 4. `threshold.json` records the refiner, the background threshold and the scores on val.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.official import OfficialLabels
from steps.parts.outcome import Advice, Change
from steps.parts.refiner import WITHOUT_MASKS, Refiner, Unary, check_walk, recorded_refiner
from steps.parts.shown import choice_on_val, label_column, walk_columns
from steps.parts.thresholds import THRESHOLD, read_chosen, require_fallback
from steps.parts.tuning import Tuned, Tuning, tune_walk
from steps.runtime.artifacts import Labels, Maps, encode_array, read_array
from steps.runtime.context import StepContext, require
from steps.runtime.inference import Made, for_each_image
from steps.runtime.setup import val_with_masks
from steps.step import IMAGES, PER_MAP, Column, Curve, Lists, Needs, Setup, StepSettings, Table, facts
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
    fallback: dict[str, float | None] = field(metadata=PER_MAP)   # the background threshold without val masks
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
    """Of the fallbacks, only the one in use counts."""
    found = facts(setup, "precision")
    own = found[setup.name]
    return {**found, setup.name: {**own, "fallback": own["fallback"][setup.seeds] if falls_back(setup) else None}}


def falls_back(setup: Setup) -> bool:
    """Whether the background threshold is the fallback."""
    return setup.settings.bg_threshold is None and not setup.lists["val"]


def unused(setup: Setup) -> dict[str, str]:
    settings = setup.settings
    if any(refiner.walks for refiner in settings.refiners(bool(val_with_masks(setup.dataset)))):
        return {}
    return {"irn": f"refiner={settings.refiner.value}" if settings.refiner else
            f"refiner=null, which is {WITHOUT_MASKS.value} without val masks"}


def check(setup: Setup) -> None:
    if falls_back(setup):
        require_fallback(setup, {setup.seeds: f"{setup.name}.bg_threshold"})


def prepare(context: StepContext) -> None:
    """Choose the refiner and the background threshold, which all images need."""
    from steps.parts.refining import Refining, choose_refiner

    choose_refiner(context, Refining(context))


def needs(setup: Setup) -> Needs:
    from steps.parts.refining import OFFSETS, WALKS_KEPT
    from steps.runtime.needs import Estimate, labels_on_disk, weights

    estimate, settings, has_val = Estimate(setup), setup.settings, bool(setup.lists["val"])
    network, images, originals = estimate.irn().eval(), estimate.images("ids"), estimate.images("ids", original=True)
    refiners, chooses = settings.refiners(has_val), settings.chooses and has_val
    walks = any(refiner.walks for refiner in refiners)
    disk: float = labels_on_disk(originals, border=3)   # measured: 1.0 to 1.8, VOC's own masks 4.1
    if walks and settings.save_soft:
        disk += images.total(2 * (images.classes + 1) * images.pixels / 16)   # float16 at stride 4
    held: float = walks * weights(network)
    if chooses and Refiner.walk_crf in refiners:
        val = estimate.images("val")
        held += estimate.on_host(min(val.total(val.classes * val.pixels / 4), WALKS_KEPT))   # float32 at stride 4
    passing = [originals.most(27, 7)]            # a walked map up to its label, measured
    if walks:
        passing += [estimate.forwards(network, network.edge_map, images), estimate.walk(images, maps_per_class=6)]   # 6 copies
    if any(refiner.has_crf for refiner in refiners):
        passing.append(estimate.crf(images, len(OFFSETS) * (1 + walks) if chooses else 1))
    return estimate.finish(disk, held, max(passing), files=1 + 2 * settings.save_soft)


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.refining import Refining, choose_refiner

    refining = Refining(context)
    chosen = choose_refiner(context, refining)
    refiner = recorded_refiner(chosen, context.folder / THRESHOLD)

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


# How the masks of a refiner are named in a headline and at the beginning of a sentence.
NAMES = {Refiner.walk.value: ("walk", "the random walk is"), Refiner.crf.value: ("CRF", "the CRF is"),
         Refiner.walk_crf.value: ("walk and CRF", "the random walk and CRF are"),
         Refiner.none.value: ("no refinement", "the seeds without refinement are")}


def named(title: str, score: Mapping[str, Any]) -> tuple[str, str]:
    if score["threshold"] is None:
        return f"imported {title}", f"the imported {title} are"
    return NAMES.get(score.get("refiner") or Refiner.walk.value, ("refinement", "the refinement is"))


def advice(change: Change) -> list[Advice]:
    setting, key, before = change.outcome.setting, change.name, change.before
    exp_times, beta = setting(f"{key}.exp_times", 8), setting(f"{key}.beta", 10.0)
    crf: Advice = (f"{key}.refiner", "crf", "a dense CRF on the seeds, no walk")
    walk: Advice = (f"{key}.refiner", "walk", "the random walk alone")
    none: Advice = (f"{key}.refiner", "none", f"{before['title']} at its threshold, unrefined")
    shorter: list[Advice] = [(f"{key}.exp_times", max(exp_times - 3, 1), "a shorter walk")] if exp_times > 1 else []
    if change.score["threshold"] is None:   # imported masks
        return []
    refiner = change.score.get("refiner")
    if refiner == Refiner.none.value:
        return [(f"{key}.bg_threshold", before["threshold"], f"as {before['title']} in {before['step']}")]
    if refiner == Refiner.crf.value:
        return [walk, none]
    if refiner == Refiner.walk_crf.value:
        return [walk, crf, *shorter]
    if change.cause == "shrink":
        irn = change.reads["irn"]
        return [crf, (f"{key}.beta", beta / 2, "a walk that crosses weak edges more easily"),
                (*change.outcome.longer(irn, 6), "edges that were trained longer")]
    return [crf, *shorter, (f"{key}.beta", 2 * beta, "a walk that keeps to the inside of edges")]


def soft(context: StepContext, image_id: str) -> dict[str, np.ndarray]:
    """The walked maps, if the refiner of the run has a walk."""
    from steps.parts.walk import Walk

    path = context.folder / THRESHOLD
    if not recorded_refiner(read_chosen(path), path).walks:
        return {}
    return {"walk": Walk(context, Maps(context.input("seeds"))).in_size(image_id).cpu().numpy()}


def tune(context: StepContext, tuning: Tuning) -> Tuned | None:
    """The best walk and its background threshold."""
    return tune_walk(context, tuning)


def shown(context: StepContext) -> Iterator[Column | Curve | Table]:
    """Edge map, random walk and pseudo mask of each image, and the choice on val."""
    yield from walk_columns(context)
    yield label_column(context, "pseudo mask")
    yield from choice_on_val(context)
