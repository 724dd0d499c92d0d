"""What a step is, and `StepContext`, which contains everything that a step needs from the pipeline.

A step is a module of this package with

    Settings        a dataclass with its keys under `conf/`, where each number has its source
    VERSION         to be raised whenever the results change for the same settings
    check(settings) optional: raises, before any work, for what the settings alone do not show (a missing package)
    prepare(context) optional: makes what all images need, before several shards run at the same time
    run(context)    does the work; returns a JSON-able dict that goes into the step's manifest
    reader(folder, n_classes)
                    reads and checks the artifacts of a finished step; for a step with one artifact per image it
                    returns the function that does so for one image id. Raises ArtifactError with the file

The planner imports the module of a step too, so slow imports, above all torch, are inside its functions.
A step reads artifacts from `context.inputs` and writes only into `context.folder`. It uses neither the run folder nor the
Hydra config.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from steps.runtime.store import Layout
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, BackendError, ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Stopped(Exception):
    """The step was asked to stop; finished work is saved and the same command continues."""


class Group:
    """The processes that run a step together, each calling its `run`. This base class: one process, no communication.

    Every process must call the same methods in the same order.
    """

    rank, size = 0, 1
    asked: int | None = None   # the signal that asked this process to stop

    @property
    def is_main(self) -> bool:
        """Whether this process writes the artifacts that are not made image by image."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over all processes, in place."""
        return tensor

    def broadcast(self, make: Callable[[], Any]) -> Any:
        """Call `make` in the first process only and return its result in every process. It is sent as JSON."""
        return json.loads(json.dumps(make()))

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process. They are sent as JSON."""
        return [json.loads(json.dumps(value))]

    def name(self, rank: int) -> str:
        """The name of a process in messages."""
        return "this process"

    def choose_device(self, device: torch.device) -> torch.device:
        """The device of this process, of the kind of `device`."""
        return device

    @property
    def here(self) -> int:
        """The number of processes on this machine."""
        return 1


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class StepContext:
    """The inputs of one step.

    `lists`: the ids of the step by purpose: "ids" (to make or train on), and as needed "val", "prototypes", "scored".
    `inputs`: the folder of each step that this step reads, by name. `shard` (i, n): this call makes the i-th of n interleaved
    parts of "ids". `group`: the processes that run the step together. `prepared`: what all shards of the step need must exist
    already, because other shards run at the same time.
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
    # for trainings: `track` sends a line of the log to a logger; `show` sends pictures (name -> (H, W, 3) uint8) of a training
    # step, makes them only if they are due, and returns whether it did
    track: Callable[[dict[str, Any]], None] = field(default=lambda line: None)
    show: Callable[[int, Callable[[], dict[str, np.ndarray]]], bool] = field(default=lambda step, pictures: False)

    @property
    def ids(self) -> tuple[str, ...]:
        return self.lists["ids"]

    @property
    def shard_ids(self) -> tuple[str, ...]:
        """The ids of this shard. Each id belongs to exactly one shard; no shard is padded."""
        index, count = self.shard
        return self.ids[index::count]

    @property
    def my_ids(self) -> Sequence[str]:
        """The ids that this process makes: its part of the shard."""
        return self.part(self.shard_ids)

    @property
    def worker(self) -> tuple[int, int]:
        """(i, n) of this process among all processes of all shards: `ids[i::n]` are `my_ids`."""
        index, count = self.shard
        return index + count * self.group.rank, count * self.group.size

    def part(self, ids: Sequence[T]) -> Sequence[T]:
        """The part of `ids` for this process. Each id belongs to exactly one process of the group."""
        return ids[self.group.rank::self.group.size]

    def reduce(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array (integers or float64) over the group."""
        import torch

        return self.group.sum(torch.from_numpy(counts)).numpy()

    @property
    def seed_folder(self) -> Path:
        """The folder of the seed maps."""
        return self.inputs["make_lpcam" if self.seed_maps == "lpcam" else "make_cam"]

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def autocast(self) -> torch.autocast:
        """The context manager for the configured `precision`."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def settings_of(value: Any) -> Any:
    """A settings dataclass as JSON-able values (enums by name)."""
    if isinstance(value, Enum):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: settings_of(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (list, tuple)):
        return [settings_of(item) for item in value]
    return value


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Check a setting.

    Raises ConfigError with the key, the value and what is allowed, if `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{key}={value!r} is not possible: expected {expected}")


def require_prepared(context: StepContext, path: Path) -> None:
    """Check that this call may make the file `path` that all shards need.

    Raises ArtifactError if several shards run at the same time (`context.prepared`).
    """
    if context.prepared:
        raise ArtifactError(f"{path} does not exist yet: it is made once for all shards. Run the same command with shard=prepare "
                            "first")


def require_package(package: str, wanted: bool, key: str) -> None:
    """Check that the package of an optional back end is installed.

    Raises BackendError if it is `wanted` and cannot be found.
    """
    if wanted and importlib.util.find_spec(package) is None:
        raise BackendError(f"{key}={package}: the package is not installed. See Packages in the README, or use {key}=torch")
