"""Curves elsewhere: TensorBoard, Weights & Biases. They watch and change nothing."""

import importlib.util
import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from pipeline import Pipeline, tracking
from tests.conftest import ROOT, SMOKE
from wsss.errors import BackendError

SHORT = (*SMOKE, "to_step=train_cam", "train_cam.epochs=2", "train_cam.val_epochs=1", "pictures_every=4")   # 6 steps


class FakeRun:
    def __init__(self, **options):
        self.options, self.lines, self.finished = options, [], False

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module that takes the place of wandb; `started` holds its runs."""
    module = ModuleType("wandb")
    module.started, module.Error = [], type("Error", (Exception,), {})
    module.Image = lambda picture: ("image", picture.shape)
    module.Settings = lambda **options: options
    module.init = lambda **options: module.started.append(FakeRun(**options)) or module.started[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=name))
    return module


def test_a_watched_training_leaves_the_bytes_of_an_unwatched_one(outputs, wandb):
    plain, watched = (Pipeline.compose(*SHORT, f"outputs={outputs}", f"name={name}", *words)
                      for name, words in (("plain", ()), ("watched", ("logger=wandb",))))
    for pipeline in (plain, watched):
        pipeline.run()
    for name in ("weights.safetensors", "state.safetensors", "log.jsonl", "log.csv"):
        assert (outputs / "watched/train_cam" / name).read_bytes() == (outputs / "plain/train_cam" / name).read_bytes(), name
    [run] = wandb.started
    assert run.options["name"] == "watched/train_cam" and run.options["dir"] == str(outputs / "watched") and run.finished
    assert run.options["config"]["epochs"] == 2
    log = [json.loads(line) for line in (outputs / "watched/train_cam/log.jsonl").read_text().splitlines()]
    losses = [(step, values["train_cam/loss"]) for step, values in run.lines if "train_cam/loss" in values]
    assert losses == [(line["step"], line["loss"]) for line in log if "loss" in line]
    assert [step for step, values in run.lines if "train_cam/val_map" in values] == [3, 6]
    pictures = {step: values for step, values in run.lines if any(name.startswith("train_cam/val_") and name != "train_cam/val_map" for name in values)}
    assert list(pictures) == [1, 4] and all(value[0] == "image" and value[1][2] == 3 for value in pictures[4].values())
    assert all(step >= before for (before, _), (step, _) in zip(run.lines, run.lines[1:]))   # wandb drops what goes back


def test_tensorboard_gets_curves_and_pictures_and_drops_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((0, 4), (2, 3)):   # interrupted after step 3, continued at step 2
        board = tracking.TensorBoard(tmp_path, "run", "train_cam", "0123456789", {}, first)
        for step in range(first, last):
            board.scalars({"train_cam/loss": step + 10 * first, "train_cam/rate": 0.1}, step)
        board.pictures({"train_cam/cat": np.zeros((4, 6, 3), np.uint8)}, last)
        board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard/train_cam-01234567"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_cam/loss")] == [(0, 0), (1, 1), (2, 22)]
    assert [(image.width, image.height) for image in events.Images("train_cam/cat")][-1] == (6, 4)


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_refused_before_work(tmp_path, monkeypatch, logger):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == logger else find_spec(name))
    pipeline = Pipeline.compose(*SMOKE, f"outputs={tmp_path}", f"logger={logger}")
    for call in (pipeline.plan, pipeline.run):
        with pytest.raises(BackendError, match=rf'logger={logger}: the package is not installed. pip install -e ".\[{logger}\]", or leave'):
            call()
    assert not (tmp_path / "smoke").exists()
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))   # a folder of that name
    with pytest.raises(BackendError, match="the package is not installed"):
        tracking.check_logger(tracking.Logger.wandb)


def test_wandb_that_cannot_be_reached(tmp_path, wandb):
    def init(**options):
        raise wandb.Error("no API key")
    wandb.init = init
    with pytest.raises(BackendError, match=r"Weights & Biases cannot be reached \(no API key\). Run `wandb login`"):
        tracking.WandB(tmp_path / "run", "run", "train_cam", "0" * 64, {}, 0)


def test_a_wandb_run_is_that_of_one_name_and_one_training(tmp_path, wandb):
    for name, fingerprint in (("a", "0"), ("a", "0"), ("b", "0"), ("sweep/a", "0"), ("a", "1")):
        tracking.WandB(tmp_path / name, name, "train_cam", fingerprint * 64, {}, 0)
    first, again, *others = [run.options["id"] for run in wandb.started]
    assert first == again and len({first, *others}) == 4 and not any(set(one) & set("/\\#?%:") for one in (first, *others))


def test_the_extras_of_the_packages_have_the_names_of_the_loggers():
    import tomllib
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {logger.value for logger in tracking.Logger} <= extras.keys() and set(tracking.TRACKERS) == set(tracking.Logger)


@pytest.mark.slow
def test_the_real_wandb_offline(tmp_path):
    pytest.importorskip("wandb", reason="pip install wandb")
    run = subprocess.run([sys.executable, "run_pipeline.py", *SHORT, f"outputs={tmp_path}", "logger=wandb"], cwd=ROOT, text=True,
                         capture_output=True, env={**os.environ, "WANDB_MODE": "offline"})
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "smoke/wandb").glob("offline-run-*/*.wandb"))
