"""Make the labels for AffinityNet from the seed maps: confident classes and confident background, 255 (ignore) elsewhere.

Paper: Ahn & Kwak, CVPR 2018; official file: `infer_cls.py`, which stores the probabilities of two dense CRFs. Reads the seed
maps and, if the exponents are not configured, the threshold chosen on val. Writes `ID.png` (0 background, 1..C class, 255 ignore)
in the size of the network input. A mask corrected by hand takes the place of the label of its image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

from steps.parts.confident_labels import make_labels
from steps.parts.pieces import Column
from steps.parts.shown import label_column
from steps.parts.thresholds import SCORES, by_rule, confident_pair, read_chosen
from steps.runtime.artifacts import Labels, Maps
from steps.runtime.context import StepContext
from steps.step import IMAGES, Needs, Setup, StepSettings
from wsss.refiners.crf import check_kernels, kernels_of

VERSION = 1
KIND = IMAGES
INSTEAD = {"thresholds": ("low_alpha", "high_alpha")}
reader = Labels


@dataclass
class Settings(StepSettings):
    """`affinity_label.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # null: what train_psa reads
    low_alpha: float | None          # exponent of the background of which the classes are confident; null: from the threshold
    high_alpha: float | None         # exponent of the background that is confident; both null, or none
    crf_iterations: int
    gaussian_sxy: float              # the two kernels of the CRF, as in the settings of infer_seg
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    def __post_init__(self) -> None:
        low, high = self.low_alpha, self.high_alpha
        self.require((low is None) == (high is None), "high_alpha", f"null as {self.step}.low_alpha, or both set")
        self.require(low is None or low > 0, "low_alpha", "null or above 0")
        self.require(low is None or high is None or high >= low, "high_alpha", f"at least {self.step}.low_alpha={low}")
        self.require(self.crf_iterations >= 1, "crf_iterations", "at least 1")
        check_kernels(self)


def unused(setup: Setup) -> dict[str, str]:
    return {} if setup.settings.low_alpha is None else {"thresholds": "low_alpha"}


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
    (low_alpha, high_alpha), source = exponents(context, maps)
    make_labels(context, maps, partial(psa_label, low_alpha=low_alpha, high_alpha=high_alpha, iterations=settings.crf_iterations,
                                       kernels=kernels_of(settings)))
    return {"low_alpha": low_alpha, "high_alpha": high_alpha, "threshold_source": source}


def exponents(context: StepContext, maps: Maps) -> tuple[tuple[float, float], str]:
    """(low_alpha, high_alpha) and their source. If they are not set, those with which a map is equal to the background at the two
    values of the confident pair: official exponents fit maps whose best threshold is about 0.2."""
    settings = context.settings
    if settings.low_alpha is not None:
        return (settings.low_alpha, settings.high_alpha), f"{context.name}.low_alpha, high_alpha in the configuration"
    if context.reads("thresholds"):
        choice = read_chosen(context.input("thresholds") / SCORES, context.seeds)
        threshold, source = choice["threshold"], choice["source"]
    else:
        chosen = by_rule(context, maps, f"{context.name}.low_alpha and {context.name}.high_alpha")
        threshold, source = chosen.threshold, chosen.source
    foreground, background = (min(max(value, 0.01), 0.99) for value in confident_pair(threshold))
    return (log(foreground) / log(1 - foreground), log(background) / log(1 - background)), \
        f"where a map is +0.15 / -0.10 of the threshold with the {source}"


def shown(context: StepContext) -> Iterator[Column]:
    yield label_column(context, "affinity label")
