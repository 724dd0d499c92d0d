"""A small finished run that many tests read or copy."""

import fcntl
import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from pipeline import Pipeline, config, order, runner
from pipeline.console import Console
from pipeline.order import Row
from pipeline.plan.plan import PlannedStep
from steps.runtime.datasets import CACHE
from tests.compositions import composed

ROOT = Path(__file__).resolve().parents[1]

# A network of 20 thousand parameters, because most tests do not depend on its accuracy. With this learning rate some classes get
# maps and prototypes and some do not, which some tests need. The name of the run is smoke.
TINY = ("backbone=tiny",)
SMOKE = ("experiment=smoke", *TINY, "data.image_size=96", "data.n_train=24", "data.n_val=8", "train_cam.epochs=20", "train_cam.batch_size=8",
         "train_cam.lr=4e-4", "train_cam.head_lr_mult=1.0", "train_cam.freeze_early=false", "make_lpcam.n_clusters=4",
         "make_lpcam.min_prototypes=1", "train_irn.epochs=2", "train_irn.batch_size=8", "threads=1", "train_cam.checkpoint_steps=10",
         "train_irn.checkpoint_steps=1", "refiner=walk", "report.write=false")


@pytest.fixture(scope="session", autouse=True)
def _process(tmp_path_factory):
    """Fix the thread count, because tests compare bytes between processes, do not write into the user's cache, and save time."""
    torch.set_num_threads(1)
    os.environ[CACHE] = str(tmp_path_factory.getbasetemp() / "cache")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # as in a run; read when CUDA starts
    gc.freeze()   # modules stay: no collection looks at them again
    with patch.object(config, "_composed", composed):
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made_once(name, make)` returns a folder that `make(folder)` fills once for all xdist processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent   # the folder of the whole session

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)   # other processes wait here
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)   # left by a process in which `make` failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder
    return made


@pytest.fixture(scope="session")
def smoke_outputs(made_once) -> Path:
    """The read-only `outputs` with the finished run `smoke`; see `outputs` for a copy."""
    return made_once("smoke", lambda outputs: Pipeline.compose(*SMOKE, f"outputs={outputs}").run())


def copied(outputs: Path, target: Path) -> Path:
    """A copy of a finished run that a test may damage. The states of the trainings, the largest files, are links."""
    def copy(source: str, target: str) -> None:
        (os.link if source.endswith("state.safetensors") else shutil.copy2)(source, target)
    return Path(shutil.copytree(outputs, target, copy_function=copy, dirs_exist_ok=True))


@pytest.fixture
def outputs(smoke_outputs, tmp_path) -> Path:
    """A copy of the finished run that a test may damage."""
    return copied(smoke_outputs, tmp_path / "outputs")


@pytest.fixture
def smoke(outputs):
    """`smoke(*overrides)` composes the pipeline of the finished run in `outputs`."""
    return lambda *overrides: Pipeline.compose(*SMOKE, f"outputs={outputs}", *overrides)


@pytest.fixture
def second_row(monkeypatch) -> Callable[[Pipeline, str], Row]:
    """`second_row(pipeline, step)` adds another row of the module of `step`, named second, with a copy of its settings and of its
    finished result."""
    def add(pipeline: Pipeline, step: str) -> Row:
        row = replace(order.BY_NAME[step], name="second", flag="")
        monkeypatch.setattr(order, "STEPS", (*order.STEPS, row))
        monkeypatch.setitem(order.BY_NAME, "second", row)
        pipeline.config.second, pipeline.config.steps = copy(getattr(pipeline.config, step)), [*pipeline.config.steps, "second"]
        shutil.copytree(pipeline.folder.result(step), pipeline.folder.result("second"))
        rewritten(pipeline.folder.result("second") / "manifest.json", step="second")
        return row
    return add


def quick_plan(pipeline: Pipeline) -> list[PlannedStep]:
    """The plan without the expected disk, memory and time, which take longer than the rest of it."""
    with patch.object(runner, "expect", return_value=None):
        return pipeline.plan()


def actions(pipeline: Pipeline) -> dict[str, str]:
    return {step.name: step.action for step in quick_plan(pipeline)}


def works(pipeline: Pipeline) -> dict[str, str]:
    """The steps that would do something, and why."""
    return {step.name: step.why for step in quick_plan(pipeline) if step.works}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a step but the manifest, which holds times."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "manifest.json"}


def rewritten(path: Path, **values: object) -> None:
    """Change values of a manifest or of run.json; without its checksum it is read as that of an older version."""
    known = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in (known | values).items() if key != "checksum"}))


def remove(outputs: Path, step: str) -> dict[str, bytes]:
    """Remove the result of a step and return what it held."""
    before = contents(outputs / "smoke" / step)
    shutil.rmtree(outputs / "smoke" / step)
    return before


@contextmanager
def interrupted(reports: int) -> Iterator[None]:
    """The run inside fails in the middle: at its report of progress of this number."""
    fail = [None] * (reports - 1) + [RuntimeError("pulled the plug")]
    with patch.object(Console, "progress", side_effect=fail), pytest.raises(RuntimeError, match="pulled the plug"):
        yield
