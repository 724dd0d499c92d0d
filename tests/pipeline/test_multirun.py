"""Sweeps: what the members share is made once, each member is a run, and the scores end in one table and plot."""

import csv
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline import Pipeline
from pipeline.multirun import Sweep
from tests import processes
from tests.conftest import ROOT, SMOKE
from wsss.errors import ConfigError

BEFORE_THE_WALK = ["train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn"]


def sweep(outputs: Path, *words: str) -> Sweep:
    return Sweep(["-m", *SMOKE, f"outputs={outputs}", *words])


def test_the_members_and_what_they_share(outputs):
    walks = sweep(outputs, "refiner.beta=4,8", "refiner.exp_times=6,8")
    assert [str(member.folder.path.relative_to(outputs)) for member in walks.members] == [
        f"smoke/refiner.beta={beta},refiner.exp_times={times}" for beta in (4, 8) for times in (6, 8)]
    assert walks.shared() == BEFORE_THE_WALK
    assert sweep(outputs, "make_lpcam.n_clusters=3,5").shared() == ["train_cam", "make_cam"]
    assert sweep(outputs, "seed=1,2").shared() == []


def test_the_words_for_each_launch(outputs):
    calls = []
    walks = sweep(outputs, "refiner.beta=4,8", "hydra/launcher=submitit_local", "name=mine")
    assert walks.run(calls.append) == 1   # nothing was made
    shared, members = calls
    assert shared[:3] == ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir='{outputs.resolve()}/.sweep'"]
    assert shared[-6:] == [f"{step}_pass=true" for step in BEFORE_THE_WALK]
    assert "refiner.beta=4" in shared
    assert "refiner.beta=4,8" in members and "multirun.name='mine'" in members and "multirun.over=[refiner.beta]" in members


@pytest.mark.parametrize("words", [("-m",), ("-m", "seed=1"), ("-m", "seed=interval(1,2)")])
def test_a_sweep_over_nothing_is_refused(words):
    with pytest.raises(ConfigError, match="-m needs a key with several values"):
        Sweep(words)


def test_a_member_is_read_like_any_run(outputs, tmp_path):
    member = sweep(outputs, "refiner.beta=10,8").members[0]
    shutil.copytree(outputs / "smoke", tmp_path / "member")
    (tmp_path / "member/config.yaml").write_text(OmegaConf.to_yaml(member.composed, resolve=True))
    (tmp_path / "member").rename(member.folder.path)
    run = Pipeline.compose(*SMOKE, f"outputs={outputs}").recorded(member.folder.path)
    assert run.name == "refiner.beta=10" and run.summary["scores"]["make_sem_seg_labels"]


@pytest.mark.slow
def test_a_sweep_over_the_walk_trains_nothing_again(outputs):
    done = processes.run("run_pipeline.py", "-m", *SMOKE, f"outputs={outputs}", "refiner.beta=4,8")
    assert done.returncode == 0, done.stderr
    for beta in (4, 8):
        member = outputs / f"smoke/refiner.beta={beta}"
        for step in BEFORE_THE_WALK:
            assert (member / step / "manifest.json").exists()
            assert f'"taken_from": "{outputs.resolve()}/smoke"' in (member / step / "manifest.json").read_text()
    rows = list(csv.reader((outputs / "smoke/sweep.csv").open()))
    assert rows[0] == ["refiner.beta", "CAM", "LPCAM-F", "LPCAM", "pseudo masks"]
    assert [row[0] for row in rows[1:]] == ["4", "8"] and all(float(cell) > 0 for row in rows[1:] for cell in row[1:])
    assert not (ROOT / "multirun.yaml").exists()
