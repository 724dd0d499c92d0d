"""One small finished run that many tests look at or copy."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import Pipeline

SMOKE = ("experiment=smoke", "threads=1", "train_cam.checkpoint_steps=10", "train_irn.checkpoint_steps=1", "report.write=false")


@pytest.fixture(scope="session", autouse=True)
def _threads():
    """Bytes are compared between this process and others: a fixed number of threads for all."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smoke_outputs(tmp_path_factory) -> Path:
    """`outputs` with the finished run `smoke`: never changed; see `outputs`."""
    outputs = tmp_path_factory.mktemp("smoke")
    Pipeline.compose(*SMOKE, f"outputs={outputs}").run()
    return outputs


@pytest.fixture
def outputs(smoke_outputs, tmp_path) -> Path:
    """A copy of the finished run that a test may damage. The states of the trainings, two thirds of it, are links."""
    def copy(source: str, target: str) -> None:
        (os.link if source.endswith("state.safetensors") else shutil.copy2)(source, target)
    return Path(shutil.copytree(smoke_outputs, tmp_path / "outputs", copy_function=copy))


@pytest.fixture
def smoke(outputs):
    """`smoke(*overrides)` composes the pipeline of the finished run in `outputs`."""
    return lambda *overrides: Pipeline.compose(*SMOKE, f"outputs={outputs}", *overrides)
