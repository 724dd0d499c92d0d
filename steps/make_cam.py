"""Make the multi-scale activation maps of the classes present in each image, by the method that `cam=NAME` chooses.

Official files: `step/make_cam.py` (IRN, LPCAM), for `cam=cam`. Reads the classifier; writes `ID.npy`, float16 (K, P): the map
of each of the K present classes at every scale on its own feature grid (`wsss.cams.maps`). Both official maps, `cam` and
`high_res`, are rebuilt from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.official import OfficialMaps
from steps.parts.shown import map_columns
from steps.runtime.artifacts import Maps, encode_array
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Column, Needs, Setup, StepSettings, facts
from wsss.errors import ConfigError

VERSION = 4
KIND = IMAGES
MAPS = {"": "CAM"}             # of the default method; `run` returns that of the method
OFFICIAL = OfficialMaps("cam_mask")


@dataclass
class Settings(StepSettings):
    """`make_cam.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # null: what the later steps read
    scales: list[float]
    epsilon: float               # added to a map's maximum before the map is divided by it

    def __post_init__(self) -> None:
        self.require(len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales), "scales",
                     "at least one scale, each above 0 and at most 8")
        self.require(len(set(self.scales)) == len(self.scales), "scales", "no scale twice")
        self.require(self.epsilon >= 0, "epsilon", "at least 0")


def identity(setup: Setup) -> dict[str, Any]:
    return facts(setup, *[] if setup.config.cam.gradients else ["precision"], "cam")


def check(setup: Setup) -> None:
    from steps.runtime.networks import planned_classifier

    try:
        setup.config.cam.check(planned_classifier(setup))
    except ConfigError as error:   # of a method, which does not know under which name it was chosen
        raise ConfigError(f"cam={setup.config.cam.method} does not fit the network: {error}") from error


def needs(setup: Setup) -> Needs | None:
    from steps.runtime.needs import Estimate, maps_on_disk, weights

    estimate, scales, method = Estimate(setup), setup.settings.scales, setup.methods["cam"]
    network, images = estimate.classifier(), estimate.images("ids")
    if (found := estimate.maps(method, network, images, scales)) is None:
        return None
    stride, passing = found
    return estimate.finish(maps_on_disk(images, stride, scales), weights(network), passing, files=1)


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.predictions import Seen, most_probable
    from steps.runtime.networks import feature_function, load_classifier
    from wsss.cams.maps import pack, pad_of
    from wsss.cams.method import multi_scale_maps

    method, scales = context.methods["cam"], list(context.settings.scales)
    if method.gradients:   # without autocast
        context = replace(context, runtime=replace(context.runtime, precision="float32"))
    classifier = load_classifier(context, method.gradients)
    features_of = feature_function(context, classifier)
    strides = (classifier.backbone.feature_stride, *classifier.backbone.strides)   # a method may use the grid of any stage

    def make(image_id: str) -> Made:
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        seen = Seen(classifier, features_of, image, context.runtime.device)
        maps = multi_scale_maps(method, classifier, seen.features_of, image, classes, scales, context.runtime.device,
                                classifier.backbone.normalisation)
        packed, maxima = pack(maps)
        (height, width), grids = image.shape[:2], [list(each.shape[1:]) for each in maps]
        facts = {"height": height, "width": width, "classes": classes, "scales": scales, "grids": grids,
                 "pad": pad_of(grids, height, width, strides, scales), "range": list(method.range),
                 "maxima": maxima.tolist(), "epsilon": context.settings.epsilon, "predicted": most_probable(seen.logits())}
        return {f"{image_id}.npy": encode_array(packed.cpu().numpy())}, facts

    for_each_image(context, make)
    return {"title": _title(context)}


def reader(folder: Path, n_classes: int) -> Callable[[str], np.ndarray]:
    return Maps(folder).packed


def shown(context: StepContext) -> Iterator[Column]:
    return map_columns(context, {"": _title(context)})


def _title(context: StepContext) -> str:
    method = context.methods["cam"]
    return method.title or method.method
