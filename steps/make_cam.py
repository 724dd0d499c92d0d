"""Make the multi-scale activation maps of the classes present in each image, by the method that `cam=NAME` chooses.

In the same pass each of the methods that `also_score` names makes maps, which are scored but not read by later steps.

Official files: `step/make_cam.py` (IRN, LPCAM), for `cam=cam`. Reads the classifier; writes `ID.npy`, float16 (K, P): the map
of each of the K present classes at every scale on its own feature grid (`wsss.cams.maps`), and `NAME/ID.npy` of each further
method. Both official maps, `cam` and `high_res`, are rebuilt from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.official import OfficialMaps
from steps.parts.outcome import MARGIN, Outcome, Remark
from steps.parts.pieces import Column
from steps.parts.scored_maps import map_reader
from steps.parts.shown import map_columns
from steps.runtime.artifacts import encode_array
from steps.runtime.context import StepContext, further, settings_of
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Needs, Setup, StepSettings, facts
from wsss.cams.crops import RESIZED, ten_crop_maps
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from wsss.cams.method import CamMethod
    from wsss.cams.method import Features as FeatureFunction
    from wsss.classifiers.classifier import Classifier

VERSION = 4
KIND = IMAGES
MAPS = {"": "CAM"}             # of the default method; `run` returns that of the method
LOG_ONLY = frozenset({"also_score"})   # changes no main map; `added` has what the further ones depend on
OFFICIAL = OfficialMaps("cam_mask")


@dataclass
class Settings(StepSettings):
    """`make_cam.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # null: what the later steps read
    scales: list[float]
    crops: int                   # 0: whole images at all scales | 10: Caffe's ten crops (`wsss.cams.crops`), at scale 1 alone
    epsilon: float               # added to a map's maximum before the map is divided by it
    also_score: list[str] = field(metadata=further("cam"))   # further methods, files of conf/cam/, whose maps are scored, too

    def __post_init__(self) -> None:
        self.require(len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales), "scales",
                     "at least one scale, each above 0 and at most 8")
        self.require(len(set(self.scales)) == len(self.scales), "scales", "no scale twice")
        self.require(self.crops in (0, 10), "crops", "0 (whole images) or 10 (Caffe's ten crops)")
        self.require(not self.crops or self.scales == [1.0], "scales", f"[1.0] with {self.step}.crops=10")
        self.require(self.epsilon >= 0, "epsilon", "at least 0")


def identity(setup: Setup) -> dict[str, Any]:
    found = facts(setup, *[] if setup.config.cam.gradients else ["precision"], "cam")
    if not setup.settings.crops:   # maps that were made before there were crops are the same
        del found[setup.name]["crops"]
    return found


def saved(settings: Settings) -> list[str]:
    return ["", *settings.also_score]


def added(setup: Setup) -> dict[str, Any]:
    return _depends_on(setup.further, settings_of(setup.config.precision))


def _depends_on(methods: Mapping[str, CamMethod], precision: str) -> dict[str, Any]:
    """What the maps by further methods depend on besides the classifier, the scales and epsilon, in the order of their names."""
    return {name: {**settings_of(method.facts), **({} if method.gradients else {"precision": precision})}
            for name, method in sorted(methods.items())}


def check(setup: Setup) -> None:
    from steps.runtime.networks import planned_classifier

    main, key = setup.config.cam, f"{setup.name}.also_score"
    for name, method in setup.further.items():
        setup.settings.require(method != main, "also_score", f"other methods than that of the main maps, cam={name}")
    for how, method in {f"cam={main.method}": main, **{f"{key}: {name}": each for name, each in setup.further.items()}}.items():
        try:
            method.check(planned_classifier(setup))
        except ConfigError as error:   # of a method, which does not know under which name it was chosen
            raise ConfigError(f"{how} does not fit the network: {error}") from error


def needs(setup: Setup) -> Needs | None:
    from steps.runtime.needs import Estimate, maps_on_disk, weights

    estimate, scales, methods = Estimate(setup), setup.settings.scales, [setup.methods["cam"], *setup.further.values()]
    images, networks, crops = estimate.images("ids"), len({method.gradients for method in methods}), setup.settings.crops
    images = images.resized(RESIZED) if crops else images
    found = [estimate.maps(method, estimate.classifier(), images, scales) for method in methods]
    known = [each for each in found if each is not None]
    if len(known) < len(methods):
        return None
    return estimate.finish(sum(maps_on_disk(images, 1 if crops else stride, scales) for stride, _ in known),
                           networks * weights(estimate.classifier()), max(passing for _, passing in known), files=len(methods))


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.predictions import Seen, most_probable
    from wsss.cams.crops import ten_crop_logits
    from wsss.cams.maps import pack, pad_of
    from wsss.cams.method import multi_scale_maps

    main, methods, scales = context.methods["cam"], context.further, list(context.settings.scales)
    by = _depends_on(methods, context.runtime.precision)
    networks = {gradients: _load(context, gradients) for gradients in {each.gradients for each in (main, *methods.values())}}

    def maps_of(method: CamMethod, image: np.ndarray, classes: list[int],
                seen: FeatureFunction | None = None) -> tuple[bytes, dict[str, Any]]:
        classifier, features_of, _ = networks[method.gradients]
        features_of = seen or features_of
        where, crops = (context.runtime.device, classifier.backbone.normalisation), context.settings.crops
        if crops:
            maps = ten_crop_maps(method, classifier, features_of, image, classes, *where)
        else:
            maps = multi_scale_maps(method, classifier, features_of, image, classes, scales, *where)
        packed, maxima = pack(maps)
        strides = (classifier.backbone.feature_stride, *classifier.backbone.strides)   # a method may use the grid of any stage
        grids, (height, width) = [list(each.shape[1:]) for each in maps], image.shape[:2]
        return encode_array(packed.cpu().numpy()), {
            "grids": grids, "pad": 1 if crops or method.exact_grids else pad_of(grids, height, width, strides, scales),
            "range": list(method.range), "maxima": maxima.tolist(), **({} if method.merge == "sum" else {"merge": method.merge})}

    def add(image_id: str, names: Sequence[str]) -> Made:
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        made = {name: maps_of(methods[name], image, classes) for name in names}
        return ({f"{name}/{image_id}.npy": content for name, (content, _) in made.items()},
                {"added": {name: {**facts, "by": by[name]} for name, (_, facts) in made.items()}})

    def make(image_id: str) -> Made:
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        classifier, features_of, logits_of = networks[main.gradients]
        seen = Seen(classifier, features_of, logits_of, image, context.runtime.device)
        content, facts = maps_of(main, image, classes, seen.features_of)
        logits = ten_crop_logits(logits_of, image, context.runtime.device, classifier.backbone.normalisation) \
            if context.settings.crops else seen.logits()
        files, more = add(image_id, list(by)) if by else ({}, {})
        height, width = image.shape[:2]
        return {f"{image_id}.npy": content, **files}, {
            "height": height, "width": width, "classes": classes, "scales": scales, **facts, "epsilon": context.settings.epsilon,
            "predicted": most_probable(logits), **more}

    for_each_image(context, make, added=by, add=add)
    return {"title": main.title or main.method}


def _load(context: StepContext, gradients: bool) -> tuple[Classifier, FeatureFunction, FeatureFunction]:
    """The classifier for methods with or without `gradients`, and the functions that compute its features and its logits."""
    from steps.runtime.networks import feature_function, load_classifier, logit_function

    if gradients:   # without autocast
        context = replace(context, runtime=replace(context.runtime, precision="float32"))
    classifier = load_classifier(context, gradients)
    return classifier, feature_function(context, classifier), logit_function(context, classifier)


reader = map_reader


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """A remark if maps by a further method are better than those that go on: that of the best."""
    points = {each: found for each in outcome.setting(f"{name}.also_score", [])
              if (found := outcome.points(f"{name}_{each}", name)) is not None}
    best = max(points, key=lambda each: points[each], default=None)
    if best is None or points[best] <= MARGIN:
        return []
    better, main = (outcome.scores[kind]["title"] for kind in (f"{name}_{best}", name))
    text = f"{better} is {points[best]:.1f} points above {main}, from which the later steps are made."
    return [Remark(name, "further", text, advice=[("cam", best, f"make them from {better}")])]


def shown(context: StepContext) -> Iterator[Column]:
    main = context.methods["cam"]
    return map_columns(context, {"": main.title or main.method,
                                 **{name: method.titled(name) for name, method in context.further.items()}})
