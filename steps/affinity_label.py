"""Make the labels for AffinityNet from the seed maps: confident classes and confident background, 255 (ignore) elsewhere.

Paper: Ahn & Kwak, CVPR 2018; official file: `infer_cls.py`, which stores the probabilities of two dense CRFs. Reads the seed
maps. Writes `ID.png` (0 background, 1..C class, 255 ignore) in the size of the network input. A mask corrected by hand takes the
place of the label of its image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from steps.parts.pieces import Column
from steps.parts.shown import label_column
from steps.runtime.artifacts import Labels, Maps
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Needs, Setup, StepSettings
from wsss.data.images import encode_mask, resize_mask
from wsss.refiners.crf import check_kernels, kernels_of

VERSION = 1
KIND = IMAGES
reader = Labels


@dataclass
class Settings(StepSettings):
    """`affinity_label.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what train_psa reads
    low_alpha: float                 # exponent of the background of which the classes are confident
    high_alpha: float                # exponent of the background that is confident
    crf_iterations: int
    gaussian_sxy: float              # the two kernels of the CRF, as in the settings of infer_seg
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    def __post_init__(self) -> None:
        self.require(self.low_alpha > 0, "low_alpha", "above 0")
        self.require(self.high_alpha >= self.low_alpha, "high_alpha", f"at least {self.step}.low_alpha={self.low_alpha}")
        self.require(self.crf_iterations >= 1, "crf_iterations", "at least 1")
        check_kernels(self)


def corrected(settings: Settings) -> bool:
    return True


def check(setup: Setup) -> None:
    setup.require_mask_values()


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, labels_on_disk

    estimate = Estimate(setup)
    images = estimate.images("ids")
    return estimate.finish(labels_on_disk(images, border=5),   # as cam_to_ir_label
                           passing=estimate.concurrent(images) * estimate.crf(images, 2), files=1)


def run(context: StepContext) -> dict[str, Any]:
    from wsss.refinement.psa_label import psa_label

    settings, maps = context.settings, Maps(context.input("seeds"))

    def make(image_id: str) -> Made:
        image = context.dataset.image(image_id)
        size = {"height": image.shape[0], "width": image.shape[1]}
        if image_id in context.dataset.corrections:
            drawn = resize_mask(context.dataset.correction(image_id), image.shape[:2])
            return {f"{image_id}.png": encode_mask(drawn)}, {**size, "correction": context.dataset.digest_of_correction(image_id)}
        label = psa_label(image, maps.at(image_id, "full", context.runtime.device), maps.classes(image_id),
                          low_alpha=settings.low_alpha, high_alpha=settings.high_alpha, iterations=settings.crf_iterations,
                          kernels=kernels_of(settings))
        return {f"{image_id}.png": encode_mask(label.cpu().numpy())}, size

    for_each_image(context, make, cpu_parallel=True)
    return {}


def shown(context: StepContext) -> Iterator[Column]:
    yield label_column(context, "affinity label")
