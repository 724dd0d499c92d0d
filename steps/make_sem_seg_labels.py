"""Refine the seed maps by the method that `refiner=NAME` chooses, and write the pseudo masks.

Official file: `step/make_sem_seg_labels.py` (IRN, LPCAM), which has only the random walk (`refiner=walk`). Reads the seed
maps and, if a refiner that is used or tried needs it, IRN or AffinityNet. Writes `ID.png`, palette PNGs in the size of the image
that can be used as `SegmentationClass`, and with `save_soft` what the refiner makes of the edge map `edge/ID.npy` (h, w) and of
maps by their name, such as the walked maps `walk/ID.npy` (K, h, w), float16 at stride 4. `threshold.json` records the refiner,
the background threshold and the scores on val.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.official import OfficialLabels
from steps.parts.outcome import Advice, Change
from steps.parts.pieces import Adjustable, Column, Curve, Table
from steps.parts.shown import choice_on_val, label_column
from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.parts.tuning import Tuned, Tuning, tune_walk
from steps.runtime.artifacts import Labels, encode_array, read_array
from steps.runtime.context import StepContext, require
from steps.runtime.inference import Made, for_each_image
from steps.runtime.setup import val_with_masks
from steps.step import IMAGES, PER_MAP, Lists, Needs, Setup, StepSettings, facts
from wsss.data.ids import union
from wsss.data.images import encode_mask
from wsss.errors import ConfigError
from wsss.families import load_method
from wsss.refiners.method import RefinerMethod

VERSION = 4
KIND = IMAGES
MASKS = {"": "pseudo masks"}
COMMON = (THRESHOLD,)
LEARNED = {"irn": "edges", "affinity": "affinities"}   # by the role of a network that a refiner reads
OFFICIAL = OfficialLabels("sem_seg", original=True, common={THRESHOLD: {"threshold": None, "source": "imported pseudo masks"}})


@dataclass
class Settings(StepSettings):
    """`make_sem_seg_labels.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what eval_sem_seg scores
    bg_threshold: float | None       # null: chosen on val masks, else `fallback`
    fallback: dict[str, float | None] = field(metadata=PER_MAP)   # without val masks; null: by the separation rule
    save_soft: bool

    def __post_init__(self) -> None:
        self.require(self.bg_threshold is None or 0 <= self.bg_threshold <= 1, "bg_threshold", "null or a number in [0, 1]")
        for kind, value in self.fallback.items():
            require(value is None or 0 <= value <= 1, f"{self.step}.fallback.{kind}", value, "null or a number in [0, 1]")


def lists(setup: Setup) -> Lists:
    refiner = setup.config.refiner
    chooses = (setup.settings.bg_threshold is None and refiner.threshold is None) or len(refiner.candidates(True)) > 1
    val = val_with_masks(setup.dataset) if chooses else ()
    for name, ids in setup.wanted.items():
        setup.refuse_choosing_on_scored(name, ids, val, "bg_threshold")
    return {"ids": setup.ids(union([setup.dataset.lists["train"], *setup.wanted.values()])), "val": val}


def identity(setup: Setup) -> dict[str, Any]:
    """Of the fallbacks, only the one in use counts; of files that the refiner reads, their content."""
    found, refiner = facts(setup, "precision", "refiner"), setup.config.refiner
    own = found[setup.name]
    if refiner.threshold is not None:
        own["bg_threshold"] = None
    return {**found, "refiner": {**found["refiner"], **refiner.files(setup.dataset)},
            setup.name: {**own, "fallback": own["fallback"][setup.seeds] if falls_back(setup) else None}}


def falls_back(setup: Setup) -> bool:
    """Whether the background threshold is the fallback."""
    return setup.settings.bg_threshold is None and setup.config.refiner.threshold is None and not setup.lists["val"]


def unused(setup: Setup) -> dict[str, str]:
    name, candidates = setup.config.refiner.method, setup.config.refiner.candidates(bool(setup.lists["val"]))
    read = {method.reads for method in candidates.values()}
    why = "" if name in candidates else f", which is {next(iter(candidates))} without val masks"
    return {role: f"refiner={name}{why}" for role in LEARNED if role not in read}


def check(setup: Setup) -> None:
    setup.require_mask_values()
    setup.config.refiner.check(setup.dataset, union(setup.lists.values()))


def prepare(context: StepContext) -> None:
    """Choose the refiner and the background threshold, which all images need."""
    from steps.parts.refining import choose_refiner

    choose_refiner(context)


def needs(setup: Setup) -> Needs | None:
    from steps.parts.refining import KEPT, OFFSETS
    from steps.runtime.affinity import planned_affinitynet
    from steps.runtime.needs import Estimate, labels_on_disk, weights

    estimate, has_val = Estimate(setup), bool(setup.lists["val"])
    methods = setup.config.refiner.candidates(has_val).values()
    trials = len(OFFSETS) * sum(method.after_threshold for method in methods) if has_val else 1
    memory = [method.memory(trials, estimate.on_gpu) for method in methods]
    if None in memory:
        return None
    images, originals = estimate.images("ids"), estimate.images("ids", original=True)
    passing = [originals.most(27, 7), *(images.most(*each) for each in memory)]   # maps up to their label, measured
    disk: float = labels_on_disk(originals, border=3)   # measured: 1.0 to 1.8, VOC's own masks 4.1
    held: float = 0
    read = {method.reads for method in methods}
    if "irn" in read:
        network = estimate.irn().eval()
        held += weights(network)
        passing.append(estimate.forwards(network, network.edge_map, images))
    if "affinity" in read:
        affinity = planned_affinitynet(setup).eval()
        held += weights(affinity)
        passing.append(estimate.forwards(affinity, affinity, images, batch=1))
    if setup.settings.save_soft:   # float16 at stride 4
        kept = any(method.maps_name for method in methods) * images.classes + ("irn" in read)
        disk += images.total(2 * kept * images.pixels / 16)
    if has_val and any(method.maps_name and method.after_threshold for method in methods):
        val = estimate.images("val")
        held += estimate.on_host(min(val.total(val.classes * val.pixels / 4), KEPT))   # float32 at stride 4
    return estimate.finish(disk, held, max(passing), files=1 + 2 * setup.settings.save_soft)


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.refining import Refining, choose_refiner, recorded_refiner

    chosen = choose_refiner(context)
    method = recorded_refiner(context, chosen)
    refining = Refining(context, [method])

    def make(image_id: str) -> Made:
        label, soft = refining(image_id, method, chosen["threshold"])
        contents = {f"{image_id}.png": encode_mask(label)}
        if context.settings.save_soft:
            contents |= {f"{kind}/{image_id}.npy": encode_array(array.cpu().numpy().astype(np.float16))
                         for kind, array in soft.items()}
        return contents, {"height": label.shape[0], "width": label.shape[1]}

    for_each_image(context, make, cpu_parallel=method.after_threshold and not method.reads)
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


def named(title: str, score: Mapping[str, Any]) -> tuple[str, str]:
    if score["threshold"] is None:
        return f"imported {title}", f"the imported {title} are"
    method = _refiner(score)
    return method.named() if method else ("refinement", "the refinement is")


def _refiner(score: Mapping[str, Any]) -> type[RefinerMethod] | None:
    """The refiner that a score names; None if there is no such file."""
    try:
        return load_method("refiner", score.get("refiner") or "")
    except ConfigError:
        return None


def advice(change: Change) -> list[Advice]:
    before, outcome = change.before, change.outcome
    if change.score["threshold"] is None:   # imported masks
        return []
    method = _refiner(change.score) or RefinerMethod
    found: list[Advice] = [*method.advice(change.cause, outcome.setting)]
    if method.reads and change.cause == "shrink":
        found.append((*outcome.longer(change.reads[method.reads], 6), f"{LEARNED[method.reads]} that were trained longer"))
    return found or [(f"{change.name}.bg_threshold", before["threshold"], f"as {before['title']} in {before['step']}")]


def soft(context: StepContext, image_id: str) -> dict[str, np.ndarray]:
    """The maps of the refiner of the run before the threshold, by their name, if it makes any: the walked maps."""
    from steps.parts.refining import Refining, recorded_refiner

    method = recorded_refiner(context, read_chosen(context.folder / THRESHOLD))
    return {method.maps_name: Refining(context, [method]).soft(image_id, method).cpu().numpy()} if method.maps_name else {}


def tune(context: StepContext, tuning: Tuning) -> Tuned | None:
    """The best walk and its background threshold."""
    return tune_walk(context, tuning)


def shown(context: StepContext) -> Iterator[Column | Curve | Table | Adjustable]:
    """Edge map, refined maps and pseudo mask of each image, the choice on val, and the background threshold to try."""
    from steps.parts.refined import adjustable_threshold, refined_columns

    yield from refined_columns(context)
    yield label_column(context, "pseudo mask")
    yield from choice_on_val(context)
    yield from adjustable_threshold(context, "pseudo masks", f"{context.name}.bg_threshold")
