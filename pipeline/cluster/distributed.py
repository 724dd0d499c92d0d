"""The place of this process among those that torchrun or srun started for one run (see `pipeline.cluster.processes`).

Rank 0 plans, claims, prints and writes manifests; the others do their part of each step that it begins. `find_place` is None for
a single process.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.console import Console
from steps.runtime.context import require
from wsss.errors import ConfigError

GRACE = 5.0   # seconds within which torchrun or srun ends all processes after one has ended


@dataclass
class DistributedSettings:
    """`distributed.`: only for runs of several processes."""

    start: float       # seconds within which all processes must have started

    def __post_init__(self) -> None:
        require(self.start >= 2, "distributed.start", self.start, "at least 2 seconds")


@dataclass(frozen=True)
class Place:
    """The place of this process among `size`; they meet at `host`:`port`, where the launcher or rank 0 keeps the store."""

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    launcher_keeps_store: bool = False


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun or srun gave this process; None where it is the only one.

    Raises ConfigError when the launcher's variables do not fit together.
    """
    try:
        if int(environment.get("WORLD_SIZE", 1)) > 1:   # torchrun
            return Place(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")), environment["MASTER_ADDR"],
                         int(environment["MASTER_PORT"]), environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:   # srun; a batch script itself has no such variable
            port = 20000 + (37 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % 20000
            here = environment.get("SLURM_STEP_NUM_NODES") == "1"
            host = "127.0.0.1" if here else first_host(environment["SLURM_STEP_NODELIST"])
            return Place(*(int(environment[name]) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")),
                         environment.get("MASTER_ADDR", host), int(environment.get("MASTER_PORT", port)))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the launcher's environment is incomplete ({type(error).__name__}: {error}): expected RANK, "
                          "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT (torchrun), or srun's SLURM_ variables. Start the "
                          "processes with torchrun or srun, or unset WORLD_SIZE") from error
    return None


def first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: gpu[03-05,9],cpu1 -> gpu03."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


class QuietConsole(Console):
    """Of a process beside the first: prints warnings only, with its rank, and keeps the error that it ends with."""

    def __init__(self, rank: int, level: str):
        super().__init__(level)
        self.rank, self.error_text = rank, ""

    def result(self, text: str) -> None:
        pass

    def info(self, text: str) -> None:
        pass

    def warning(self, message: str) -> None:
        super().warning(f"process {self.rank}: {message}")

    def error(self, text: str) -> None:
        self.error_text = text
