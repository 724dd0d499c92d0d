"""Real processes of the command line, which rows of the campaign start, watch and kill.

A process is forked from a server that has imported the libraries and nothing of this repository, so its start takes a second less
than that of `python run_pipeline.py`; its own code it reads and starts as that does. It is the leader of a process group of its own.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

LIBRARIES = ["torch", "torch.distributed", "safetensors.torch", "torchvision.transforms.v2.functional", "numpy", "scipy.ndimage", "PIL.Image", "hydra",
             "omegaconf", "rich.progress", "yaml", "sklearn.cluster"]
IDLE = 60.0        # seconds without computing after which processes count as hanging
TICK = 0.01        # seconds between two looks at a process
START = None       # what a process does before it has claimed steps: start and plan
_CONTEXT = multiprocessing.get_context("forkserver")


class Hangs(Exception):
    """Processes live, and none of them computes."""


def _door(words: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
    """What `python run_pipeline.py WORDS` does in `folder`; output and errors are appended to `output`."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    sys.argv, sys.path[0] = ["run_pipeline.py", *words], str(ROOT)
    try:
        runpy.run_path(str(ROOT / "run_pipeline.py"), run_name="__main__")
    except KeyboardInterrupt:   # as the interpreter does
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


@dataclass
class Running:
    """The processes of one run, which work in `folder`; one for each rank."""

    folder: Path
    run: str                      # the name of the run
    processes: list = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def claim(self) -> dict | None:
        """The claim of the first process, as its file is now."""
        for path in (self.folder / "outputs" / self.run / ".locks").glob(f"*-{self.pids[0]}-*.json"):
            try:
                return json.loads(path.read_text())
            except (OSError, ValueError):   # just released
                pass
        return None

    def now(self) -> str | None:
        """The step that the run works on; START before the first one and after the last."""
        return (self.claim() or {}).get("now", START)

    def alive(self) -> list[int]:
        """The ranks that live."""
        return [rank for rank, process in enumerate(self.processes) if process.is_alive()]

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to the process groups of some ranks, by default of all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            for send in (os.killpg, os.kill):   # it may be about to get its own group
                try:
                    send(self.pids[rank], number)
                    break
                except ProcessLookupError:
                    pass

    def wait(self, seconds: float = 1800) -> list[int]:
        """The exit codes. Raises Hangs if the processes stop computing and do not end; kills them."""
        end, known, since = time.monotonic() + seconds, -1.0, time.monotonic()
        while self.alive():
            used = sum(cpu_seconds(self.pids[rank]) for rank in self.alive())
            if abs(used - known) > 0.02:
                known, since = used, time.monotonic()
            if time.monotonic() - since > IDLE or time.monotonic() > end:
                ranks = self.alive()
                self.send(signal.SIGKILL)
                raise Hangs(f"ranks {ranks} of {len(self.processes)} did not end, in {self.now() or 'the start'}; {self.folder / 'output'}")
            self.processes[self.alive()[0] if self.alive() else 0].join(0.05)
        return [process.exitcode for process in self.processes]


def start(words: Sequence[str], folder: Path, run: str, ranks: int = 1) -> Running:
    """Start a run in `folder`; its results are in `folder/outputs/RUN`, its output in `folder/output`."""
    _CONTEXT.set_forkserver_preload(LIBRARIES)
    common = {"WSSS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            common |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    running = Running(folder, run)
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        running.processes.append(_CONTEXT.Process(target=_door, args=(list(words), folder, common | own, folder / "output")))
        running.processes[-1].start()
    return running


def cpu_seconds(pid: int) -> float:
    """The seconds that a process has computed, in steps of 0.01; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
