"""Segment images by the trained network.

Reads the network of train_seg and images, no labels; writes `ID.png`, palette PNGs in the size of the image, and with a dense
CRF (`crf`) also `before_crf/ID.png`, those before it. The probabilities of all scales and mirror images are averaged. A large
image is segmented in windows (`window`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.parts.pieces import Column
from steps.parts.shown import label_column
from steps.runtime.artifacts import Labels
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Lists, Needs, Setup, StepSettings, facts
from wsss.data.ids import union
from wsss.data.images import encode_mask
from wsss.refiners.crf import check_kernels
from wsss.segmenters.crf_image import BEFORE_CRF, CrfImage

if TYPE_CHECKING:
    import numpy as np

VERSION = 2
KIND = IMAGES
UNLABELLED = True
MASKS = {BEFORE_CRF: "segmentations before the CRF", "": "segmentations"}


@dataclass
class Settings(StepSettings):
    """`infer_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # images besides those that eval_seg scores; null: none, and without scores val or train
    scales: list[float]
    flip: bool                   # average with the mirror image
    background_weight: float     # factor of the probability of the background; below 1 more is labelled as a class
    window: int | None           # an image with a longer side is segmented in windows of at most this side; null: always whole
    overlap: int                 # of neighbouring windows; both in pixels at scale 1
    crf: bool                    # a dense CRF on the probabilities
    crf_image: CrfImage          # the image that it sees
    crf_iterations: int
    gaussian_sxy: float          # of the CRF: standard deviation of the spatial kernel, in pixels,
    gaussian_compat: float       # its weight,
    bilateral_sxy: float         # and the same of the bilateral kernel: in pixels,
    bilateral_srgb: float        # and in grey levels of 0..255
    bilateral_compat: float

    def __post_init__(self) -> None:
        self.require(len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales), "scales",
                     "at least one scale, each above 0 and at most 8")
        self.require(self.background_weight > 0, "background_weight", "above 0")
        self.require(self.window is None or self.window >= 32, "window", "null or at least 32")
        self.require(self.overlap >= 0 and (self.window is None or 3 * self.overlap <= self.window), "overlap",
                     f"0 to a third of window={self.window}")
        self.require(self.crf_iterations >= 1, "crf_iterations", "at least 1")
        check_kernels(self)


def lists(setup: Setup) -> Lists:
    wanted, dataset = union(setup.wanted.values()), setup.dataset
    if setup.settings.split is not None:
        return {"ids": union([wanted, setup.ids()])}
    return {"ids": wanted or dataset.lists["val"] or dataset.lists["train"]}


def identity(setup: Setup) -> dict[str, Any]:
    return facts(setup, "precision")


def check(setup: Setup) -> None:
    setup.require_mask_values()


def saved(settings: Settings) -> list[str]:
    return [BEFORE_CRF, ""] if settings.crf else [""]


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, labels_on_disk, weights

    estimate, kinds = Estimate(setup), len(saved(setup.settings))
    network, originals = estimate.segmenter().eval(), estimate.images("ids", original=True)
    return estimate.finish(kinds * labels_on_disk(originals, border=3), weights(network),
                           estimate.segmentation(network, estimate.images("ids"), kinds), files=kinds)


def run(context: StepContext) -> dict[str, Any]:
    from steps.runtime.networks import in_precision, load_segmenter
    from wsss.segmenters.inference import segment, segment_group

    network, dataset = load_segmenter(context), context.dataset
    logits, how = in_precision(context, network), (context.settings, context.runtime.device, network.backbone.normalisation)

    def make(image_id: str) -> Made:
        return _made(image_id, segment(logits, dataset.image(image_id), dataset.size(image_id), *how))

    def make_group(ids: Sequence[str]) -> list[Made]:
        images, sizes = [dataset.image(image_id) for image_id in ids], [dataset.size(image_id) for image_id in ids]
        return list(map(_made, ids, segment_group(logits, images, sizes, *how)))

    for_each_image(context, make, make_group=make_group)
    data = network.backbone.facts.get("trained_on", "imagenet")
    # published scores of networks from ImageNet weights are not compared with it (`steps.step`: run)
    return {} if data == "imagenet" else {"title": f"{MASKS['']} by a network pretrained on {data.upper()}"}


def _made(image_id: str, masks: Mapping[str, np.ndarray]) -> Made:
    height, width = masks[""].shape
    return ({f"{folder}/{image_id}.png".lstrip("/"): encode_mask(mask) for folder, mask in masks.items()},
            {"height": height, "width": width})


def reader(folder: Path, n_classes: int) -> Callable[[str], Any]:
    kinds = [Labels(folder, n_classes, kind) for kind in MASKS]

    def read(image_id: str) -> None:
        for labels in kinds:
            if image_id in labels or not labels.kind:   # without a CRF there are only the masks themselves
                labels(image_id)
    return read


def shown(context: StepContext) -> Iterator[Column]:
    """The masks of each image."""
    for folder in saved(context.settings):
        yield label_column(context, MASKS[folder].replace("segmentations", "segmentation"), folder)
