"""Send training curves and pictures to a logger (`logger=`), in addition to log.jsonl and log.csv, which are always written.

A new logger is a class with `scalars`, `pictures` and `close`, a row in `TRACKERS` and a choice in `Logger`. No result depends
on it.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from steps.runtime.context import StepContext
from steps.runtime.schedule import saved_step
from wsss.errors import BackendError


class Logger(Enum):
    tensorboard = "tensorboard"
    wandb = "wandb"


class Tracker(Protocol):
    """A receiver of the curves of one training."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """`pictures`: name -> (H, W, 3) uint8 RGB."""

    def close(self) -> None: ...


class TensorBoard:
    """Event files below `tensorboard/STEP-FINGERPRINT` of the run; `tensorboard --logdir outputs` shows all runs."""

    def __init__(self, run: Path, name: str, step: str, fingerprint: str, settings: Mapping[str, Any], first: int):
        from torch.utils.tensorboard import SummaryWriter

        # events from step `first` on belong to steps that are repeated
        self.writer = SummaryWriter(run / "tensorboard" / f"{step}-{fingerprint[:8]}", purge_step=first or None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A Weights & Biases run named RUN/STEP in the project "wsss"; its own files are in `wandb/` of the run.

    Run `wandb login` before, or set WANDB_MODE=offline and run `wandb sync` later.
    """

    def __init__(self, run: Path, name: str, step: str, fingerprint: str, settings: Mapping[str, Any], first: int):
        import wandb

        self.wandb = wandb
        run.mkdir(parents=True, exist_ok=True)
        try:
            # hashed because ids allow fewer characters than names; a training under another name is another run
            digest = hashlib.sha256(f"{name}/{step}/{fingerprint}".encode()).hexdigest()
            self.run = wandb.init(project="wsss", group=name, name=f"{name}/{step}", id=f"{step}-{digest[:16]}",
                                  resume="allow", dir=str(run), config=dict(settings), settings=wandb.Settings(console="off"))
        except wandb.Error as error:
            raise BackendError(f"logger=wandb: Weights & Biases cannot be reached ({error}). Run `wandb login`, set "
                               "WANDB_MODE=offline, or leave logger out") from error

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def pictures(self, pictures: Mapping[str, np.ndarray], step: int) -> None:
        self.run.log({name: self.wandb.Image(picture) for name, picture in pictures.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[Logger, Callable[..., Tracker]] = {Logger.tensorboard: TensorBoard, Logger.wandb: WandB}


def check_logger(logger: Logger | None) -> None:
    """Raise BackendError if the package of the logger is not installed.

    Raises BackendError that names the command that installs it.
    """
    if logger is not None:
        found = importlib.util.find_spec(logger.value)
        if found is None or found.origin is None:   # without origin it is only a folder of that name
            raise BackendError(f'logger={logger.value}: the package is not installed. pip install -e ".[{logger.value}]", or '
                               "leave logger out: log.jsonl and log.csv are always written")


@contextmanager
def tracked(context: StepContext, config: Any, run: Path, step: str, fingerprint: str,
            settings: Mapping[str, Any]) -> Iterator[dict[str, Callable]]:
    """Yield the callbacks `track`, `pictures_due` and `show` for the context of a training; {} without a logger."""
    if config.logger is None:
        yield {}
        return
    tracker = TRACKERS[config.logger](run, config.run_name, step, fingerprint, settings, saved_step(context.folder))

    def track(line: dict[str, Any]) -> None:
        tracker.scalars({f"{step}/{name}": value for name, value in line.items() if isinstance(value, float)}, line["step"])

    def due(number: int) -> bool:
        return number == 1 or number % config.pictures_every == 0

    def show(number: int, pictures: dict[str, np.ndarray]) -> None:
        tracker.pictures({f"{step}/{name}": picture for name, picture in pictures.items()}, number)
    try:
        yield {"track": track, "pictures_due": due, "show": show}
    finally:
        tracker.close()
