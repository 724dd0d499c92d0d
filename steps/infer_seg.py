"""Segment images by the trained network.

Reads the network of train_seg and images, no labels; writes `ID.png`, palette PNGs in the size of the image. The probabilities of
all scales and mirror images are averaged; a dense CRF may follow (`crf`), with the parameters of deeplab-pytorch (4219467).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.parts.shown import label_column
from steps.runtime.artifacts import Labels
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Column, Lists, Needs, Setup, StepSettings, facts
from wsss.data.ids import union
from wsss.data.images import encode_mask
from wsss.refiners.crf import check_kernels

VERSION = 1
KIND = IMAGES
MASKS = True


@dataclass
class Settings(StepSettings):
    """`infer_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # null: what eval_seg scores; without scores val, or train without val
    scales: list[float]
    flip: bool                   # average with the mirror image
    crf: bool                    # a dense CRF on the probabilities
    crf_iterations: int
    gaussian_sxy: float          # of the CRF: standard deviation of the spatial kernel, in pixels,
    gaussian_compat: float       # its weight,
    bilateral_sxy: float         # and the same of the bilateral kernel: in pixels,
    bilateral_srgb: float        # and in grey levels of 0..255
    bilateral_compat: float

    def __post_init__(self) -> None:
        self.require(len(self.scales) > 0 and all(0 < scale <= 8 for scale in self.scales), "scales",
                     "at least one scale, each above 0 and at most 8")
        self.require(self.crf_iterations >= 1, "crf_iterations", "at least 1")
        check_kernels(self)


def lists(setup: Setup) -> Lists:
    dataset = setup.dataset
    return {"ids": setup.ids(union(setup.wanted.values()) or dataset.lists["val"] or dataset.lists["train"])}


def identity(setup: Setup) -> dict[str, Any]:
    return facts(setup, "precision")


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, labels_on_disk, weights
    from wsss.refinement.crf import crf_memory

    estimate, settings = Estimate(setup), setup.settings
    network, images, originals = estimate.segmenter().eval(), estimate.images("ids"), estimate.images("ids", original=True)
    labels = len(setup.dataset.classes) + 1
    passing = [estimate.forwards(network, network, images, max(settings.scales), 1 + settings.flip),
               originals.most(3 * 4 * labels)]
    if settings.crf:
        pixel, each = crf_memory(1)
        passing.append(images.most(pixel + each * labels))
    return estimate.finish(labels_on_disk(originals, border=3), weights(network), max(passing), files=1)


def run(context: StepContext) -> dict[str, Any]:
    from steps.runtime.networks import in_precision, load_segmenter
    from wsss.segmenters.inference import segment

    network, dataset = load_segmenter(context), context.dataset
    logits, how = in_precision(context, network), (context.settings, context.runtime.device, network.backbone.normalisation)

    def make(image_id: str) -> Made:
        height, width = size = dataset.size(image_id)
        masks = segment(logits, dataset.image(image_id), size, *how)
        return {f"{image_id}.png": encode_mask(masks[""])}, {"height": height, "width": width}

    for_each_image(context, make)
    return {}


def reader(folder: Path, n_classes: int) -> Callable[[str], Any]:
    return Labels(folder, n_classes)


def shown(context: StepContext) -> Iterator[Column]:
    """The mask of each image."""
    yield label_column(context, "segmentation")
