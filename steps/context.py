"""What a step is given: everything from above comes in as one `StepContext`.

A step is a module of this package with

    Settings        a dataclass: its keys under `conf/`, with the source of each number beside it
    VERSION         raised by its author whenever its results change for the same settings
    check(settings) where it has one: refuses, before any work, what needs more than a look at the settings
    run(context)    does the work; returns a JSON-able dict that goes into the step's manifest
    reader(folder, n_classes)
                    reads and checks what a finished step left behind; of a step that makes an artifact an image it
                    returns the function that does so for one image id. Raises ArtifactError, naming the file

It reads artifacts from `context.inputs`, writes into `context.folder` and nowhere else, and knows neither the run
folder nor the Hydra config.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsss.data.dataset import Dataset
from wsss.errors import BackendError, ConfigError


class Stopped(Exception):
    """The step was asked to stop; what it had finished is saved and the same command continues."""


@dataclass(frozen=True)
class StepContext:
    """The world of one step.

    `lists` holds the ids of the step by purpose: "ids" (what it makes or trains on), and where it needs them "val",
    "prototypes", "scored". `inputs` maps the name of each step that it reads to that step's folder. `shard` is (i, n):
    this process makes the i-th of n interleaved parts of "ids". `reduce` sums an integer array over all processes.
    """

    settings: Any
    dataset: Dataset
    lists: Mapping[str, tuple[str, ...]]
    folder: Path
    inputs: Mapping[str, Path]
    model: Any = None
    seed_maps: str = "lpcam"
    seed: int = 0
    device: torch.device = torch.device("cpu")
    precision: str = "float32"
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    reduce: Callable[[np.ndarray], np.ndarray] = field(default=lambda counts: counts)
    stop: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, note: None)
    warn: Callable[[str], None] = field(default=lambda message: None)
    # of trainings: a line of the log, for curves elsewhere; and pictures (name -> (H, W, 3) uint8), made where this step's are
    # wanted, which is what `show` returns
    track: Callable[[dict[str, Any]], None] = field(default=lambda line: None)
    show: Callable[[int, Callable[[], dict[str, np.ndarray]]], bool] = field(default=lambda step, pictures: False)

    @property
    def ids(self) -> tuple[str, ...]:
        return self.lists["ids"]

    @property
    def my_ids(self) -> tuple[str, ...]:
        """The ids of this shard: each id belongs to exactly one shard, none is padded."""
        index, count = self.shard
        return self.ids[index::count]

    @property
    def seed_folder(self) -> Path:
        """The folder of the maps that go on (`seed_maps`)."""
        return self.inputs["make_lpcam" if self.seed_maps == "lpcam" else "make_cam"]

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def autocast(self) -> torch.autocast:
        """Mixed precision of the networks, as `precision=` says."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Refuse a setting, naming its key, its value and what is allowed.

    Raises
    ------
    ConfigError
        when `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{key}={value!r} is not possible: expected {expected}")


def require_package(package: str, wanted: bool, key: str) -> None:
    """Refuse an optional back end whose package is not installed.

    Raises
    ------
    BackendError
        when it is `wanted` and cannot be found.
    """
    if wanted and importlib.util.find_spec(package) is None:
        raise BackendError(f"{key}={package}: the package is not installed. The README, under Packages, says how; {key}=torch "
                           "needs nothing")
