"""The pseudo masks of one image after the other, by each way of refining the seed maps; and which way val masks choose."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steps.make_sem_seg_labels import THRESHOLD, Refiner, Unary
from steps.parts.thresholds import count, read_chosen
from steps.parts.walk import Walk
from steps.runtime.artifacts import Maps, write_json
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext, require_prepared
from steps.runtime.memory import trim_heap
from wsss.cams.maps import at_size
from wsss.metrics.semantic import Confusion, ThresholdCounts
from wsss.refinement.crf import DenseCRF, unary_from_labels, unary_from_scores
from wsss.refinement.masks import mask_of, with_background

OFFSETS = (-0.05, 0.0, 0.05, 0.10, 0.15)   # a CRF is tried at the best threshold before it and at these beside it
KEY = "make_sem_seg_labels"


class Refining:
    """Pseudo masks of one image after the other."""

    def __init__(self, context: StepContext):
        self.context, self.settings = context, context.settings
        self.refiners = context.settings.refiners(bool(context.lists["val"]))
        self.maps = Maps(context.seed_folder)
        self.walk = Walk(context) if any(refiner.walks for refiner in self.refiners) else None

    def __call__(self, image_id: str, refiner: Refiner, threshold: float) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The mask (H, W) uint8 in the size of the image: 0 background, class + 1; and of a walk the walked maps (K, h, w)
        and the edge map (h, w) at stride 4, as "walk" and "edge"."""
        kept: dict[str, Tensor] = {}
        if refiner.walks:
            kept["walk"], kept["edge"] = self.walk(image_id)
        size = self.context.dataset.size(image_id)
        if refiner.has_crf:
            maps = self._maps(image_id, kept.get("walk"), self._frame(image_id))
            scores = at_size(self._crf(image_id, [with_background(maps, threshold)])[0], size)
        else:
            scores = with_background(self._maps(image_id, kept.get("walk"), size), threshold)
        return mask_of(scores, self.maps.classes(image_id)), kept

    def soft(self, image_id: str, walks: bool) -> Tensor:
        """The maps (K, H, W) in [0, 1] in the size of the image, walked or not, that a background threshold cuts."""
        return self._maps(image_id, self.walk(image_id)[0] if walks else None, self.context.dataset.size(image_id))

    def crf_masks(self, image_id: str, thresholds: dict[bool, list[float]]) -> list[np.ndarray]:
        """The masks behind a CRF at several `thresholds` of the maps as they are (False) and of the walked ones (True)."""
        frame, scores = self._frame(image_id), []
        for walks, values in thresholds.items():
            maps = self._maps(image_id, self.walk(image_id)[0] if walks else None, frame)
            scores += [with_background(maps, value) for value in values]
        size = self.context.dataset.size(image_id)
        return [mask_of(at_size(found, size), self.maps.classes(image_id)) for found in self._crf(image_id, scores)]

    def _frame(self, image_id: str) -> tuple[int, int]:
        """(H, W) of the image that the networks see; `data.max_side` makes it smaller than the image."""
        facts = self.maps.facts(image_id)
        return facts["height"], facts["width"]

    def _maps(self, image_id: str, walked: Tensor | None, size: tuple[int, int]) -> Tensor:
        if walked is not None:
            return self.walk.soft(walked, image_id, size)
        return at_size(self.maps.map(image_id, "full", self.context.device), size)

    def _crf(self, image_id: str, scores: list[Tensor]) -> Tensor:
        """(n, K + 1, H, W) probabilities from n scores (K + 1, H, W), in the frame that the networks see; one lattice for all."""
        settings, stacked = self.settings.crf, torch.stack(scores)
        if stacked.shape[1] == 1:   # background alone
            return torch.ones_like(stacked)
        if settings.unary is Unary.labels:
            unary = unary_from_labels(stacked.max(dim=1).indices, stacked.shape[1], settings.gt_prob)
        else:
            unary = unary_from_scores(stacked, settings.sharpness)
        image = torch.from_numpy(self.context.dataset.image(image_id)).to(self.context.device)
        return DenseCRF(image, **settings.kernels).inference(unary, settings.iterations)


def choose_refiner(context: StepContext, refining: Refining) -> dict[str, Any]:
    """The refiner, the background threshold and the sources of both; what was tried on val is recorded in `threshold.json`."""
    path, settings = context.folder / THRESHOLD, context.settings
    if context.group.broadcast(path.exists):
        return read_chosen(path)
    require_prepared(context, path)
    val = context.lists["val"] if settings.chooses else ()
    tried = _try_on_val(context, refining, val) if val else []
    chosen: dict[str, Any] = {"threshold": settings.bg_threshold, "source": f"{KEY}.bg_threshold in the configuration",
                              "refiner": refining.refiners[0].value, "refiner_source": f"{KEY}.refiner in the configuration"}
    by_val = f"best mIoU on the masks of {len(val)} val images"
    best = max(tried, key=lambda trial: trial["miou"], default=None)
    if settings.refiner is None:
        chosen["refiner_source"] = by_val if tried else "no val masks to choose by"
    if best:
        chosen["refiner"] = best["refiner"]
    if settings.bg_threshold is None:
        chosen["threshold"] = best["threshold"] if best else getattr(settings.fallback, context.seed_maps)
        chosen["source"] = by_val if best else f"{KEY}.fallback (no val masks to choose by)"
    if best:
        chosen["tried"] = [{key: trial[key] for key in ("refiner", "threshold", "miou")} for trial in tried]
        if "curve" in best:
            chosen["val_miou"] = best["curve"]
    if context.group.is_main:
        write_json(path, chosen)
    return chosen


def _try_on_val(context: StepContext, refining: Refining, val: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each refiner at its best threshold on val, or at the configured one: refiner, threshold, mIoU and, without CRF, the curve
    over all thresholds."""
    found, around, fixed = [], {}, context.settings.bg_threshold
    for walks in sorted({refiner.walks for refiner in refining.refiners}):
        counts = count(context, val, lambda image_id, walks=walks: refining.soft(image_id, walks), refining.maps.classes,
                       f"val images, {'walk' if walks else 'seeds'}")
        threshold, miou = _best(counts, fixed)
        plain, with_crf = (Refiner.walk, Refiner.walk_crf) if walks else (Refiner.none, Refiner.crf)
        if plain in refining.refiners:
            curve = [counts.scores(i).miou for i in range(len(counts.thresholds))]
            found.append({"refiner": plain.value, "threshold": threshold, "miou": miou, "curve": curve})
        if with_crf in refining.refiners:
            around[walks] = [threshold] if fixed is not None else sorted({
                round(min(max(threshold + offset, 0.0), 1.0), 4) for offset in OFFSETS})
    if around:
        found += _try_crf(context, refining, val, around)
    return found


def _best(counts: ThresholdCounts, fixed: float | None) -> tuple[float, float]:
    """The best threshold, or the nearest to the configured one, and its mIoU."""
    if fixed is None:
        threshold, scores = counts.best()
        return threshold, scores.miou
    nearest = min(range(len(counts.thresholds)), key=lambda i: abs(counts.thresholds[i] - fixed))
    return fixed, counts.scores(nearest).miou


def _try_crf(context: StepContext, refining: Refining, val: tuple[str, ...],
             thresholds: dict[bool, list[float]]) -> list[dict[str, Any]]:
    """The best threshold in front of a CRF, of the maps as they are and of the walked ones."""
    dataset = context.dataset
    pairs = [(walks, value) for walks, values in thresholds.items() for value in values]
    confusions = [Confusion(len(dataset.classes)) for _ in pairs]
    pixels = max((np.prod(dataset.working_size(image_id)) for image_id in val), default=0) * len(pairs)
    at_once = max_concurrent(context.device, int(pixels) if refining.walk is None else None)
    made = ordered_map(context, lambda image_id: refining.crf_masks(image_id, thresholds), context.part(val), at_once)
    with closing(made):
        for number, (image_id, result) in enumerate(made, start=1):
            truth = dataset.mask(image_id)
            for confusion, mask in zip(confusions, result(), strict=True):
                confusion.update(mask, truth)
            context.progress(number, len(val), "val images, CRF")
            trim_heap()
    scored = []
    for (walks, value), confusion in zip(pairs, confusions, strict=True):
        confusion.counts = context.reduce(confusion.counts)
        scored.append((walks, value, confusion.scores().miou))
    best = [max((score for score in scored if score[0] is walks), key=lambda score: score[2]) for walks in thresholds]
    return [{"refiner": (Refiner.walk_crf if walks else Refiner.crf).value, "threshold": value, "miou": miou}
            for walks, value, miou in best]
