"""The random walk of AffinityNet: Ahn & Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly
Supervised Semantic Segmentation", CVPR 2018, section 3.4."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.refiners.method import Advice, RefinerMethod, SeedImage
from wsss.refiners.walk import Walk, check_steps

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class PSA(RefinerMethod):
    """The random walk of the seed maps between pixels of similar features (official `infer_aff.py`), at stride 8.

    beta: exponent of the affinity.
    exp_times: the walk has 2^exp_times steps.
    scale_steps: it has this many on a VOC image, on other sizes in proportion to the area.
    radius: of one step, in cells of stride 8.
    all_pairs: steps also between cells near the border, most of which the official code omits.
    alpha: exponent of the background, (1 - the greatest map)^alpha, which walks too: the maps are then divided by the sum of
        it and the greatest map, so that the threshold 0.5 takes the greater of both. null: the background is a constant, the
        threshold, as in MCTformer.
    """

    beta: float
    exp_times: int
    scale_steps: bool
    radius: int
    all_pairs: bool
    alpha: float | None

    title: ClassVar[str] = "AffinityNet"
    subject: ClassVar[str] = "the random walk of AffinityNet is"
    maps_title: ClassVar[str] = "walk of AffinityNet"
    reads: ClassVar[str] = "affinity"
    divided: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self)
        self.require(self.alpha is None or self.alpha > 0, "alpha", "null or above 0")

    def maps(self, image: SeedImage) -> Tensor:
        """Of the walk at stride 8, enlarged. The seed maps are brought there by means of up to four cells, at the border of those
        inside (official: also of padding, which lowers background and maps alike)."""
        import torch
        from torch.nn.functional import avg_pool2d

        from wsss.refinement.feature_affinity import feature_affinity
        from wsss.refinement.masks import walk_steps
        from wsss.refinement.psa_label import background_scores
        from wsss.refinement.walk import affinity_walk
        from wsss.resize import resize

        seeds, features = image.seeds, image.features
        if not len(seeds):
            return seeds
        if self.alpha is not None:
            seeds = torch.cat([background_scores(seeds, self.alpha)[None], seeds])
        height, width = features.shape[1:]
        pooled = avg_pool2d(seeds[None], 2, ceil_mode=True, count_include_pad=False)[0]   # (K, h, w), with alpha one map more
        steps = walk_steps(2 * height, 2 * width, self.exp_times) if self.scale_steps else 2**self.exp_times
        walked = affinity_walk(pooled, feature_affinity(features, self.radius, self.all_pairs), self.beta, steps).float()
        size = image.seeds.shape[1:]
        enlarged = resize(walked, [2 * height, 2 * width])[:, :size[0], :size[1]]
        if self.alpha is None:
            return enlarged
        background, maps = enlarged[0].clamp(min=0), enlarged[1:].clamp(min=0)
        return maps / (maps.amax(0) + background).clamp(min=1e-12)

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        from wsss.refinement.walk import walk_memory

        # as IRN's walk, at stride 8; features of 448 channels in float32, and on a GPU their differences; six copies of the maps
        return walk_memory(self.radius, gpu) / 4 + 448 * 4 / 64 * (3 if gpu else 1), 8 / 64 * 6 + 4 / 16 * 2

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return Walk.advice(cause, setting)


Method = PSA
