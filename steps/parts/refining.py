"""Pseudo masks by each refiner of the seed maps, and the choice of the refiner on val masks."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steps.parts.refiner import Refiner, Unary
from steps.parts.thresholds import FALLBACK, THRESHOLD, count, for_each_mask, read_chosen
from steps.parts.walk import Walk
from steps.runtime.artifacts import Maps, write_json
from steps.runtime.concurrency import max_concurrent
from steps.runtime.context import StepContext, require_prepared
from wsss.cams.maps import at_size
from wsss.metrics.semantic import Confusion
from wsss.refinement.crf import DenseCRF, unary_from_labels, unary_from_scores
from wsss.refinement.masks import mask_of, with_background

OFFSETS = (-0.05, 0.0, 0.05, 0.10, 0.15)   # a CRF is tried at the best threshold without CRF plus each of these
WALKS_KEPT = 2**28   # bytes of walked maps of val that are kept for the CRF; further ones are computed again


class Refining:
    """Makes the pseudo masks of images."""

    def __init__(self, context: StepContext):
        self.context, self.settings = context, context.settings
        self.refiners = context.settings.refiners(bool(context.lists["val"]))
        self.maps = Maps(context.input("seeds"))
        if any(refiner.walks for refiner in self.refiners):
            self.walk   # noqa: B018  load it before several threads use it
        self._kept: dict[str, Tensor] = {}   # id -> walked maps (K, h, w) of a val image, for the CRF
        self._room = WALKS_KEPT if Refiner.walk_crf in self.refiners else 0

    @cached_property
    def walk(self) -> Walk:
        """The walk. Loads IRN, which other refiners do not need."""
        return Walk(self.context, self.maps)

    def __call__(self, image_id: str, refiner: Refiner, threshold: float) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The mask (H, W) uint8 in the size of the image: 0 background, class + 1; and with a walk "walk", the walked maps
        (K, h, w), and "edge", the edge map (h, w), at stride 4."""
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
        """The maps (K, H, W) in [0, 1] in the size of the image, walked or not, before the background threshold."""
        walked = self.walk(image_id)[0] if walks else None
        if walked is not None and walked.nbytes <= self._room:
            self._room -= walked.nbytes
            self._kept[image_id] = walked.cpu()
        return self._maps(image_id, walked, self.context.dataset.size(image_id))

    def crf_masks(self, image_id: str, thresholds: dict[bool, list[float]]) -> list[np.ndarray]:
        """The masks after a CRF at several `thresholds` of the seed maps (False) and of the walked maps (True)."""
        frame, scores = self._frame(image_id), []
        for walks, values in thresholds.items():
            maps = self._maps(image_id, self._walked_again(image_id) if walks else None, frame)
            scores += [with_background(maps, value) for value in values]
        size = self.context.dataset.size(image_id)
        return [mask_of(at_size(found, size), self.maps.classes(image_id)) for found in self._crf(image_id, scores)]

    def _walked_again(self, image_id: str) -> Tensor:
        kept = self._kept.pop(image_id, None)
        return self.walk(image_id)[0] if kept is None else kept.to(self.context.runtime.device)

    def _frame(self, image_id: str) -> tuple[int, int]:
        """(H, W) of the network input; smaller than the image with `data.max_side`."""
        facts = self.maps.facts(image_id)
        return facts["height"], facts["width"]

    def _maps(self, image_id: str, walked: Tensor | None, size: tuple[int, int]) -> Tensor:
        if walked is not None:
            return self.walk.soft(walked, image_id, size)
        return self.maps.at(image_id, size, self.context.runtime.device)

    def _crf(self, image_id: str, scores: list[Tensor]) -> Tensor:
        """Probabilities (n, K + 1, H, W) from n scores (K + 1, H, W), in the size of the network input; one lattice for all."""
        settings, stacked = self.settings.crf, torch.stack(scores)
        if stacked.shape[1] == 1:   # background alone
            return torch.ones_like(stacked)
        if settings.unary is Unary.labels:
            unary = unary_from_labels(stacked.max(dim=1).indices, stacked.shape[1], settings.gt_prob)
        else:
            unary = unary_from_scores(stacked, settings.sharpness)
        image = torch.from_numpy(self.context.dataset.image(image_id)).to(self.context.runtime.device)
        return DenseCRF(image, **settings.kernels).inference(unary, settings.iterations)


def choose_refiner(context: StepContext, refining: Refining) -> dict[str, Any]:
    """Choose the refiner and the background threshold and write `threshold.json`, with both sources and the trials on val."""
    path, settings = context.folder / THRESHOLD, context.settings
    if context.runtime.group.broadcast(path.exists):
        return read_chosen(path)
    require_prepared(context.runtime, path)
    val = context.lists["val"] if settings.chooses else ()
    tried = _try_on_val(context, refining, val) if val else []
    configured = {key: f"{context.name}.{key} in the configuration" for key in ("bg_threshold", "refiner")}
    chosen: dict[str, Any] = {"threshold": settings.bg_threshold, "source": configured["bg_threshold"],
                              "refiner": refining.refiners[0].value, "refiner_source": configured["refiner"]}
    by_val = f"best mIoU on the masks of {len(val)} val images"
    best = max(tried, key=lambda trial: trial["miou"], default=None)
    if settings.refiner is None:
        chosen["refiner_source"] = by_val if tried else "no val masks to choose by"
    if best:
        chosen["refiner"] = best["refiner"]
    if settings.bg_threshold is None:
        chosen["threshold"] = best["threshold"] if best else settings.fallback[context.seeds]
        chosen["source"] = by_val if best else FALLBACK
    if best:
        chosen["tried"] = [{key: trial[key] for key in ("refiner", "threshold", "miou")} for trial in tried]
        if "curve" in best:
            chosen["val_miou"] = best["curve"]
    if context.runtime.group.is_main:
        write_json(path, chosen)
    return chosen


def _try_on_val(context: StepContext, refining: Refining, val: tuple[str, ...]) -> list[dict[str, Any]]:
    """Score each refiner at its best threshold on val, or at the configured one: refiner, threshold, mIoU and, without CRF,
    the curve over all thresholds."""
    found, around, fixed = [], {}, context.settings.bg_threshold
    for walks in sorted({refiner.walks for refiner in refining.refiners}):
        counts = count(context, val, partial(refining.soft, walks=walks), refining.maps.classes,
                       f"val images, {'walk' if walks else 'seeds'}")
        threshold, curve = counts.best()[0] if fixed is None else fixed, counts.miou_curve()
        plain, with_crf = (Refiner.walk, Refiner.walk_crf) if walks else (Refiner.none, Refiner.crf)
        if plain in refining.refiners:
            found.append({"refiner": plain.value, "threshold": threshold, "curve": curve,
                          "miou": curve[counts.nearest(threshold)]})
        if with_crf in refining.refiners:
            around[walks] = [threshold] if fixed is not None else sorted({
                round(min(max(threshold + offset, 0.0), 1.0), 4) for offset in OFFSETS})
    if around:
        found += _try_crf(context, refining, val, around)
    return found


def _try_crf(context: StepContext, refining: Refining, val: tuple[str, ...],
             thresholds: dict[bool, list[float]]) -> list[dict[str, Any]]:
    """The best threshold before a CRF, for the seed maps and for the walked maps."""
    dataset = context.dataset
    pairs = [(walks, value) for walks, values in thresholds.items() for value in values]
    confusions = [Confusion(len(dataset.classes)) for _ in pairs]
    pixels = max((np.prod(dataset.working_size(image_id)) for image_id in val), default=0) * len(pairs)
    walks = any(refiner.walks for refiner in refining.refiners)
    at_once = max_concurrent(context.runtime.device, None if walks else int(pixels))

    def take(_: str, masks: list[np.ndarray], truth: np.ndarray) -> None:
        for confusion, mask in zip(confusions, masks, strict=True):
            confusion.update(mask, truth)
    for_each_mask(context, val, lambda image_id, _: refining.crf_masks(image_id, thresholds), take, at_once, "val images, CRF")
    scored = []
    for (walks, value), confusion in zip(pairs, confusions, strict=True):
        confusion.counts = context.runtime.reduce(confusion.counts)
        scored.append((walks, value, confusion.scores().miou))
    best = [max((score for score in scored if score[0] is walks), key=lambda score: score[2] or 0.0) for walks in thresholds]
    return [{"refiner": (Refiner.walk_crf if walks else Refiner.crf).value, "threshold": value, "miou": miou}
            for walks, value, miou in best]
