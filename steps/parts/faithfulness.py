"""The faithfulness of the maps of one image (`Measuring`), and its summary over all images: means, curves, and where maps are no
better than controls that do not know the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext
from steps.runtime.networks import feature_function, in_precision, load_classifier
from wsss.cams.maps import at_size
from wsss.cams.method import multi_scale_maps
from wsss.data.images import normalise
from wsss.families import from_facts
from wsss.metrics.faithfulness import (
    area,
    blurred,
    confidence_change,
    edge_map,
    random_map,
    ranking,
    replaced,
    road_images,
)
from wsss.metrics.randomisation import cascading, rank_correlation, ssim, weight_layers
from wsss.seeding import derived_seed, generator

RANDOM, EDGES = CONTROLS = ("random", "edges")
BLUR_OF = 224                       # pixels: the blur of a baseline is given for images of this size (RISE)
SURE = 2.0                          # standard errors by which a map must be better than a control
SIMILAR = 0.5                       # a higher rank correlation with all layers random: the maps hardly depend on the network


class Measure(NamedTuple):
    heading: str
    sign: int        # 1: higher is better, -1: lower
    curve: str = ""  # the title of its curve, if it is the area under one, or its mean

    @property
    def head(self) -> str:
        """The heading with an arrow to better values."""
        return f"{self.heading} {'↑' if self.sign > 0 else '↓'}"


MEASURES = {"deletion": Measure("deletion", -1, "Deletion"), "insertion": Measure("insertion", 1, "Insertion"),
            "drop": Measure("average drop", -1), "increase": Measure("average increase", 1),
            "morf": Measure("ROAD MoRF", -1, "ROAD, most relevant pixels first"),
            "lerf": Measure("ROAD LeRF", 1, "ROAD, least relevant pixels first")}
Measured = dict[str, Any]   # of a map: name of a measure -> probabilities of its curve; "masked": that of the image times the map


def shares(steps: int) -> list[float]:
    """The shares of the pixels that deletion and insertion have changed after each step, from 0 to 1."""
    return [number / steps for number in range(steps + 1)]


class Measuring:
    """Measures images with the finished classifier; `maps`: the maps by kind."""

    def __init__(self, context: StepContext, maps: Mapping[str, Maps]):
        self.context, self.settings, self.maps = context, context.settings, maps
        self.net = load_classifier(context)
        probabilities = from_facts("classifier", self.net.facts["classifier"]).probabilities
        self._probabilities = in_precision(context, lambda images: probabilities(self.net(images).float()))

    def __call__(self, image_id: str) -> dict[str, list[Measured]]:
        """Kind of map -> what was measured of each class of the image, in order."""
        pixels, classes = self.context.dataset.image(image_id), list(self.context.dataset.labels[image_id])
        size, device = pixels.shape[:2], self.context.runtime.device
        image = normalise(pixels, device, self.net.backbone.normalisation)
        kinds = {kind: at_size(maps.at(image_id, "full", device), size).float().cpu().numpy() for kind, maps in self.maps.items()}
        cell = self.net.backbone.feature_stride
        kinds[RANDOM] = np.stack([random_map(size, cell, self._draws(RANDOM, image_id, str(index))) for index in classes])
        kinds[EDGES] = np.broadcast_to(edge_map(pixels), (len(classes), *size))
        return {kind: [self._one(image, each, index, self._draws(kind, image_id, "ties", str(index)))
                       for each, index in zip(maps, classes)] for kind, maps in kinds.items()}

    def _draws(self, *what: str) -> np.random.Generator:
        return generator(self.context.seed, self.context.name, *what)

    def _one(self, image: Tensor, saliency: np.ndarray, index: int, draws: np.random.Generator) -> Measured:
        """Measure the map (H, W) of a class; `image` is (3, H, W), normalised."""
        settings, order, grid = self.settings, ranking(saliency, draws), shares(self.settings.steps)
        found: Measured = {
            "deletion": self._of(replaced(image, self._baseline(settings.deletion, image), order, grid), index),
            "insertion": self._of(replaced(self._baseline(settings.insertion, image), image, order, grid), index)}
        masked = image * torch.from_numpy(saliency.clip(0, 1)).to(image)
        found["masked"] = self._of(masked[None], index)[0]
        if settings.road:
            known = image.cpu().numpy()
            for name, first in (("morf", order), ("lerf", order[::-1])):
                found[name] = self._of(road_images(known, first, settings.road, settings.road_noise, draws), index)
        return found

    def _baseline(self, name: str, image: Tensor) -> Tensor:
        if name == "mean":
            return torch.zeros_like(image)
        scale = max(image.shape[1:]) / BLUR_OF
        return blurred(image, 2 * max(1, round(self.settings.blur_size * scale / 2 - 0.5)) + 1, self.settings.blur_sigma * scale)

    def _of(self, images: Tensor, index: int) -> list[float]:
        """The probability of a class in each of the images (n, 3, H, W)."""
        found = []
        with torch.inference_mode():
            for part in images.split(self.settings.batch):
                found += self._probabilities(part.to(self.context.runtime.device))[:, index].tolist()
        return [round(value, 6) for value in found]


class Randomising:
    """Compares the maps of the method `cam` with those that it makes of networks whose layers are random."""

    def __init__(self, context: StepContext):
        self.context, self.method = context, context.methods["cam"]
        self.net = load_classifier(context, gradients=True)   # not folded: the norms stay as they are

    def __call__(self, image_id: str) -> dict[str, list[list[float]]]:
        """Part of the network -> for each class rank correlation and SSIM with the trained network's map, when that part and all
        after it are random; and of a random map (`RANDOM`)."""
        image, device = self.context.dataset.image(image_id), self.context.runtime.device
        classes, net = list(self.context.dataset.labels[image_id]), deepcopy(self.net)
        trained = self._maps(net, image, classes)
        layers = weight_layers(net, normalise(image, device, net.backbone.normalisation)[None])
        found = {part: _similar(trained, self._maps(net, image, classes))
                 for part in cascading(layers, derived_seed(self.context.seed, self.context.name, "weights"))}
        draws = generator(self.context.seed, self.context.name, "map", image_id)
        random = [random_map(image.shape[:2], net.backbone.feature_stride, draws) for _ in classes]
        return found | {RANDOM: _similar(trained, random)}

    def _maps(self, net: Any, image: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        maps = multi_scale_maps(self.method, net, feature_function(self.context, net), image, classes, [1.0],
                                self.context.runtime.device, net.backbone.normalisation)
        return at_size(maps[0].float(), image.shape[:2]).cpu().numpy()


def _similar(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> list[list[float]]:
    return [[round(rank_correlation(a, b), 6), round(ssim(a, b), 6)] for a, b in zip(first, second)]


def values_of(measured: Measured) -> dict[str, float]:
    """The value of each measure of one map."""
    full = measured["deletion"][0]
    drop, increase = confidence_change(full, measured["masked"])
    found = {"deletion": area(np.array(measured["deletion"])), "insertion": area(np.array(measured["insertion"])),
             "drop": drop, "increase": increase}
    return found | {name: float(np.mean(measured[name])) for name in ("morf", "lerf") if name in measured}


def summary(images: Sequence[dict[str, list[Measured]]]) -> dict[str, Any]:
    """Kind -> "values", the mean of each measure over all maps, and "curves", the mean curves; the same maps in each kind."""
    found = {}
    for kind in images[0]:
        maps = [measured for image in images for measured in image[kind]]
        table = _table(maps)
        found[kind] = {"values": {name: float(values.mean()) for name, values in table.items()},
                       "curves": {name: np.mean([measured[name] for measured in maps], axis=0).tolist()
                                  for name, measure in MEASURES.items() if measure.curve and name in table}}
    return found


def _table(maps: Sequence[Measured]) -> dict[str, np.ndarray]:
    """The values (n,) of each measure of n maps."""
    each = [values_of(measured) for measured in maps]
    return {name: np.array([values[name] for values in each]) for name in each[0]}


def verdicts(images: Sequence[dict[str, list[Measured]]]) -> list[tuple[str, str]]:
    """Each kind of map that is not better than both controls in all measures, and the rest of a sentence about its maps.

    Better: the mean of the differences, map by map, is more than `SURE` of its standard errors on the right side of 0.
    """
    tables = {kind: _table([measured for image in images for measured in image[kind]]) for kind in images[0]}
    controls, sentences = {kind: tables.pop(kind) for kind in CONTROLS}, []
    for kind, table in tables.items():
        failed = []
        for name, values in table.items():
            sign = MEASURES[name].sign
            beside = [f"{control} {100 * of[name].mean():.1f}" for control, of in controls.items()
                      if not _better(sign * (values - of[name]))]
            if beside:
                failed.append(f"{MEASURES[name].heading} {100 * values.mean():.1f} ({', '.join(beside)})")
        if failed:
            sentences.append((kind, f"are not clearly better than maps that do not know the network in {len(failed)} of "
                                    f"{len(table)} measures of faithfulness: {', '.join(failed)}."))
    return sentences


def _better(differences: np.ndarray) -> bool:
    error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.inf
    return bool(differences.mean() > SURE * error) if np.isfinite(error) else False


def similarities(images: Sequence[dict[str, list[list[float]]]]) -> dict[str, list[float]]:
    """Part of the network -> the mean rank correlation and SSIM of all maps."""
    return {part: np.mean([pair for image in images for pair in image[part]], axis=0).tolist() for part in images[0]}


def dependence(found: Mapping[str, Sequence[float]], title: str, images: int) -> list[tuple[str, str]]:
    """The method and the rest of a sentence, if its maps stay similar when all layers are random."""
    last = [part for part in found if part != RANDOM][-1]
    correlation, alike = found[last]
    if correlation <= SIMILAR:
        return []
    return [(title, f"hardly depend on what the network has learned: with random weights in all layers their rank "
                    f"correlation with the maps of the trained network is {correlation:.2f}, SSIM {alike:.2f} (a random map: "
                    f"{found[RANDOM][0]:.2f}, {found[RANDOM][1]:.2f}), on {images} images.")]
