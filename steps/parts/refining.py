"""Pseudo masks by a refiner of the seed maps (`wsss.refiners`), and the choice of refiner and threshold on val masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steps.parts.thresholds import THRESHOLD, Chosen, by_rule, count, fallen_back, for_each_mask, is_flat, read_chosen
from steps.runtime.affinity import load_read
from steps.runtime.artifacts import Maps, write_json
from steps.runtime.concurrency import max_concurrent
from steps.runtime.context import StepContext, require_prepared
from steps.runtime.networks import network_input
from wsss.cams.maps import at_size, from_stride_4
from wsss.data.saliency import read_saliency
from wsss.errors import ArgumentError, ArtifactError
from wsss.finite import require_finite
from wsss.metrics.semantic import Confusion
from wsss.refinement.masks import mask_of, with_background
from wsss.refiners.method import RefinerMethod, SeedImage

# A method that refines after the background threshold is tried at the best threshold of its maps plus each of these.
OFFSETS = (-0.05, 0.0, 0.05, 0.10, 0.15)
KEPT = 2**28   # bytes of refined maps of val that are kept to be tried at thresholds; further ones are computed again
Trial = tuple[RefinerMethod, float]   # a refiner and a background threshold


class Refining:
    """Makes the pseudo masks of images by any of `methods`."""

    def __init__(self, context: StepContext, methods: Iterable[RefinerMethod]):
        methods = tuple(methods)
        self.context, self.maps = context, Maps(context.input("seeds"))
        self.networks = load_read(context, methods)
        self._kept: dict[tuple[str, str], Tensor] = {}   # (maps_key, id) -> refined maps (K, h, w) of a val image
        self._room = KEPT if any(method.maps_name and method.after_threshold for method in methods) else 0

    def __call__(self, image_id: str, method: RefinerMethod, threshold: float) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The mask (H, W) uint8 in the size of the image: 0 background, class + 1; and as far as the method makes them its maps
        (K, h, w), by their name, and "edge", the edge map (h, w), at stride 4."""
        image = self.image(image_id)
        made = self.made(image, method)
        return self._masks(image_id, image, [(method, threshold)], [made.get(method.maps_name)])[0], made

    def image(self, image_id: str) -> SeedImage:
        """What a refiner reads of an image."""
        device, dataset, computed = self.context.runtime.device, self.context.dataset, partial(self._computed, image_id)
        return SeedImage(lambda: self.maps.at(image_id, "strided", device),
                         lambda pad_to: computed("irn", lambda irn, pair: irn.edge_map(pair, pad_to), flip=True),
                         lambda: torch.from_numpy(dataset.image(image_id)).to(device), image_id,
                         features=lambda: computed("affinity", lambda network, image: network(image)),
                         saliency=lambda: torch.from_numpy(read_saliency(dataset, image_id, self._frame(image_id))).to(device))

    def refined(self, image: SeedImage, method: RefinerMethod) -> Tensor | None:
        """The maps (K, h, w) at stride 4 before the threshold, in [0, 1]; None: the seed maps as they are.

        Raises ArgumentError if the method returns another shape.
        """
        if not method.maps_name:
            return None
        with torch.inference_mode():
            maps = method.maps(image)
            _require_shape("maps", method, maps, image.seeds.shape)
            return _divided(method, maps)

    def made(self, image: SeedImage, method: RefinerMethod) -> dict[str, Tensor]:
        """The maps before the threshold by their name, and "edge", the edge map (h, w), as far as the method makes them."""
        made: dict[str, Tensor] = {}
        if (maps := self.refined(image, method)) is not None:
            made[method.maps_name] = maps
        for edge in image.edges.values():
            made["edge"] = edge
        return made

    def in_size(self, image_id: str, method: RefinerMethod, refined: Tensor | None, size: Sequence[int]) -> Tensor:
        """The maps (K, H, W) in [0, 1] at a size, before the background threshold.

        Refined maps are upsampled x4, cropped (official) and, if the method says so, divided by their common maximum.
        """
        if refined is None:
            return self.maps.at(image_id, size, self.context.runtime.device)
        return _divided(method, from_stride_4(refined, self._frame(image_id), size))

    def soft(self, image_id: str, method: RefinerMethod) -> Tensor:
        """The maps (K, H, W) in [0, 1] in the size of the image, before the background threshold."""
        refined = self.refined(self.image(image_id), method)
        if refined is not None and refined.nbytes <= self._room:
            self._room -= refined.nbytes
            self._kept[method.maps_key, image_id] = refined.cpu()
        return self.in_size(image_id, method, refined, self.context.dataset.size(image_id))

    def masks(self, image_id: str, trials: Sequence[Trial]) -> list[np.ndarray]:
        """The masks by several refiners and thresholds."""
        image, found = self.image(image_id), {}
        for method, _ in trials:
            if method.maps_key not in found:
                kept = self._kept.pop((method.maps_key, image_id), None)
                found[method.maps_key] = self.refined(image, method) if kept is None else kept.to(self.context.runtime.device)
        return self._masks(image_id, image, trials, [found[method.maps_key] for method, _ in trials])

    def _masks(self, image_id: str, image: SeedImage, trials: Sequence[Trial],
               refined: Sequence[Tensor | None]) -> list[np.ndarray]:
        """The masks of `trials`, each with its refined maps; those with one function `scores` share a call of it."""
        size, classes = self.context.dataset.size(image_id), self.maps.classes(image_id)
        found: dict[int, np.ndarray] = {}   # by number of the trial
        for key in {method.scores_key: None for method, _ in trials}:
            numbers = [number for number, (method, _) in enumerate(trials) if method.scores_key == key]
            method = trials[numbers[0]][0]
            frame = self._frame(image_id) if method.after_threshold else size
            scores = torch.stack([with_background(self.in_size(image_id, trials[number][0], refined[number], frame),
                                                  trials[number][1]) for number in numbers])   # (n, K + 1, H, W)
            if method.after_threshold and classes:
                before, scores = scores, method.scores(image, scores)
                _require_shape("scores", method, scores, before.shape)
            found |= {number: mask_of(at_size(each, size), classes) for number, each in zip(numbers, scores, strict=True)}
        return [found[number] for number in range(len(trials))]

    def _computed(self, image_id: str, role: str, compute: Callable[[Any, Tensor], Tensor], flip: bool = False) -> Tensor:
        """The first of what the network of a role makes of an image, and with `flip` of its mirror image, in float32."""
        if role not in self.networks:
            raise ArgumentError(f"the refiner asks for what the network {role!r} computes, which is not loaded: expected "
                                f"reads = {role!r} in its class")
        with torch.inference_mode(), self.context.runtime.autocast():
            made = compute(self.networks[role], network_input(self.context, self.networks[role], image_id, flip)).float()[0]
        return require_finite(made, f"the values that the network {role!r} computes of {image_id}")

    def _frame(self, image_id: str) -> tuple[int, int]:
        """(H, W) of the network input; smaller than the image with `data.max_side`."""
        facts = self.maps.facts(image_id)
        return facts["height"], facts["width"]


def _divided(method: RefinerMethod, maps: Tensor) -> Tensor:
    highest = maps.max() if maps.numel() else maps.new_zeros(())
    return maps / highest if method.divided and highest > 0 else maps


def _require_shape(function: str, method: RefinerMethod, found: Tensor, expected: Sequence[int]) -> None:
    if found.shape != torch.Size(expected):
        raise ArgumentError(f"{method}: {function} returned {tuple(found.shape)}, expected {tuple(expected)}")


def recorded_refiner(context: StepContext, record: Mapping[str, Any]) -> RefinerMethod:
    """The refiner that a record of pseudo masks (`threshold.json`) names. Raises ArtifactError if the method has no such one."""
    candidates, name = context.methods["refiner"].candidates(True), record.get("refiner")
    if name not in candidates:
        raise ArtifactError(f"{context.folder / THRESHOLD} does not name a refiner that exists ({name!r}, expected "
                            f"{' or '.join(candidates)}). Make the pseudo masks again")
    return candidates[name]


def choose_refiner(context: StepContext) -> dict[str, Any]:
    """Choose the refiner and the background threshold and write `threshold.json`, with both sources and the trials on val."""
    path, fixed, val = context.folder / THRESHOLD, context.settings.bg_threshold, context.lists["val"]
    if context.runtime.group.broadcast(path.exists):
        return read_chosen(path)
    require_prepared(context.runtime, path)
    method = context.methods["refiner"]
    candidates = method.candidates(bool(val))
    tried = _try_on_val(context, candidates, val) if val else []
    best = max(tried, key=lambda trial: trial["miou"] or 0.0, default=None)
    by_val = f"best mIoU on the masks of {len(val)} val images"
    chosen: dict[str, Any] = {"threshold": fixed, "source": f"{context.name}.bg_threshold in the configuration",
                              "refiner": best["refiner"] if best else next(iter(candidates)),
                              "refiner_source": "refiner in the configuration"}
    if method.threshold is not None:
        fixed = chosen["threshold"] = method.threshold
        chosen["source"] = "refiner in the configuration, which replaces the background threshold"
    if len(method.candidates(True)) > 1:
        chosen["refiner_source"] = by_val if tried else "no val masks to choose by"
    if fixed is None:
        fallback = context.settings.fallback[context.seeds]
        same = is_flat([miou for trial in tried for miou in trial.get("curve", [trial["miou"]])])
        chosen |= {"threshold": best["threshold"], "source": by_val} if best and not same else fallen_back(
            fallback, partial(_by_rule, context, candidates[chosen["refiner"]]), len(val)).as_dict()
    if best:
        chosen["tried"] = [{key: trial[key] for key in ("refiner", "threshold", "miou")} for trial in tried]
        if "curve" in best:
            chosen["val_miou"] = best["curve"]
    if context.runtime.group.is_main:
        write_json(path, chosen)
    return chosen


def _by_rule(context: StepContext, method: RefinerMethod, why: str) -> Chosen:
    """The threshold of the maps that the refiner cuts, by the rule."""
    refining = Refining(context, [method])

    def soft(image_id: str) -> Tensor:
        refined = refining.refined(refining.image(image_id), method)
        return refining.in_size(image_id, method, refined, context.dataset.working_size(image_id))
    return by_rule(context, refining.maps, f"{context.name}.bg_threshold", why, soft)


def _try_on_val(context: StepContext, candidates: Mapping[str, RefinerMethod], val: tuple[str, ...]) -> list[dict[str, Any]]:
    """Score each refiner at its best threshold on val, or at the configured one: refiner, threshold, mIoU and, if it refines
    before the threshold only, the curve over all thresholds."""
    refining, fixed = Refining(context, candidates.values()), context.settings.bg_threshold
    found, trials = [], []
    for key in {method.maps_key: None for method in candidates.values()}:
        group = {name: method for name, method in candidates.items() if method.maps_key == key}
        method = next(iter(group.values()))
        counts = count(context, val, partial(refining.soft, method=method), refining.maps.classes,
                       f"val images, {method.maps_name or 'seeds'}")
        threshold, curve = counts.best()[0] if fixed is None else fixed, counts.miou_curve()
        around = [threshold] if fixed is not None else sorted({
            round(min(max(threshold + offset, 0.0), 1.0), 4) for offset in OFFSETS})
        for name, method in group.items():
            if method.after_threshold:
                trials += [(name, method, value) for value in around]
            else:
                found.append({"refiner": name, "threshold": threshold, "curve": curve, "miou": curve[counts.nearest(threshold)]})
    return found + _try_thresholds(context, refining, val, trials) if trials else found


def _try_thresholds(context: StepContext, refining: Refining, val: tuple[str, ...],
                    trials: Sequence[tuple[str, RefinerMethod, float]]) -> list[dict[str, Any]]:
    """The best of the `trials` (name, refiner, threshold) of each name."""
    dataset = context.dataset
    confusions = [Confusion(len(dataset.classes)) for _ in trials]
    pixels = max((np.prod(dataset.working_size(image_id)) for image_id in val), default=0) * len(trials)
    at_once = max_concurrent(context.runtime.device, None if refining.networks else int(pixels))

    def take(_: str, masks: list[np.ndarray], truth: np.ndarray) -> None:
        for confusion, mask in zip(confusions, masks, strict=True):
            confusion.update(mask, truth)
    for_each_mask(context, val, lambda image_id, _: refining.masks(image_id, [trial[1:] for trial in trials]), take, at_once,
                  "val images, thresholds")
    best: dict[str, dict[str, Any]] = {}
    for (name, _, threshold), confusion in zip(trials, confusions, strict=True):
        confusion.counts = context.runtime.reduce(confusion.counts)
        miou = confusion.scores().miou
        if name not in best or (miou or 0.0) > (best[name]["miou"] or 0.0):
            best[name] = {"refiner": name, "threshold": threshold, "miou": miou}
    return list(best.values())
