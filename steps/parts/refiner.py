"""The refiners of seed maps, by their names in the configuration, and the check of the settings of a walk."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from wsss.errors import ArtifactError


class Refiner(Enum):
    """How seed maps are refined."""

    none = "none"                # not at all: only the background threshold is applied
    crf = "crf"                  # dense CRF
    walk = "walk"                # IRN's random walk (official)
    walk_crf = "walk_crf"        # the walk, then the dense CRF

    @property
    def walks(self) -> bool:
        return self in (Refiner.walk, Refiner.walk_crf)

    @property
    def has_crf(self) -> bool:
        return self in (Refiner.crf, Refiner.walk_crf)


def recorded_refiner(record: Mapping[str, Any], path: Path) -> Refiner:
    """The refiner in a record of pseudo masks that was read from `path`. Raises ArtifactError if there is none."""
    try:
        return Refiner(record["refiner"])
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path} does not name a refiner that exists ({error}). Make the pseudo masks again") from error


WITHOUT_MASKS = Refiner.crf      # `refiner: null` without val masks; docs/results.md has the loss


class Unary(Enum):
    labels = "labels"            # of the thresholded maps, with confidence `gt_prob` (official crf_inference_label)
    scores = "scores"            # softmax of `sharpness` times the maps and the background threshold


def check_walk(settings: Any) -> None:
    """Check the settings of the random walk that both steps share. Raises ConfigError."""
    settings.require(settings.beta > 0, "beta", "above 0")
    settings.require(0 <= settings.exp_times <= 16, "exp_times", "from 0 to 16")
    settings.require(settings.radius >= 2, "radius", "at least 2")
    settings.require(settings.pad_to is None or settings.pad_to >= 1, "pad_to", "null or at least 1")
