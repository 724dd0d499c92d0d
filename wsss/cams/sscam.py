"""SS-CAM: Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", arXiv 2006.14255."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.noise import noises
from wsss.cams.scorecam import ScoreCAM

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class SSCAM(ScoreCAM):
    """SS-CAM, the variant with noise on the activations: Score-CAM, with the score of a channel the mean of the class's logit
    over copies of the image, each times the mask of the channel plus Gaussian noise.

    It costs `samples` times as much as Score-CAM: with 35 samples hours for a photograph on a CPU. A copy's noise is the same for
    all channels, as in F-CAM's code, so that their scores differ by their masks alone; torchcam draws it for each channel. It
    depends on the image alone, and that of the mirror image is mirrored.

    definition: as of `ScoreCAM`; with "fcam" the noise is also drawn for each colour of the image.
    batch_size: as of `ScoreCAM`.
    samples: noisy copies.
    std: of the noise, on masks in [0, 1].
    """

    samples: int
    std: float

    title: ClassVar[str] = "SS-CAM"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.samples >= 1, "samples", "at least 1")
        self.require(self.std >= 0, "std", "at least 0")

    def copies(self, pair: Tensor) -> Iterable[tuple[float, Tensor]]:
        channels = 3 if self.definition == "fcam" else 1
        return ((1.0, noise) for noise in noises(pair, self.samples, self.std, self.method, channels))


Method = SSCAM
