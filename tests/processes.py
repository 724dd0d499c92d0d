"""Python processes for tests: `run` and `start` as in subprocess, with the words that follow `python` on a command line.

Each process is a fork of a server that has imported torch, torchvision and Hydra, for which a new interpreter takes three seconds of
CPU. It imports this project's code itself, from its working directory, and is a process of its own in all other respects.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parents[1]


class Process:
    """A started process, with what the tests use of subprocess.Popen. `pid` is its own: signals reach it directly."""

    def __init__(self, words: tuple[str, ...], cwd: Path, env: Mapping[str, str] | None):
        request, ask = os.pipe()
        pipes = [os.pipe() for _ in range(3)]
        theirs = [request, *(write for _, write in pipes)]
        socket.send_fds(_server(), [b"1"], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        with open(ask, "w") as file:
            json.dump({"words": words, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}, file)
        self.stdout, self.stderr, self._status = (open(read, encoding="utf-8") for read, _ in pipes)
        self.pid, self.returncode = int(self._status.readline()), None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._status.readline())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it still writes to stdout and stderr. After `timeout` seconds it is killed."""
        timer = Timer(timeout, self.kill)
        timer.start()
        try:
            with ThreadPoolExecutor(2) as readers:
                texts = tuple(readers.map(lambda file: file.read(), (self.stdout, self.stderr)))
            self.wait()
        finally:
            timer.cancel()
        return texts

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        try:
            self.send_signal(signal.SIGKILL)
        except ProcessLookupError:   # it has ended, and nobody has waited for it
            pass


def start(*words: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> Process:
    """Start `python` with these words: `-c CODE`, `-m MODULE` or a file, and its arguments."""
    return Process(tuple(map(str, words)), cwd, env)


def run(*words: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The exit status and the output of such a process."""
    process = start(*words, cwd=cwd, env=env)
    texts = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, *texts)


@cache
def _server() -> socket.socket:
    """The server of this test process, which ends with it."""
    ours, theirs = socket.socketpair()
    server = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    theirs.close()

    @atexit.register
    def stop() -> None:
        ours.close()
        server.wait()
    return ours


def serve(server: socket.socket) -> list[str]:
    """Fork a process for each request, until the tests end. Returns in the forked processes only: the words to run."""
    import hydra  # noqa: F401
    import torchvision  # noqa: F401
    gc.freeze()   # what is imported stays
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, 1, 4)
        if not message:
            while True:   # their CPU time is then part of ours
                try:
                    os.wait()
                except ChildProcessError:
                    sys.exit()
        if os.fork() == 0:
            server.close()
            return keep(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while _reaped():
            pass


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def keep(ask: int, stdout: int, stderr: int, status: int) -> list[str]:
    """Fork the process itself, in which this returns; the one that keeps it tells its number and its exit status, and ends with it."""
    with open(ask) as file:
        request = json.load(file)
    if pid := os.fork():
        os.close(stdout), os.close(stderr)
        os.write(status, f"{pid}\n".encode())
        os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    os.dup2(stdout, 1), os.dup2(stderr, 2)
    for descriptor in (stdout, stderr, status):
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    return request["words"]


def become(words: list[str]) -> None:
    """What `python` does with these words."""
    what, *arguments = words
    elsewhere = [folder for folder in sys.path[1:] if Path(folder) != ROOT]
    if what == "-c":
        code, *arguments = arguments
        sys.argv, sys.path = ["-c", *arguments], ["", *elsewhere]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif what == "-m":
        sys.argv, sys.path = arguments, [os.getcwd(), *elsewhere]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path = words, [str(Path(what).resolve().parent), *elsewhere]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
