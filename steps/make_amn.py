"""Make the maps of AMN: the probabilities of the present classes in each pixel.

Paper: Lee, Kim & Shim, CVPR 2022; official file: `step/make_amn_cam.py`. Reads AMN and the confident labels that it was
trained on, which say where a map is divided by its range (`wsss.cams.amn`); writes `ID.npy`, float16 (K, P): the maps of the K
present classes in the size of the image and at stride 4, as the official code does, and with `save_background` that of the
background, `background/ID.npy` (1, P).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steps.parts.official import BACKGROUND, ONE_MAP, OfficialAMN
from steps.parts.scored_maps import map_reader
from steps.parts.shown import map_columns
from steps.runtime.artifacts import Labels, encode_array
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Column, Needs, Setup, StepSettings, facts

VERSION = 1
KIND = IMAGES
MAPS = {"": "AMN"}
LOG_ONLY = frozenset({"save_background"})   # changes no map of a class
OFFICIAL = OfficialAMN("amn_cam")


@dataclass
class Settings(StepSettings):
    """`make_amn.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # null: what the later steps read
    scales: list[float]
    save_background: bool        # also the map of the background, which no step reads but the official files have

    def __post_init__(self) -> None:
        self.require(len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales), "scales",
                     "at least one scale, each above 0 and at most 8")
        self.require(len(set(self.scales)) == len(self.scales), "scales", "no scale twice")


def identity(setup: Setup) -> dict[str, Any]:
    return facts(setup, "precision")


def added(setup: Setup) -> dict[str, Any]:
    return {BACKGROUND: ONE_MAP["by"]} if setup.settings.save_background else {}


def check(setup: Setup) -> None:
    setup.require_mask_values()   # of the labels that it reads


def needs(setup: Setup) -> Needs:
    from steps.runtime.amn import of_images
    from steps.runtime.needs import Estimate, weights

    estimate, settings = Estimate(setup), setup.settings
    network, images, labels = estimate.amn(), estimate.images("ids"), len(setup.dataset.classes) + 1
    stored = 2 * (images.classes + settings.save_background) * images.pixels * (1 + 1 / 16)   # float16
    passing = estimate.forwards(network, of_images(network), images, max(settings.scales))
    return estimate.finish(images.total(stored), weights(network), max(passing, images.most(4 * 3 * labels)),
                           1 + settings.save_background)


def run(context: StepContext) -> dict[str, Any]:
    from steps.runtime.amn import label_vector, load_amn
    from steps.runtime.networks import in_precision
    from wsss.cams.amn import amn_logits, amn_maps

    settings, network, read = context.settings, load_amn(context), Labels(context.input("labels"), len(context.dataset.classes))

    def maps_of(image_id: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The maps (1 + K, P) float16 of an image, the background first, and the facts of those of its classes."""
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        labels = label_vector(context, image_id).expand(2, -1)
        logits = amn_logits(in_precision(context, lambda pair: network(pair, labels)), image, settings.scales,
                            context.runtime.device, network.backbone.normalisation)
        (height, width), label = image.shape[:2], read(image_id, image.shape[:2])
        grids = [[height, width], [-(-height // 4), -(-width // 4)]]
        both = [amn_maps(logits, classes, label, grid).flatten(1) for grid in grids]   # (1 + K, h w) each
        packed = np.concatenate([each.cpu().numpy() for each in both], axis=1).astype(np.float16)
        return packed, {"height": height, "width": width, "classes": classes, "scales": list(settings.scales), "grids": grids,
                        "merge": "stored", "range": [0, 1]}

    def make(image_id: str) -> Made:
        packed, facts = maps_of(image_id)
        files, more = _of_background(image_id, packed) if settings.save_background else ({}, {})
        return {f"{image_id}.npy": encode_array(packed[1:]), **files}, {**facts, **more}

    def add(image_id: str, names: Sequence[str]) -> Made:
        return _of_background(image_id, maps_of(image_id)[0])

    for_each_image(context, make, added={BACKGROUND: ONE_MAP["by"]} if settings.save_background else {}, add=add)
    return {}


def _of_background(image_id: str, packed: np.ndarray) -> Made:
    """The file of the map of the background and its facts, from all maps (1 + K, P)."""
    return {f"{BACKGROUND}/{image_id}.npy": encode_array(packed[:1])}, {"added": {BACKGROUND: ONE_MAP}}


reader = map_reader


def shown(context: StepContext) -> Iterator[Column]:
    return map_columns(context, MAPS)
