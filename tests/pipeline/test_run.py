"""A whole run: what it leaves, what a second call does, what flags and lists do."""

import json
import shutil

import numpy as np
import pytest

from pipeline import Pipeline
from steps.artifacts import Maps
from tests.check_summary import check
from wsss.data.images import read_mask, write_mask
from wsss.errors import ArtifactError, ConfigError, WsssError


def actions(pipeline) -> dict[str, str]:
    return {planned.name: planned.action for planned in pipeline.plan()}


def works(pipeline) -> dict[str, str]:
    """The steps that would do something, and why."""
    return {planned.name: planned.why for planned in pipeline.plan() if planned.works}


def test_eight_steps_end_in_a_sound_summary(smoke_outputs):
    assert check(smoke_outputs / "smoke") == []


def test_what_lies_in_the_run_folder(smoke_outputs):
    run = smoke_outputs / "smoke"
    steps = ["train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg"]
    assert sorted(path.name for path in run.iterdir()) == sorted([".lock", "config.yaml", "summary.json", *steps])
    for step in steps:
        manifest = json.loads((run / step / "manifest.json").read_text())
        assert {"settings", "fingerprint", "seed", "versions", "seconds", "peak_memory_mb"} <= manifest.keys()
    assert len(list((run / "make_cam").glob("*.npy"))) == 24 + 8   # train, and val to choose thresholds by
    assert len(list((run / "make_lpcam/fg_only").glob("*.npy"))) == 24 + 8
    assert len(list((run / "cam_to_ir_label").glob("*.png"))) == 24
    assert not list(run.rglob("*.tmp"))


def test_stored_maps_are_small_and_checked(outputs):
    maps = Maps(outputs / "smoke/make_cam")
    image_id = next(iter(maps.index))
    packed = maps.packed(image_id)
    assert packed.dtype == np.float16 and packed.shape[0] == len(maps.classes(image_id))
    file = outputs / f"smoke/make_cam/{image_id}.npy"
    for damage, message in ((b"", "cannot be read"), (file.read_bytes()[:-40], "cannot be read")):
        file.write_bytes(damage)
        with pytest.raises(ArtifactError, match=message):
            Maps(outputs / "smoke/make_cam").packed(image_id)
    np.save(file, packed * np.float16(np.nan))
    with pytest.raises(ArtifactError, match=r"outside"):
        Maps(outputs / "smoke/make_cam").packed(image_id)
    np.save(file, packed[:, :-1])
    with pytest.raises(ArtifactError, match="expected float16"):
        Maps(outputs / "smoke/make_cam").packed(image_id)


def test_a_second_call_has_nothing_to_do(smoke):
    assert set(actions(smoke()).values()) == {"up to date"}
    assert smoke().run()["eval_sem_seg"]["miou"] == smoke().run()["eval_sem_seg"]["miou"]


def test_workers_threads_and_device_change_nothing(smoke):
    assert works(smoke("workers=1", "threads=1", "device=cpu")) == {}


@pytest.mark.parametrize(("override", "expected"), [
    ("make_sem_seg_labels.beta=8", ["make_sem_seg_labels", "eval_sem_seg"]),
    ("eval_cam.threshold.cam=0.2", ["eval_cam"]),
    ("make_lpcam.n_clusters=3", ["make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg"]),
    ("make_cam.scales=[1.0,0.5]", ["make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels",
                                   "eval_sem_seg"])])
def test_a_changed_setting_makes_exactly_what_reads_it_stale(smoke, override, expected):
    stale = works(smoke(override, "replace=true"))
    assert list(stale) == expected
    assert override.split("=")[0] in stale[expected[0]]


def test_a_finished_training_is_replaced_only_when_allowed(smoke, outputs):
    weights = (outputs / "smoke/train_irn/weights.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="train_irn is finished in .* would be replaced .*train_irn.radius: 10 -> 6.*replace=true"):
        smoke("train_irn.radius=6").plan()
    smoke("train_irn.radius=6", "replace=true", "train_irn_pass=true").run()
    assert (outputs / "smoke/train_irn/weights.safetensors").read_bytes() != weights


def test_a_changed_training_mask_makes_only_scores_stale(smoke, outputs):
    root = next((outputs / ".data").iterdir())
    first = (root / "train.txt").read_text().split()[0]
    mask = read_mask(root / f"masks/{first}.png")
    mask[:4] = 255
    write_mask(root / f"masks/{first}.png", mask)
    assert list(works(smoke())) == ["eval_cam", "eval_sem_seg"]


def test_missing_artifacts_are_made_again_alone(smoke, outputs):
    folder = outputs / "smoke/make_cam"
    files = sorted(folder.glob("*.npy"))[:3]
    before = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(b"")
    files[2].write_bytes(before[2][:-10])
    untouched = sorted(folder.glob("*.npy"))[-1].stat().st_mtime_ns
    assert works(smoke()) == {"make_cam": "3 of 32 images are missing"}
    smoke().run()
    assert [file.read_bytes() for file in files] == before
    assert sorted(folder.glob("*.npy"))[-1].stat().st_mtime_ns == untouched


def test_flags_run_single_steps(smoke, outputs):
    shutil.rmtree(outputs / "smoke/make_cam")
    plan = actions(smoke("make_lpcam_pass=false", "make_cam_pass=true"))
    assert plan["make_cam"] == "run" and plan["make_lpcam"] == "up to date"


def test_what_a_step_reads_must_exist(smoke, outputs):
    shutil.rmtree(outputs / "smoke/make_cam")
    with pytest.raises(ConfigError, match="make_lpcam reads make_cam, which has not been made. Run it too: make_cam_pass=true"):
        smoke("make_lpcam_pass=true", "force=true").plan()
    with pytest.raises(ConfigError, match=r"eval_sem_seg reads make_sem_seg_labels, which was made with other settings .*beta: 10.0 -> 7.0"):
        smoke("make_sem_seg_labels.beta=7", "eval_sem_seg_pass=true").plan()


def test_force_makes_a_step_again(smoke, outputs):
    written = outputs / "smoke/eval_sem_seg/scores.json"
    before, content = written.stat().st_mtime_ns, written.read_bytes()
    smoke("eval_sem_seg_pass=true", "force=true").run()
    assert written.stat().st_mtime_ns > before and written.read_bytes() == content


def test_a_list_that_does_not_cover_its_readers_is_refused(smoke, tmp_path, outputs):
    root = next((outputs / ".data").iterdir())
    short = tmp_path / "short.txt"
    short.write_text("\n".join((root / "train.txt").read_text().split()[:4]))
    with pytest.raises(ConfigError, match=r"make_cam.split='.*short.txt' covers 4 of the 32 ids that make_lpcam reads"):
        smoke(f"make_cam.split={short}").plan()


def test_a_busy_folder_is_refused(smoke):
    first = smoke()
    with first.folder.locked(), pytest.raises(WsssError, match="is in use by process"):
        smoke().run()


def test_a_damaged_manifest_is_named_and_kept(smoke, outputs):
    manifest = outputs / "smoke/make_cam/manifest.json"
    manifest.write_text("{")
    with pytest.raises(ArtifactError, match="make_cam/manifest.json is damaged"):
        smoke().run()
    assert manifest.read_text() == "{" and list(manifest.parent.glob("*.npy"))


def test_the_irn_baseline_has_no_make_lpcam(outputs):
    pipeline = Pipeline.compose("experiment=irn", "data.n_train=24", "data.n_val=8", f"outputs={outputs}")
    plan = {planned.name: planned for planned in pipeline.plan()}
    assert "make_lpcam" not in plan
    assert plan["cam_to_ir_label"].reads == ("make_cam", "eval_cam")


def test_without_masks_the_rest_runs(outputs, tmp_path):
    data = shutil.copytree(next((outputs / ".data").iterdir()), tmp_path / "data")
    shutil.rmtree(data / "masks")
    pipeline = Pipeline.compose("data=folder", f"data.root={data}", "name=bare", f"outputs={outputs}", "data.image_size=96",
                                "model.backbone=resnet18", "train_cam.epochs=1", "train_irn.epochs=1", "make_lpcam.n_clusters=3", "threads=1")
    plan = {planned.name: planned.action for planned in pipeline.plan()}
    assert plan["eval_cam"] == plan["eval_sem_seg"] == "nothing to score"
    summary = pipeline.run()
    assert summary["eval_cam"] is summary["eval_sem_seg"] is None
    assert len(list((outputs / "bare/make_sem_seg_labels").glob("*.png"))) == 24
    source = json.loads((outputs / "bare/cam_to_ir_label/manifest.json").read_text())["result"]
    assert (source["conf_fg"], source["conf_bg"]) == (0.45, 0.25) and "published" in source["threshold_source"]
