"""IRN's random walk, then a dense CRF."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from wsss.refiners.crf import CRF
from wsss.refiners.method import Advice
from wsss.refiners.walk import Walk


@dataclass
class WalkCRF(CRF, Walk):
    """The maps of `walk` and the scores of `crf`, with the settings of both."""

    title: ClassVar[str] = "walk and CRF"
    subject: ClassVar[str] = "the random walk and CRF are"

    def memory(self, labellings: int, gpu: bool) -> tuple[float, float]:
        (pixel, each), (pixel_crf, each_crf) = Walk.memory(self, labellings, gpu), CRF.memory(self, labellings, gpu)
        return max(pixel, pixel_crf), max(each, each_crf)

    @classmethod
    def advice(cls, cause: str | None, setting: Callable[..., Any]) -> list[Advice]:
        return [("refiner", "walk", "the random walk alone"), ("refiner", "crf", "a dense CRF on the seeds, no walk"),
                *cls.shorter(setting)]


Method = WalkCRF
