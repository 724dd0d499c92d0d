"""A dense CRF: Kraehenbuehl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.refiners.method import Advice, RefinerMethod, SeedImage

if TYPE_CHECKING:
    from torch import Tensor


class Unary(Enum):
    labels = "labels"            # of the thresholded maps, with confidence `gt_prob` (official crf_inference_label)
    scores = "scores"            # softmax of `sharpness` times the maps and the background threshold


_ABOVE_0, _NOT_NEGATIVE = ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"), ("gaussian_compat", "bilateral_compat")


def check_kernels(settings: Any) -> None:
    """Check the settings of the two kernels of a CRF by their function `require`, which raises ConfigError."""
    for key in _ABOVE_0:
        settings.require(getattr(settings, key) > 0, key, "above 0")
    for key in _NOT_NEGATIVE:
        settings.require(getattr(settings, key) >= 0, key, "0 or more")


def kernels_of(settings: Any) -> dict[str, float]:
    """The two kernels in settings, as arguments of `wsss.refinement.crf.DenseCRF`."""
    return {key: getattr(settings, key) for key in (*_ABOVE_0, *_NOT_NEGATIVE)}


@dataclass
class CRF(RefinerMethod):
    """The dense CRF on the maps and the background threshold.

    unary: what it starts from. gt_prob: for unary=labels. sharpness: for unary=scores.
    gaussian_sxy: standard deviation of the spatial kernel, in pixels. gaussian_compat: its weight.
    bilateral_sxy, bilateral_srgb: of the bilateral kernel, in pixels and in grey levels of 0..255. bilateral_compat: its weight.
    """

    iterations: int
    unary: Unary
    gt_prob: float
    sharpness: float
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    title: ClassVar[str] = "CRF"
    subject: ClassVar[str] = "the CRF is"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.iterations >= 1, "iterations", "at least 1")
        self.require(0 < self.gt_prob < 1, "gt_prob", "a probability above 0 and below 1")
        self.require(self.sharpness > 0, "sharpness", "above 0")
        check_kernels(self)

    def scores(self, image: SeedImage, scores: Tensor) -> Tensor:
        """The probabilities (n, K + 1, H, W) of the CRF; one lattice for all n."""
        from wsss.refinement.crf import DenseCRF, unary_from_labels, unary_from_scores

        if self.unary is Unary.labels:
            unary = unary_from_labels(scores.max(dim=1).indices, scores.shape[1], self.gt_prob)
        else:
            unary = unary_from_scores(scores, self.sharpness)
        crf = DenseCRF(image.image, **kernels_of(self))
        return crf.inference(unary, self.iterations)

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        from wsss.refinement.crf import crf_memory

        return crf_memory(labellings)

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return [("refiner", "walk", "the random walk alone"), *super().advice(cause, setting)]


Method = CRF
