"""`StepContext`, what a step is: its settings, data set, ids, inputs and folder; and `Runtime`, where and how it runs."""

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
from wsss.families import FAMILIES

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Metadata of a field of a step's settings with the name of a family: the step's own method, null: that of the run. The key is
# STEP.FAMILY, the group FAMILY@STEP.FAMILY.
OWN_METHOD = {"own_method": True}


def further(family: str) -> dict[str, str]:
    """Metadata of a list field of a step's settings that names further methods of a family, by their files in `conf/`: what the
    step makes by each stands in the sub-folder of that name, beside the main results, and is scored too."""
    return {"further": family}


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

    def copy(self, tensor: torch.Tensor, source: int, target: int | None) -> torch.Tensor:
        """Replace `tensor` in the process `target` (None: in all) by that of the process `source`, in place.

        Only these processes need to call it.
        """
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
class Runtime:
    """Where a step runs. Only `precision` changes results, others only by rounding.

    `group`: the processes that run the step together. `shard` (i, n): this call makes the i-th of n interleaved parts of "ids".
    `prepared`: what all shards of the step need must exist already, because other shards run at the same time.
    """

    device: torch.device = field(default_factory=_cpu)
    precision: str = "float32"
    workers: int = 0              # loader processes of a training
    layout: Layout = Layout.files
    group: Group = Group()
    shard: tuple[int, int] = (0, 1)
    prepared: bool = False
    gpu_fallback: bool = False    # an image for which the GPU has too little memory is made on the CPU (`with_fallback`),
    fell_back: bool = False       # as now
    stop: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, note: None)
    warn: Callable[[str], None] = field(default=lambda message: None)
    # for trainings: `track` sends a line of the log to a logger; `show` sends pictures (name -> (H, W, 3) uint8) after a step,
    # if `pictures_due` says so
    track: Callable[[dict[str, Any]], None] = field(default=lambda line: None)
    pictures_due: Callable[[int], bool] = field(default=lambda step: False)
    show: Callable[[int, dict[str, np.ndarray]], None] = field(default=lambda step, pictures: None)

    @property
    def worker(self) -> tuple[int, int]:
        """(i, n) of this process among all processes of all shards: `ids[i::n]` are its ids."""
        index, count = self.shard
        return index + count * self.group.rank, count * self.group.size

    def part(self, ids: Sequence[T]) -> Sequence[T]:
        """The part of `ids` for this process. Each id belongs to exactly one process of the group."""
        return ids[self.group.rank::self.group.size]

    def reduce(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array (integers or float64) over the group."""
        import torch

        return self.group.sum(torch.from_numpy(counts)).numpy()

    def check_stop(self) -> None:
        if self.stop():
            raise Stopped

    def autocast(self) -> torch.autocast:
        """The context manager for the configured `precision`."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Source:
    """A step that another step reads. `kinds`: the kinds of maps, masks or instances that it makes, kind -> sub-folder."""

    step: str                     # the name of its row
    kinds: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()


@dataclass(frozen=True)
class StepContext:
    """What a step works on.

    `lists`: the ids by purpose: "ids" (to make or train on), and as needed "val", "scored", "prototypes", "log".
    `inputs`: the finished steps that it reads, by role.
    """

    name: str                     # of the step, for messages and random draws
    settings: Any
    dataset: Dataset
    lists: Mapping[str, tuple[str, ...]]
    folder: Path
    inputs: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    seed: int = 0
    runtime: Runtime = field(default_factory=Runtime)
    methods: Mapping[str, Any] = field(default_factory=dict)   # `methods_of`
    further: Mapping[str, Any] = field(default_factory=dict)   # the methods of a field with the metadata `further`, by name

    @property
    def ids(self) -> tuple[str, ...]:
        return self.lists["ids"]

    @property
    def shard_ids(self) -> tuple[str, ...]:
        """The ids of this shard. Each id belongs to exactly one shard; no shard is padded."""
        index, count = self.runtime.shard
        return self.ids[index::count]

    @property
    def my_ids(self) -> Sequence[str]:
        """The ids that this process makes: its part of the shard."""
        return self.runtime.part(self.shard_ids)

    def reads(self, role: str) -> bool:
        return bool(self.inputs.get(role))

    def input(self, role: str) -> Path:
        """The folder of the step that has a role, for example "classifier"."""
        return self.inputs[role][0].folder

    @property
    def seeds(self) -> str:
        """The kind of the maps that the role "seeds" reads."""
        return self.inputs["seeds"][0].step


def methods_of(config: Any, step: str) -> dict[str, Any]:
    """The method of each family that a step uses: its own (`OWN_METHOD`), else that of the run."""
    return {family: getattr(getattr(config, step), family, None) or getattr(config, family) for family in FAMILIES}


def own_methods(settings: Any) -> list[str]:
    """The families of which the settings of a step, an object or its class, can name a method of its own."""
    return [item.name for item in fields(settings) if item.metadata.get("own_method")]


def settings_of(value: Any) -> Any:
    """A settings dataclass as JSON-able values (enums by name), without the step's own methods."""
    if isinstance(value, Enum):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: settings_of(getattr(value, item.name)) for item in fields(value)
                if not item.metadata.get("own_method")}
    if isinstance(value, (list, tuple)):
        return [settings_of(item) for item in value]
    if isinstance(value, dict):
        return {key: settings_of(item) for key, item in value.items()}
    return value


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Check a setting.

    Raises ConfigError with the key, the value and what is allowed, if `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{key}={value!r} is not possible: expected {expected}")


def require_prepared(runtime: Runtime, path: Path) -> None:
    """Check that this call may make the file `path` that all shards need.

    Raises ArtifactError if several shards run at the same time (`Runtime.prepared`).
    """
    if runtime.prepared:
        raise ArtifactError(f"{path} does not exist yet: it is made once for all shards. Run the same command with shard=prepare "
                            "first")


def require_package(package: str, wanted: bool, key: str) -> None:
    """Check that the package of an optional back end is installed.

    Raises BackendError if it is `wanted` and cannot be found.
    """
    if wanted and importlib.util.find_spec(package) is None:
        raise BackendError(f"{key}={package}: the package is not installed. See Packages in the README, or use {key}=torch")
