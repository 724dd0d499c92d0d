"""A row of the campaign."""

from __future__ import annotations

import fcntl
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path("outputs/campaign")


class Unavailable(Exception):
    """This machine cannot do the trial, such as a mount without the rights for it. The message says why."""


@dataclass(frozen=True)
class Trial:
    """What a trial may use.

    draws: its random numbers; folder: its own, empty, removed if it succeeds; shared: of all trials of the campaign, for what is
    made once (`made_once`); short: whether it must be done in a few seconds, because it is one of the short form.
    """

    draws: np.random.Generator
    folder: Path
    shared: Path
    short: bool = False

    def made_once(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder `name`, filled by `make(folder)` by the first trial that asks for it; trials in other processes wait."""
        folder, done = self.shared / name, self.shared / f"{name}.done"
        self.shared.mkdir(parents=True, exist_ok=True)
        with open(self.shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder


@dataclass(frozen=True)
class Row:
    """One row: what is tried, and how often the long form wants it.

    trial: does one trial; returns the number of inputs that it tried, also by kind, and raises any exception if something is wrong.
    wanted: trials of the long form. short: trials of the short form, in the test suite. inputs: what is counted, such as "kills".
    """

    name: str
    about: str
    trial: Callable[[Trial], int | Mapping[str, int]]
    wanted: int
    short: int = 1
    inputs: str = "inputs"

    def draws(self, seed: int, number: int) -> np.random.Generator:
        """The random numbers of a trial."""
        return np.random.default_rng([seed, zlib.crc32(self.name.encode()), number])
