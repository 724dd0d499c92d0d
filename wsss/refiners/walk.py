"""IRN's random walk: Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.refiners.method import Advice, RefinerMethod, SeedImage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Walk(RefinerMethod):
    """The random walk of the seed maps that does not cross the edges of IRN (section 4; `step/make_sem_seg_labels.py`).

    beta: exponent of the affinity.
    exp_times: the walk has 2^exp_times steps.
    scale_steps: it has this many on a VOC image, on other sizes in proportion to the area.
    radius: of one step, in cells of stride 4.
    pad_to: the input of IRN is padded to sides of at least this many pixels; null: it is not.
    """

    beta: float
    exp_times: int
    scale_steps: bool
    radius: int
    pad_to: int | None

    title: ClassVar[str] = "walk"
    subject: ClassVar[str] = "the random walk is"
    maps_title: ClassVar[str] = "random walk"
    reads: ClassVar[str] = "irn"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_walk(self)

    def maps(self, image: SeedImage) -> Tensor:
        from wsss.refinement.masks import walk_steps
        from wsss.refinement.walk import random_walk

        edge = image.edge(self.pad_to)
        height, width = edge.shape
        steps = walk_steps(height, width, self.exp_times) if self.scale_steps else 2**self.exp_times
        return random_walk(image.seeds, edge[None], beta=self.beta, steps=steps, radius=self.radius)

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        from wsss.refinement.walk import walk_memory

        return walk_memory(self.radius, gpu), 8 / 16 * 6   # and six copies of the maps, in float64 at stride 4

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        crf, beta = ("refiner", "crf", "a dense CRF on the seeds, no walk"), setting("refiner.beta")
        if cause == "shrink":
            return [crf, *([("refiner.beta", beta / 2, "a walk that crosses weak edges more easily")] if beta else [])]
        return [crf, *cls.shorter(setting),
                *([("refiner.beta", 2 * beta, "a walk that keeps to the inside of edges")] if beta else [])]

    @staticmethod
    def shorter(setting: Callable[..., Any]) -> list[Advice]:
        """The advice to walk less far, if the walk has more than two steps."""
        exp_times = setting("refiner.exp_times", 0)
        return [("refiner.exp_times", max(exp_times - 3, 1), "a shorter walk")] if exp_times > 1 else []


def check_steps(settings: Any) -> None:
    """Check settings with beta, exp_times and radius by their function `require`, which raises ConfigError."""
    settings.require(settings.beta > 0, "beta", "above 0")
    settings.require(0 <= settings.exp_times <= 16, "exp_times", "from 0 to 16")
    settings.require(settings.radius >= 2, "radius", "at least 2")


def check_walk(settings: Any) -> None:
    """As `check_steps`, and pad_to."""
    check_steps(settings)
    settings.require(settings.pad_to is None or settings.pad_to >= 1, "pad_to", "null or at least 1")


Method = Walk
