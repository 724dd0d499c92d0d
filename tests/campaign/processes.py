"""Real processes of the command line, which rows of the campaign start, watch and kill.

`start` forks a process from a server that has imported the libraries and nothing of this repository, so its start takes a second
less than that of `python run_pipeline.py`; its own code it reads and starts as that does. `plain` is the interpreter's own start,
also inside another command such as unshare. Each process is the leader of a process group of its own.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

LIBRARIES = ["torch", "torch.distributed", "torchvision", "safetensors.torch", "numpy", "scipy.ndimage", "PIL.Image", "hydra", "omegaconf", "yaml",
             "rich.progress"]
IDLE = 60.0        # seconds without computing after which processes count as hanging
LONGEST = 3600.0   # seconds after which they count as hanging also when they compute
TICK = 0.01        # seconds between two looks at a process: as exact as the system counts its computing
START = "start"    # what a run does before it works on a step: it starts and plans
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree"}   # events of the interpreter
_CONTEXT = multiprocessing.get_context("forkserver")


class Hangs(Exception):
    """Processes live, and none of them computes."""


class _Plain:
    """A subprocess with the methods of a process of multiprocessing."""

    def __init__(self, process: subprocess.Popen):
        self._process, self.pid = process, process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, seconds: float) -> None:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass


@dataclass
class Running:
    """The processes of one run, one for each rank. It works in `folder`: its results are in `outputs/RUN`, its output in `output`."""

    folder: Path
    run: str
    output: Path
    processes: list[Any]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def said(self) -> str:
        """What it has printed, and earlier calls with the same output."""
        return self.output.read_text() if self.output.exists() else ""

    def now(self) -> str:
        """The step that it works on, or START, by the claim of the first process."""
        for path in (self.folder / "outputs" / self.run / ".locks").glob(f"*-{self.pids[0]}-*.json"):
            try:
                return json.loads(path.read_text())["now"] or START
            except (OSError, ValueError):   # just released
                pass
        return START

    def alive(self) -> list[int]:
        """The ranks that live."""
        return [rank for rank, process in enumerate(self.processes) if process.is_alive()]

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to the process groups of some ranks, by default of all."""
        for rank in self.alive() if ranks is None else ranks:
            for send in (os.killpg, os.kill):   # it may be about to get its own group
                try:
                    send(self.pids[rank], number)
                    break
                except ProcessLookupError:
                    pass

    def wait(self) -> list[int]:
        """The exit codes. If the processes stop computing and do not end, kills them and raises Hangs."""
        begin = since = time.monotonic()
        looked = known = -1.0
        while alive := self.alive():
            if (now := time.monotonic()) - looked > 1:
                looked, used = now, group_seconds(self.pids)
                known, since = (known, since) if used == known else (used, now)
            if now - since > IDLE or now - begin > LONGEST:
                self.send(signal.SIGKILL)
                raise Hangs(f"ranks {alive} of {len(self.processes)} did not end, at {self.now()}; see {self.output}")
            self.processes[alive[0]].join(0.1)
        return [process.exitcode for process in self.processes]


def start(words: Sequence[str], folder: Path, run: str, ranks: int = 1, output: str = "output", victim: int = 0,
          kill_at: int = 0) -> Running:
    """Start a run. `kill_at`: the process of rank `victim` kills itself by SIGKILL just before its change of this number to a file
    or folder; 0: it does not."""
    _CONTEXT.set_forkserver_preload(LIBRARIES)
    common = _environment(folder)
    if ranks > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            common |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    running = Running(folder, run, folder / output, [])
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        process = _CONTEXT.Process(target=_door, args=(list(words), folder, common | own, folder / output,
                                                       kill_at if rank == victim else 0))
        process.start()
        running.processes.append(process)
    return running


def plain(words: Sequence[str], folder: Path, run: str, inside: Sequence[str] = (), output: str = "output") -> Running:
    """Start a run by `python run_pipeline.py`, as the argument of the command `inside`."""
    command = [*inside, sys.executable, str(ROOT / "run_pipeline.py"), *words]
    with open(folder / output, "a") as log:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **_environment(folder)}, stdout=log, stderr=log,
                                   start_new_session=True)
    return Running(folder, run, folder / output, [_Plain(process)])


def _environment(folder: Path) -> dict[str, str]:
    return {"WSSS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def _door(words: Sequence[str], folder: Path, environment: Mapping[str, str], output: Path, kill_at: int) -> None:
    """What `python run_pipeline.py WORDS` does in `folder`; what it prints is appended to `output`."""
    os.setsid()
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    if kill_at:
        _kill_at(kill_at, str(folder))
    sys.argv, sys.path[0] = ["run_pipeline.py", *words], str(ROOT)
    try:
        runpy.run_path(str(ROOT / "run_pipeline.py"), run_name="__main__")
    except KeyboardInterrupt:   # as the interpreter does
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _kill_at(number: int, folder: str) -> None:
    """Let this process kill itself just before its change of this number to what is in `folder`."""
    left = number

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = arguments[0]
            if isinstance(path, (str, Path)) and (not os.path.isabs(path) or str(path).startswith(folder)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hear)


def cpu_seconds(pid: int) -> float:
    """The seconds that a process has computed, in steps of 0.01; 0 if it is gone."""
    return _computed(_stat(pid))


def group_seconds(groups: Sequence[int]) -> float:
    """The seconds that the living processes of some process groups have computed."""
    found = (_stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return sum(_computed(fields) for fields in found if fields and int(fields[2]) in groups)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _computed(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
