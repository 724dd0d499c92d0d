"""IS-CAM: Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", arXiv 2010.03023."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.scorecam import ScoreCAM

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ISCAM(ScoreCAM):
    """IS-CAM: Score-CAM, with the score of a channel the mean of the class's logit over N copies of the image, the i-th times
    sum_{j <= i} j / N times the mask of the channel.

    The factors add up, as in torchcam and F-CAM's code, so they reach (N + 1) / 2 and most of them are above 1: these copies have
    colours that no photograph has. F-CAM's code sums the scores, which changes the maps by a factor. It costs N times as much as
    Score-CAM.

    definition, batch_size: as of `ScoreCAM`.
    samples: N.
    """

    samples: int

    title: ClassVar[str] = "IS-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.samples >= 1, "samples", "at least 1")

    def copies(self, pair: Tensor) -> Iterable[tuple[float, Tensor]]:
        still = pair.new_zeros(2, 1, 1, 1)
        return ((i * (i + 1) / (2 * self.samples), still) for i in range(1, self.samples + 1))


Method = ISCAM
