"""Start-up time of commands: `--help`, and `action=plan` and `action=status` of a finished small run."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Builder, Case

ROOT = Path(__file__).resolve().parent.parent
# The first measuring process makes the finished run, and their parent removes it.
OUTPUTS = Path(tempfile.gettempdir(), f"benchmark-startup-{os.getpid()}")
RUN = ("experiment=smoke", f"outputs={OUTPUTS}", "device=cpu", "report.write=false", "data.n_train=2", "data.n_val=1",
       "train_cam.epochs=1", "train_irn.epochs=1", "make_cam.scales=[1.0]", "make_lpcam.n_clusters=1")
atexit.register(shutil.rmtree, OUTPUTS, ignore_errors=True)


def python(*words: str) -> str:
    """The output of a command, for comparison. Raises CalledProcessError if it fails."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _command(*words: str, run: tuple[str, ...] = ()) -> Builder:
    def build(quick: bool) -> Case:
        if run and not OUTPUTS.exists():
            python("run_pipeline.py", *run)
        return Case("CPU seconds", lambda: python("run_pipeline.py", *run, *words), lambda: python("-c", "import torch"),
                    against="importing torch, nothing else", form="commands", commands=True)
    return build


BENCHMARKS = {"startup_help": _command("--help"), "startup_plan": _command("action=plan", run=RUN),
              "startup_status": _command("action=status", run=RUN)}
