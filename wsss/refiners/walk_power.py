"""IRN's random walk of a power of the seed maps: AMN (`step/make_sem_seg_labels.py`, `step/make_sem_seg_labels_coco.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.refiners.method import SeedImage
from wsss.refiners.walk import Walk

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class WalkPower(Walk):
    """As `Walk`, from the seed maps to the power `power`: above 1, low values become lower."""

    power: float

    title: ClassVar[str] = "walk of a power"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.power > 0, "power", "above 0")

    def maps(self, image: SeedImage) -> Tensor:
        return super().maps(SeedImage(lambda: image.seeds ** self.power, image.edge, lambda: image.image))


Method = WalkPower
