"""What goes wrong while a run works: bad images, damaged inputs, a full disk, a folder that is not ours."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pipeline import Pipeline
from pipeline.commandline import act
from steps.runtime.artifacts import Maps
from steps.runtime.inference import ImagesFailed
from tests.conftest import SMOKE, contents, interrupted, remove, rewritten
from wsss.cams import method
from wsss.data.drawing import CLASSES
from wsss.errors import ArtifactError, ConfigError


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
    whole = method.multi_scale_maps

    def too_large(method, net, features_of, image, *args):
        if image.shape == too_large.shape:
            raise error
        return whole(method, net, features_of, image, *args)
    pipeline = smoke("to_step=make_cam")
    pipeline.plan()
    too_large.shape = pipeline.dataset.image("train_0005").shape
    monkeypatch.setattr(method, "multi_scale_maps", too_large)
    with pytest.raises(ImagesFailed, match="train_0005: not enough memory"):
        pipeline.run()


def val_image_without_prototype(folder: Path) -> str:
    """With a class that has no prototype: make_lpcam reads its CAM, but no prototype comes from it."""
    with np.load(folder / "prototypes.npz") as file:
        found = set(file["class_index"][file["kept"] & ~file["is_background"]].tolist())
    maps = Maps(folder)
    return next(image_id for image_id in maps.index if image_id.startswith("val") and not found.issuperset(maps.classes(image_id)))


def test_a_damaged_input_is_moved_away_and_made_again_by_the_next_run(smoke, outputs):
    image_id = val_image_without_prototype(outputs / "smoke/make_lpcam")
    before = {step: remove(outputs, step) for step in ("make_lpcam", "cam_to_ir_label")}
    path = outputs / f"smoke/make_cam/{image_id}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + np.full(2, np.nan, np.float16).tobytes())   # the same size
    with pytest.raises(ImagesFailed, match=f"make_lpcam: 1 of 32 images failed.* {image_id}: .*make_cam/{image_id}.npy holds numbers that are not"):
        smoke("make_lpcam_pass=true").run()
    assert path.with_name(f"{image_id}.npy.damaged").exists()
    works = {planned.name: planned.to_do for planned in smoke().plan() if planned.works}
    assert works["make_cam"] == 1 and works["make_lpcam"] == 1
    smoke().run()
    assert path.read_bytes() == content
    for step, files in before.items():
        assert contents(outputs / "smoke" / step) == files


def test_damage_that_a_score_finds_is_moved_away_too(smoke, outputs):
    before = remove(outputs, "eval_sem_seg")
    path = outputs / "smoke/make_sem_seg_labels/train_0002.png"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(len(content) - 60))   # the same size
    with pytest.raises(ArtifactError, match=r"eval_sem_seg \(renamed to train_0002.png.damaged: the same command makes it again\): "):
        smoke().run()
    smoke().run()
    assert path.read_bytes() == content and contents(outputs / "smoke/eval_sem_seg") == before
    path = outputs / "smoke/eval_cam/scores.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"scores"', b'"scorez"'))   # the same size
    with pytest.raises(ArtifactError, match=r"summary \(renamed to scores.json.damaged: .*does not hold chosen, scores"):
        smoke().run()
    smoke().run()
    assert path.read_bytes() == before


def test_a_damaged_training_state_is_moved_away(smoke, outputs):
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


@pytest.fixture
def call(capsys):
    """`call(outputs, *overrides)`: the exit code, the output and the errors of a call of the command line."""
    def call(outputs: Path, *overrides: str) -> tuple[int, str, str]:
        return act(Pipeline.compose(*SMOKE, f"outputs={outputs}", *overrides)), *capsys.readouterr()
    return call


@pytest.mark.parametrize(("step", "room"), [("make_cam", 30), pytest.param("train_irn", 2000, marks=pytest.mark.slow),
                                            pytest.param("make_lpcam", 100, marks=pytest.mark.slow),
                                            pytest.param("make_sem_seg_labels", 40, marks=pytest.mark.slow)])
def test_a_full_disk(small_disk, call, smoke_outputs, step, room):
    disk = small_disk("size=900m")
    shutil.copytree(smoke_outputs, disk / "outputs")
    before = remove(disk / "outputs", step)
    used = shutil.disk_usage(disk).used // 1024
    small_disk(f"size={used + room}k")
    code, _, errors = call(disk / "outputs", f"to_step={step}")
    assert code == 1
    assert "No space left on device" in errors and "MiB free" in errors and "the same command continues" in errors
    assert re.search(rf"What is left to do \({step}\) needs about [\d.]+ MiB there in all", errors)
    assert not (disk / "outputs/smoke" / step).exists()
    small_disk("size=900m")
    assert call(disk / "outputs", f"to_step={step}")[0] == 0
    assert contents(disk / "outputs/smoke" / step) == before


def test_a_read_only_folder(small_disk, call, smoke_outputs):
    disk = small_disk("size=900m")
    shutil.copytree(smoke_outputs, disk / "outputs")
    before = remove(disk / "outputs", "eval_sem_seg")
    small_disk("ro,size=900m")
    code, _, errors = call(disk / "outputs")
    assert code == 1 and errors.startswith("error: ") and len(errors.splitlines()) == 1
    assert "Read-only file system" in errors and "outputs=DIR" in errors
    code, output, _ = call(disk / "outputs", "action=status")   # looking is possible
    assert code == 0 and "eval_sem_seg         missing" in output
    assert call(disk / "outputs", "action=plan")[0] == 0
    small_disk("rw,size=900m")
    assert call(disk / "outputs")[0] == 0
    assert contents(disk / "outputs/smoke/eval_sem_seg") == before


def test_a_run_folder_of_another_data_set_is_refused(smoke, outputs, tmp_path):
    data = shutil.copytree(next((outputs / ".data").iterdir()), tmp_path / "data")
    with pytest.raises(ConfigError, match="smoke was made from another data set, shapes in .*: kind 'shapes' there, 'folder' here.*name=NAME"):
        Pipeline.compose("data=folder", f"data.root={data}", "name=smoke", f"outputs={outputs}").plan()
    last = list(CLASSES)[-1]
    (data / "classes.txt").write_text((data / "classes.txt").read_text().replace(last, "tulip"))
    (data / "labels.csv").write_text((data / "labels.csv").read_text().replace(last, "tulip"))
    known = json.loads((outputs / "smoke/run.json").read_text())
    rewritten(outputs / "smoke/run.json", data={**known["data"], "kind": "folder", "name": "folder"})
    with pytest.raises(ConfigError, match=f"was made from another data set, .*classes .*'{last}'.* there, .*'tulip'.* here"):
        Pipeline.compose("data=folder", f"data.root={data}", "name=smoke", f"outputs={outputs}").run()


def test_a_step_without_manifest_is_left_alone(smoke, outputs):
    before = contents(outputs / "smoke/train_cam")
    (outputs / "smoke/train_cam/manifest.json").unlink()
    with pytest.raises(ArtifactError, match="train_cam/manifest.json is not a valid manifest .it does not exist, but its folder is not empty"):
        smoke("train_cam.epochs=2").run()
    assert contents(outputs / "smoke/train_cam") == before


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"data": null}'])
def test_a_damaged_or_lost_run_json_is_made_again(smoke, outputs, text):
    path = outputs / "smoke/run.json"
    before = json.loads(path.read_text())["data"]
    path.unlink() if text is None else path.write_text(text)
    assert not [planned for planned in smoke().plan() if planned.works]
    smoke().run()
    again = json.loads(path.read_text())["data"]
    assert {**again, "root": None} == {**before, "root": None} and again["root"] == str(outputs / ".data")   # a copy of that run


@pytest.mark.parametrize("call", [(), ("action=plan",), ("action=status",), ("action=verify",), ("action=report",), ("action=predict", "image=photo.jpg"),
                                  ("action=compare", "runs=[smoke,other]"), ("name=new", "reuse_from=[smoke]")], ids=" ".join)
def test_a_run_of_another_version_is_refused_with_what_to_do(smoke, outputs, call, capsys):
    (outputs / "other").mkdir()
    (outputs / "other/config.yaml").touch()
    path = outputs / "smoke/run.json"
    data = json.loads(path.read_text())["data"]
    (outputs / "smoke/config.yaml").write_text("seed_maps: lpcam\nmodel: {cam_weights: null}\n")   # an older version's
    for written in ({}, {"format": 1}, {"format": 3}):
        path.write_text(json.dumps({"data": data, **written}))
        before = {path: path.stat().st_mtime_ns for path in (outputs / "smoke").rglob("*")}
        assert act(smoke(*call)) == 1
        assert (f"outputs/smoke was written by another version of this program (format {written.get('format', 1)}, here 2), so its results cannot be "
                "used here. Make them again in a new run, name=NAME, or use that version") in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in (outputs / "smoke").rglob("*")} == before and not (outputs / "new").exists()


def test_a_run_that_knows_a_step_which_is_gone_can_be_read(smoke, outputs):
    """The configuration is that of a version with a second row of make_lpcam."""
    path = outputs / "smoke/config.yaml"
    config, usual = OmegaConf.load(path), smoke().recorded(outputs / "smoke")
    config.more_lpcam, config.more_pass = config.make_lpcam, True
    config.submit.more_lpcam = config.submit.make_lpcam
    for kind in ("more_lpcam", "more_lpcam_fg_only"):
        config.eval_cam.threshold[kind] = config.eval_cam.fallback[kind] = config.cam_to_ir_label.fallback[kind] = None
    OmegaConf.save(config, path)
    run = smoke().recorded(outputs / "smoke")
    assert run.composed == usual.composed and {planned.state for planned in run.plan} == {"done"}
    config.steps = [*config.steps[:3], "more_lpcam", *config.steps[3:]]
    OmegaConf.save(config, path)
    with pytest.raises(ConfigError, match="smoke/config.yaml: the run has the steps train_cam, .*, but this version of the program has no step "
                                          "more_lpcam. Use the version that made the run"):
        smoke().recorded(outputs / "smoke")


def test_repeated_work_continues_where_it_was_interrupted(smoke, outputs):
    before = contents(outputs / "smoke/make_cam")
    force = ("from_step=make_cam", "to_step=make_cam", "force=true")
    with interrupted(8):
        smoke(*force).run()
    assert contents(outputs / "smoke/make_cam") == before   # the present result stays until then
    planned = smoke(*force).plan()[1]
    assert (planned.action, planned.done, planned.to_do) == ("continue", 8, 24)
    smoke(*force).run()
    assert contents(outputs / "smoke/make_cam") == before


def test_a_folder_that_cannot_be_that_of_a_run_is_left_alone(smoke, outputs):
    (outputs / "file").write_text("mine")
    for name in ("file", "file/run"):
        with pytest.raises(ConfigError, match="outputs/file is a file, so .* cannot be a run folder"):
            smoke(f"name={name}").plan()
    with pytest.raises(ConfigError, match="smoke/eval_sem_seg is inside the run .*smoke"):
        smoke("name=smoke/eval_sem_seg").plan()
    (outputs / "mine").mkdir()
    (outputs / "mine/thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="mine is not a run folder: it has no valid run.json, but contains thesis.txt. Choose another run with name=NAME"):
        smoke("name=mine").run()
    assert [path.name for path in (outputs / "mine").iterdir()] == ["thesis.txt"]
