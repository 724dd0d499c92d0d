"""What goes wrong while a run works: bad images, damaged inputs, a full disk, a folder that is not ours."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from pipeline.commandline import act
from steps import make_cam
from steps.inference import ImagesFailed
from tests.conftest import SMOKE
from tests.pipeline.test_resume import contents, remove
from wsss.errors import ArtifactError, ConfigError

ROOT = Path(__file__).resolve().parents[2]


def broken_inside(path: Path) -> bytes:
    """Damage a JPEG so that only decoding finds it; return what it was."""
    content = path.read_bytes()
    path.write_bytes(content[:400] + bytes(400) + content[800:])
    return content


def test_one_bad_image_does_not_end_a_step(smoke, outputs, capsys):
    before = remove(outputs, "make_cam")
    image = next((outputs / ".data").iterdir()) / "images/val_0003.jpg"
    content = broken_inside(image)
    assert act(smoke("to_step=make_cam")) == 1
    errors = capsys.readouterr().err
    assert "error: make_cam: 1 of 32 images failed, the others are done. val_0003: " in errors and "val_0003.jpg is truncated or damaged" in errors
    partial = next((outputs / "smoke").glob("make_cam.partial-*"))
    assert "val_0003.jpg is truncated or damaged" in json.loads((partial / "failed.json").read_text())["val_0003"]
    assert len(list(partial.glob("*.npy"))) == 31
    made = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.npy")}
    assert {step.name: step.state for step in smoke().status()}["make_cam"] == "failed"
    image.write_bytes(content)
    planned = smoke().plan()[1]
    assert (planned.action, planned.to_do) == ("continue", 1)
    smoke("to_step=make_cam").run()
    folder = outputs / "smoke/make_cam"
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == made
    assert contents(folder) == before   # failed.json is gone


@pytest.mark.parametrize("error", [MemoryError("a map of 4 GB"), torch.OutOfMemoryError("CUDA out of memory")])
def test_an_image_that_is_too_large_fails_alone(smoke, outputs, monkeypatch, error):
    remove(outputs, "make_cam")
    whole = make_cam.multi_scale_cam

    def too_large(features_of, image, weight, *args):
        if image.shape == too_large.shape:
            raise error
        return whole(features_of, image, weight, *args)
    pipeline = smoke("to_step=make_cam")
    pipeline.plan()
    too_large.shape = pipeline.dataset.image("train_0005").shape
    monkeypatch.setattr(make_cam, "multi_scale_cam", too_large)
    with pytest.raises(ImagesFailed, match="train_0005: not enough memory"):
        pipeline.run()


def test_a_damaged_input_is_put_away_and_made_again_by_the_next_run(smoke, outputs):
    before = {step: remove(outputs, step) for step in ("make_lpcam", "cam_to_ir_label")}
    path = outputs / "smoke/make_cam/val_0001.npy"   # a val map: no prototype comes from it
    content = path.read_bytes()
    path.write_bytes(content[:-4] + np.full(2, np.nan, np.float16).tobytes())   # the same size
    with pytest.raises(ImagesFailed, match="make_lpcam: 1 of 32 images failed.* val_0001: .*make_cam/val_0001.npy holds numbers that are not"):
        smoke("make_lpcam_pass=true").run()
    assert path.with_name("val_0001.npy.damaged").exists()
    works = {planned.name: planned.to_do for planned in smoke().plan() if planned.works}
    assert works["make_cam"] == 1 and works["make_lpcam"] == 1
    smoke().run()
    assert path.read_bytes() == content
    for step, files in before.items():
        assert contents(outputs / "smoke" / step) == files


def test_damage_that_a_score_finds_is_put_away_too(smoke, outputs):
    before = remove(outputs, "eval_sem_seg")
    path = outputs / "smoke/make_sem_seg_labels/train_0002.png"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(len(content) - 60))   # the same size
    with pytest.raises(ArtifactError, match=r"eval_sem_seg \(put away as train_0002.png.damaged: the same command makes it again\): "):
        smoke().run()
    smoke().run()
    assert path.read_bytes() == content and contents(outputs / "smoke/eval_sem_seg") == before


def test_a_damaged_training_state_is_put_away(smoke, outputs):
    before = remove(outputs, "train_irn")
    partial = smoke().folder.partial("train_irn", smoke().plan()[5].fingerprint)
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="state.safetensors is damaged .*the same command trains again from the start"):
        smoke().run()
    smoke().run()
    assert contents(outputs / "smoke/train_irn") == before


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(options)` (re)mounts a small file system and returns its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        result = subprocess.run(["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", folder], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"cannot mount a file system here: {result.stderr.strip()}")
        return folder
    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def call(outputs: Path, *overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "run_pipeline.py", *SMOKE, f"outputs={outputs}", *overrides], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("step", "room"), [("make_cam", 30), pytest.param("train_irn", 2000, marks=pytest.mark.slow),
                                            pytest.param("make_lpcam", 100, marks=pytest.mark.slow),
                                            pytest.param("make_sem_seg_labels", 40, marks=pytest.mark.slow)])
def test_a_full_disk(small_disk, smoke_outputs, step, room):
    disk = small_disk("size=900m")
    shutil.copytree(smoke_outputs, disk / "outputs")
    before = remove(disk / "outputs", step)
    used = shutil.disk_usage(disk).used // 1024
    small_disk(f"size={used + room}k")
    full = call(disk / "outputs", f"to_step={step}")
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "No space left on device" in full.stderr and "MiB free" in full.stderr and "the same command continues" in full.stderr
    assert not (disk / "outputs/smoke" / step).exists()
    small_disk("size=900m")
    again = call(disk / "outputs", f"to_step={step}")
    assert again.returncode == 0, again.stderr
    assert contents(disk / "outputs/smoke" / step) == before


def test_a_read_only_folder(small_disk, smoke_outputs):
    disk = small_disk("size=900m")
    shutil.copytree(smoke_outputs, disk / "outputs")
    before = remove(disk / "outputs", "eval_sem_seg")
    small_disk("ro,size=900m")
    refused = call(disk / "outputs")
    assert refused.returncode == 1 and refused.stderr.startswith("error: ") and len(refused.stderr.splitlines()) == 1
    assert "Read-only file system" in refused.stderr and "outputs=DIR" in refused.stderr
    looked = call(disk / "outputs", "action=status")   # looking is possible
    assert looked.returncode == 0 and "eval_sem_seg         missing" in looked.stdout
    assert call(disk / "outputs", "action=plan").returncode == 0
    small_disk("rw,size=900m")
    assert call(disk / "outputs").returncode == 0
    assert contents(disk / "outputs/smoke/eval_sem_seg") == before


def test_a_run_folder_of_another_data_set_is_refused(smoke, outputs, tmp_path):
    data = shutil.copytree(next((outputs / ".data").iterdir()), tmp_path / "data")
    with pytest.raises(ConfigError, match="smoke was made from another data set, shapes in .*: kind 'shapes' there, 'folder' here.*name=NAME"):
        Pipeline.compose("data=folder", f"data.root={data}", "name=smoke", f"outputs={outputs}").plan()
    (data / "classes.txt").write_text((data / "classes.txt").read_text().replace("rose", "tulip"))
    (data / "labels.csv").write_text((data / "labels.csv").read_text().replace("rose", "tulip"))
    known = json.loads((outputs / "smoke/run.json").read_text())
    (outputs / "smoke/run.json").write_text(json.dumps({"data": {**known["data"], "kind": "folder", "name": "folder"}}))
    with pytest.raises(ConfigError, match="was made from another data set, .*classes .*'rose'.* there, .*'tulip'.* here"):
        Pipeline.compose("data=folder", f"data.root={data}", "name=smoke", f"outputs={outputs}").run()


def test_a_folder_that_is_no_run_is_left_alone(smoke, outputs):
    (outputs / "mine").mkdir()
    (outputs / "mine/thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="mine is no run folder: it has no run.json, but thesis.txt. Choose another run with name=NAME"):
        smoke("name=mine").run()
    assert [path.name for path in (outputs / "mine").iterdir()] == ["thesis.txt"]
