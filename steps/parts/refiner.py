"""The ways of refining seed maps, by their names in the configuration, and what the settings of a walk must be."""

from enum import Enum
from typing import Any

from steps.runtime.context import require


class Refiner(Enum):
    """What is done with the seed maps."""

    none = "none"                # they are cut at the background threshold as they are
    crf = "crf"                  # dense CRF
    walk = "walk"                # IRN's random walk (official)
    walk_crf = "walk_crf"        # the walk, then the dense CRF

    @property
    def walks(self) -> bool:
        return self in (Refiner.walk, Refiner.walk_crf)

    @property
    def has_crf(self) -> bool:
        return self in (Refiner.crf, Refiner.walk_crf)


WITHOUT_MASKS = Refiner.crf      # what `refiner: null` comes to where no val masks choose (docs/results.md has what it loses)


class Unary(Enum):
    labels = "labels"            # of the thresholded maps, trusted by `gt_prob` (official crf_inference_label)
    scores = "scores"            # softmax of `sharpness` times the maps and the background threshold


def check_walk(settings: Any, step: str) -> None:
    """Check the settings that the random walks of both steps share. Raises ConfigError."""
    for key, good, expected in (
            ("beta", settings.beta > 0, "above 0"), ("exp_times", 0 <= settings.exp_times <= 16, "from 0 to 16"),
            ("radius", settings.radius >= 2, "at least 2"),
            ("pad_to", settings.pad_to is None or settings.pad_to >= 1, "null or at least 1")):
        require(good, f"{step}.{key}", getattr(settings, key), expected)
