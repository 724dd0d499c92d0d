"""EDAM's background by saliency maps: Wu et al., "Embedded Discriminative Attention Mechanism for Weakly Supervised Semantic
Segmentation", CVPR 2021. Official file: `infer_cls.py` (allenwu97/EDAM, 8952f84)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.errors import DataError
from wsss.refiners.crf import check_kernels, kernels_of
from wsss.refiners.method import Advice, RefinerMethod, SeedImage

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.data.dataset import Dataset

_CLIP = 1e-5       # of probabilities before the logarithm; pydensecrf: unary_from_softmax
_NEVER, _ALWAYS = -2.0, 2.0   # scores of a class beyond the two limits; official


@dataclass
class Saliency(RefinerMethod):
    """A pixel of low saliency is background, and any other has the class of the highest score, which is that of the map, or with
    `iterations` the probability by a dense CRF. Two limits of the scores have priority over the saliency.

    The CRF starts from the maps and a background of 1 minus the highest of them. Differs from the official code with CRF
    (`--out_crf_pred` with `--sal_path`): it changes an array that it then does not use, so there the saliency is ignored. Which
    scores the limits are meant for is our reading: those of the CRF. The background threshold is not used.

    theta: grey level, 0 to 255, up to which the saliency is low.
    alpha: a class of a lower score is not chosen. beta: one of a higher score is chosen, also where the saliency is low.
    iterations: of the CRF; 0: no CRF. gaussian_sxy: standard deviation of the spatial kernel, in pixels. gaussian_compat: its
    weight. bilateral_sxy, bilateral_srgb: of the bilateral kernel, in pixels and in grey levels. bilateral_compat: its weight.
    """

    theta: float
    alpha: float
    beta: float
    iterations: int
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float

    title: ClassVar[str] = "saliency"
    subject: ClassVar[str] = "the background by saliency is"
    own_files: ClassVar[bool] = True
    threshold: ClassVar[float | None] = 0.5   # where 1 - map exceeds the map: the background that the CRF starts from

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 <= self.theta <= 255, "theta", "a grey level from 0 to 255")
        self.require(0 <= self.alpha <= 1, "alpha", "a number in [0, 1]")
        self.require(self.alpha <= self.beta <= 1, "beta", f"a number from alpha={self.alpha} to 1")
        self.require(self.iterations >= 0, "iterations", "0 (no CRF) or more")
        check_kernels(self)

    def check(self, dataset: Dataset, ids: Collection[str]) -> None:
        from wsss.data.saliency import check_saliency

        if not dataset.saliency:
            raise DataError(f"refiner={self.method} reads saliency maps, and data set {dataset.name} has none: set "
                            "data.saliency=DIR, a folder of 8-bit grey ID.png, or choose another refiner, such as refiner=crf")
        check_saliency(dataset, [i for i in ids if dataset.labels[i]])   # others are background

    def files(self, dataset: Dataset) -> dict[str, str]:
        from wsss.data.saliency import digest_of_saliency

        return {"saliency": digest_of_saliency(dataset)}

    def scores(self, image: SeedImage, scores: Tensor) -> Tensor:
        """The scores (n, K + 1, H, W): 1 where the saliency is low and else 0, and those of the classes or -2 or 2."""
        import torch

        found = scores[:, 1:]
        if self.iterations:
            found = self._probabilities(image, found)[:, 1:]
        found = found.masked_fill(found < self.alpha, _NEVER)
        found = found.masked_fill(found > self.beta, _ALWAYS)
        low = (image.saliency <= self.theta).to(found.dtype)
        return torch.cat([low.expand(len(found), 1, -1, -1), found], 1)

    def _probabilities(self, image: SeedImage, maps: Tensor) -> Tensor:
        """The probabilities (n, K + 1, H, W), background first, by the CRF from maps (n, K, H, W)."""
        import torch

        from wsss.refinement.crf import DenseCRF

        start = torch.cat([1 - maps.amax(1, keepdim=True), maps], 1).clamp(_CLIP, 1)
        return DenseCRF(image.image, **kernels_of(self)).inference(-start.log(), self.iterations)

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        from wsss.refinement.crf import crf_memory

        pixel, each = crf_memory(labellings) if self.iterations else (4.0 * labellings, 8.0 * labellings)
        return pixel + 1, each

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return [("refiner", "crf", "a dense CRF on the seeds, without saliency maps"), *super().advice(cause, setting)]


Method = Saliency
