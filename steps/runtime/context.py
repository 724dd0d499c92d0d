"""What a step is given: everything from above comes in as one `StepContext`.

A step is a module of this package with

    Settings        a dataclass: its keys under `conf/`, with the source of each number beside it
    VERSION         raised by its author whenever its results change for the same settings
    check(settings) where it has one: refuses, before any work, what needs more than a look at the settings
    prepare(context) where it has one: makes what all images need and no single one can, for shards that work at once
    run(context)    does the work; returns a JSON-able dict that goes into the step's manifest
    reader(folder, n_classes)
                    reads and checks what a finished step left behind; of a step that makes an artifact an image it
                    returns the function that does so for one image id. Raises ArtifactError, naming the file

A step's module is imported also by what only plans, so what takes long to import, torch before all, is imported in its functions.
It reads artifacts from `context.inputs`, writes into `context.folder` and nowhere else, and knows neither the run
folder nor the Hydra config.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.runtime.store import Layout
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, BackendError, ConfigError

if TYPE_CHECKING:
    import torch


class Stopped(Exception):
    """The step was asked to stop; what it had finished is saved and the same command continues."""


class Group:
    """The processes that do a step together, each of them calling its `run`. Here: this one alone, so nothing is sent.

    Every process must call the same methods in the same order.
    """

    rank, size = 0, 1
    asked: int | None = None   # the signal by which this process was asked to stop

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes what is not made image by image."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes, in its place."""
        return tensor

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process, in every process; the others do not call it."""
        return make()

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process."""
        return [value]

    def name(self, rank: int) -> str:
        """A process, for messages."""
        return "this process"

    def choose_device(self, device: torch.device) -> torch.device:
        """The device of this process, of the kind of `device`."""
        return device

    @property
    def here(self) -> int:
        """How many of the processes are on this machine."""
        return 1


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class StepContext:
    """The world of one step.

    `lists` holds the ids of the step by purpose: "ids" (what it makes or trains on), and where it needs them "val",
    "prototypes", "scored". `inputs` maps the name of each step that it reads to that step's folder. `shard` is (i, n):
    this call makes the i-th of n interleaved parts of "ids". `group`: the processes that do the step together.
    `prepared`: what all shards of the step need must be there already, because others work at the same time.
    """

    settings: Any
    dataset: Dataset
    lists: Mapping[str, tuple[str, ...]]
    folder: Path
    inputs: Mapping[str, Path]
    model: Any = None
    seed_maps: str = "lpcam"
    seed: int = 0
    device: torch.device = field(default_factory=_cpu)
    precision: str = "float32"
    workers: int = 0
    layout: Layout = Layout.files
    shard: tuple[int, int] = (0, 1)
    group: Group = Group()
    prepared: bool = False
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
    def shard_ids(self) -> tuple[str, ...]:
        """The ids of this shard: each id belongs to exactly one shard, none is padded."""
        index, count = self.shard
        return self.ids[index::count]

    @property
    def my_ids(self) -> tuple[str, ...]:
        """The ids that this process makes: its part of the shard."""
        return self.part(self.shard_ids)

    @property
    def worker(self) -> tuple[int, int]:
        """This process as one of all that may work on the step at once: `ids[i::n]` are `my_ids`."""
        index, count = self.shard
        return index + count * self.group.rank, count * self.group.size

    def part(self, ids: Sequence[Any]) -> Sequence[Any]:
        """What this process of the group does of `ids`, where each is done once by somebody."""
        return ids[self.group.rank::self.group.size]

    def reduce(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array of integers, or of float64, over the group."""
        import torch

        return self.group.sum(torch.from_numpy(counts)).numpy()

    @property
    def seed_folder(self) -> Path:
        """The folder of the seed maps (`seed_maps`)."""
        return self.inputs["make_lpcam" if self.seed_maps == "lpcam" else "make_cam"]

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def autocast(self) -> torch.autocast:
        """Mixed precision of the networks, as `precision=` says."""
        import torch

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


def require_prepared(context: StepContext, path: Path) -> None:
    """Refuse to make what all shards need where they work at the same time.

    Raises
    ------
    ArtifactError
        when the step works on one of several shards.
    """
    if context.prepared:
        raise ArtifactError(f"{path} is not there yet: it is made once for all shards. Run the same command with shard=prepare "
                            "before them")


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
