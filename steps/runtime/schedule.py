"""The schedule of a training and its last saved step. Does not import torch, unlike `steps.runtime.training`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from steps.step import StepSettings
from wsss.errors import WeightsError
from wsss.networks.facts import read_metadata

WEIGHTS = "weights.safetensors"
# In the weights file of a segmentation network: what it was trained on
TRAINED_ON, PSEUDO_MASKS, GROUND_TRUTH = "trained_on", "pseudo masks", "ground truth"
STATE, LOG, LOG_CSV = "state.safetensors", "log.jsonl", "log.csv"

LARGEST_FACTOR = 1e6   # of a learning rate: a product of several is still a float32, as optimisers need


class OptimizerName(Enum):
    sgd = "sgd"
    adam = "adam"      # the weight decay is part of the gradient
    adamw = "adamw"


@dataclass
class TrainingSettings(StepSettings):
    """The settings that all trainings share: the planner and the training loop read them."""

    split: str | None            # the list to train on; null: train
    epochs: int | None           # null: `min_epochs`, or more if `min_steps` needs more: small data sets need as many steps
    steps: int | None            # the length in optimiser steps instead of epochs; the last epoch may be incomplete
    min_epochs: int
    min_steps: int
    batch_size: int
    crop_size: int               # pixels
    optimizer: OptimizerName
    lr: float                    # of the first group of parameters
    momentum: float              # for sgd
    weight_decay: float
    power: float                 # of the poly schedule
    parts: int | None            # each batch is processed in this many parts; results do not depend on the number of processes
                                 # that share them. null: one part for each process, faster; results depend on their number
    checkpoint_steps: int        # steps between two saves of the state
    weights: str | None          # a trained network (of a run, or the official file), taken instead of training

    def __post_init__(self) -> None:
        for name in ("epochs", "steps"):
            self.require(getattr(self, name) is None or getattr(self, name) >= 1, name, "null or at least 1")
        self.require(self.steps is None or self.epochs is None, "steps",
                     f"null, or {self.step}.epochs=null (now {self.epochs}): the length is set in epochs or in steps, not both")
        for name in ("min_epochs", "batch_size", "checkpoint_steps"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.min_steps >= 0, "min_steps", "0 or more")
        self.require(self.parts is None or self.parts >= 1, "parts", "null or at least 1")
        self.require(self.crop_size >= 32, "crop_size", "at least 32")
        self.require_factor("lr")
        for name in ("momentum", "weight_decay"):
            self.require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self.require(self.power >= 0, "power", "at least 0")

    def require_factor(self, name: str) -> None:
        """Check a factor of the learning rate: `lr` or one of a group of parameters."""
        self.require(0 < getattr(self, name) <= LARGEST_FACTOR, name, f"above 0 and at most {LARGEST_FACTOR:g}")


@dataclass(frozen=True)
class Schedule:
    """The length of a training and its learning rate: `lr_factor(step, total)` multiplies the rates of the optimiser."""

    purpose: str            # the step's name: part of every random draw
    steps: int              # of the optimiser, in total
    batch_size: int
    lr_factor: Callable[[int, int], float]
    checkpoint_steps: int
    parts: int | None = None   # of a batch, processed one by one; None: one for each process
    val_epochs: int = 1        # epochs between two validations; also after the last step

    def steps_per_epoch(self, n_ids: int) -> int:
        return steps_per_epoch(self.batch_size, n_ids)

    def parts_per_batch(self, n_ids: int, processes: int) -> int:
        return min(self.parts or processes, self.batch_size, n_ids)


def steps_per_epoch(batch_size: int, n_ids: int) -> int:
    """Official: drop_last. Differs because fewer images than a batch make one smaller batch (official: no step at all)."""
    return max(1, n_ids // batch_size)


def total_steps(settings: Any, n_ids: int) -> int:
    """The number of optimiser steps of a training on `n_ids` images: `steps`, or those of `epochs`. If both are null, those of
    `min_epochs`, or of as many epochs as `min_steps` needs if these are more."""
    if settings.steps is not None:
        return settings.steps
    of_epoch = steps_per_epoch(settings.batch_size, n_ids)
    return of_epoch * (settings.epochs or max(settings.min_epochs, -(-settings.min_steps // of_epoch)))


def epochs_of(settings: Any, n_ids: int) -> int | float:
    """The length of a training in epochs, to two decimals if the last one is incomplete."""
    steps, of_epoch = total_steps(settings, n_ids), steps_per_epoch(settings.batch_size, n_ids)
    return round(steps / of_epoch, 2) if steps % of_epoch else steps // of_epoch


def saved_step(folder: Path) -> int:
    """The step at which a training in `folder` was last saved; 0 without a readable state."""
    try:
        return read_metadata(folder / STATE)["step"]
    except (WeightsError, KeyError):
        return 0
