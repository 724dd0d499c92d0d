"""Write pooled features of a run's classifier, whole images and boxes, and test a linear SVM on them: `run=NAME out=DIR`.

    OUT/
      features_CROP.npy   float32 (N, D): the mean of the last features over the image or the box, a row for each image
      features.csv        the rows: id, list, classes, the class that the classifier finds first, and the boxes
      svm.json            the score of a linear SVM for each crop, and the C that was chosen
      features.json       the run, its network and the settings: an `out` has one of each
      images/ID.npy, index.jsonl, failed.json   what is done, to continue
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.actions._crops import CROPS
from pipeline.actions._network import NetworkSettings, check_run
from steps.runtime.context import require


@dataclass
class FeatureSettings:
    """`features.`: the values are in `conf/config.yaml`."""

    train: str
    test: str
    crops: list[str]
    size: int | None
    share: float
    c: list[float]
    folds: int

    def __post_init__(self) -> None:
        def check(condition: bool, key: str, expected: str) -> None:
            require(condition, f"features.{key}", getattr(self, key), expected)
        check(len(self.crops) > 0 and set(self.crops) <= set(CROPS) and len(set(self.crops)) == len(self.crops), "crops",
              f"one or more of {', '.join(CROPS)}, none twice")
        check(self.size is None or self.size >= 1, "size", "null or at least 1 pixel")
        check(0 <= self.share < 1, "share", "at least 0 and below 1")
        check(len(self.c) > 0 and all(value > 0 for value in self.c), "c", "one or more numbers above 0")
        check(self.folds >= 2, "folds", "at least 2")


@dataclass
class Settings(NetworkSettings):
    features: FeatureSettings


def check(config: Any) -> None:
    from wsss.metrics.linear_svm import require_sklearn

    check_run(config)
    require(config.out is not None, "out", None, "a folder for the features: out=DIR")
    require(config.shard is None, "shard", config.shard, "no value with action=features: one process makes them")
    require_sklearn()


def run(pipeline: Any) -> int:
    from pipeline.actions._features import features

    return features(pipeline)
