"""A whole run: what it leaves, what a second call does, what flags and lists do."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision

from pipeline import Pipeline
from steps.runtime.artifacts import Maps
from tests.check_summary import check
from tests.conftest import TINY, actions, quick_plan, works
from wsss.data import folder
from wsss.errors import ArtifactError, ConfigError, DataError, WeightsError
from wsss.networks.weights import read_tensors


def test_what_lies_in_the_run_folder(smoke_outputs):
    run = smoke_outputs / "smoke"
    assert check(run) == []
    steps = ["train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg"]
    assert sorted(path.name for path in run.iterdir()) == sorted([".locks", "config.yaml", "run.json", "run.log", "summary.json", *steps])
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
    for wrong, message in ((packed * np.float16(np.nan), "not finite"), (packed + np.float16(2), "above 1"), (packed - np.float16(2), "below 0"),
                           (packed[:, :-1], "expected float16"), (packed.astype(np.float32), "expected float16")):
        np.save(file, wrong)
        with pytest.raises(ArtifactError, match=message):
            Maps(outputs / "smoke/make_cam").packed(image_id)


def test_a_second_call_has_nothing_to_do(smoke, monkeypatch):
    assert set(actions(smoke()).values()) == {"skip"}
    monkeypatch.setattr(folder, "check_files", None)   # the images were looked at
    before = {path: path.stat().st_mtime_ns for path in smoke().folder.path.glob("[!.]*/**/*")}
    smoke().run()
    assert {path: path.stat().st_mtime_ns for path in smoke().folder.path.glob("[!.]*/**/*")} == before


def test_a_finished_training_is_replaced_only_when_allowed(smoke, outputs):
    weights = (outputs / "smoke/train_irn/weights.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="train_irn is finished in .* would be replaced .*train_irn.radius: 10 -> 6.*replace=true"):
        smoke("train_irn.radius=6").plan()
    smoke("train_irn.radius=6", "replace=true", "train_irn_pass=true").run()
    assert (outputs / "smoke/train_irn/weights.safetensors").read_bytes() != weights


def test_what_a_step_reads_must_exist(smoke, outputs):
    shutil.rmtree(outputs / "smoke/make_cam")
    with pytest.raises(ConfigError, match="make_lpcam reads make_cam, which has not been made. Run it too: make_cam_pass=true"):
        smoke("make_lpcam_pass=true", "force=true").plan()
    with pytest.raises(ConfigError, match=r"eval_sem_seg reads make_sem_seg_labels, which is not up to date .*beta: 10.0 -> 7.0"):
        smoke("refiner.beta=7", "eval_sem_seg_pass=true").plan()


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


QUICK = (*TINY, "data.n_train=24", "data.n_val=8", "data.image_size=96", "train_cam.epochs=1", "train_irn.epochs=1", "threads=1")


def test_the_irn_baseline_in_bf16_with_soft_maps(outputs):
    pipeline = Pipeline.compose("experiment=irn", "precision=bf16", "make_sem_seg_labels.save_soft=true", *QUICK, f"outputs={outputs}")
    plan = {planned.name: planned for planned in quick_plan(pipeline)}
    assert "make_lpcam" not in plan
    assert plan["cam_to_ir_label"].reads == ("make_cam", "eval_cam")
    summary = pipeline.run()
    assert list(summary["scores"]) == ["make_cam", "make_sem_seg_labels"] and summary["scores"]["make_sem_seg_labels"]["images"] == 24
    edge = np.load(next((outputs / "irn/make_sem_seg_labels/edge").glob("*.npy")))
    assert edge.dtype == np.float16 and 0 <= edge.min() <= edge.max() <= 1


def test_loader_processes_change_no_byte(outputs):
    quick = ("experiment=smoke", *QUICK, "train_cam_pass=true", f"outputs={outputs}")
    weights = []
    for workers in (0, 2):
        Pipeline.compose(*quick, f"name=workers{workers}", f"workers={workers}").run()
        weights.append((outputs / f"workers{workers}/train_cam/weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_damaged_training_sample_is_named_also_by_a_loader_process(outputs):
    root = next((outputs / ".data").iterdir())
    image = root / "images" / f"{(root / 'train.txt').read_text().split()[0]}.jpg"
    content = bytearray(image.read_bytes())
    content[2:300] = bytes(298)   # damage that only decoding finds
    image.write_bytes(content)
    pipeline = Pipeline.compose("experiment=smoke", *QUICK, "name=damaged", "train_cam_pass=true", "workers=1", f"outputs={outputs}")
    with pytest.raises(DataError, match=f"{image.stem}.jpg is (truncated or )?damaged"):
        pipeline.run()


def test_a_local_weights_file_freezes_batch_norm_and_counts_by_its_bytes(outputs, tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    call = ("experiment=smoke", *QUICK, "name=weights", "backbone=resnet18", f"backbone.weights={tmp_path / 'weights.pth'}", "replace=true",
            "train_cam.freeze_early=false", f"outputs={outputs}")
    Pipeline.compose(*call, "train_cam_pass=true").run()
    trained = read_tensors(outputs / "weights/train_cam/weights.safetensors")
    for name in ("conv1.weight", "bn1.weight", "layer4.1.bn2.running_mean"):
        assert torch.equal(trained[f"backbone.{name}"], state[name])
    assert not torch.equal(trained["backbone.layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    plan = {planned.name: planned for planned in quick_plan(Pipeline.compose(*call))}
    assert plan["train_cam"].action == "skip" and plan["train_irn"].reads == ("cam_to_ir_label",)   # ImageNet's, as official
    state["layer1.0.conv1.weight"][0] += 1
    torch.save(state, tmp_path / "weights.pth")
    assert works(Pipeline.compose(*call))["train_cam"] == "initial_weights changed"
    (tmp_path / "weights.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="weights.pth is damaged"):
        Pipeline.compose(*call).plan()
    with pytest.raises(ConfigError, match="is not a file. Set it to resnet18-f37072fd.pth or a file"):
        Pipeline.compose("experiment=smoke", "backbone=resnet18", "backbone.weights=nowhere.pth", f"outputs={outputs}").plan()


def test_missing_results_of_training_and_scoring_are_found(smoke, outputs):
    (outputs / "smoke/eval_cam/scores.json").unlink()
    assert works(smoke()) == {"eval_cam": "scores.json missing or damaged"}
    smoke().run()
    (outputs / "smoke/train_cam/state.safetensors").unlink()   # may be deleted once the training is finished
    assert works(smoke()) == {}
    (outputs / "smoke/train_cam/weights.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="train_cam is finished .* would be replaced .weights.safetensors missing or damaged"):
        smoke().plan()


def test_thresholds_are_never_chosen_on_what_is_scored(smoke):
    with pytest.raises(ConfigError, match="eval_cam.split contains 8 images of the list val, on which eval_cam.threshold is chosen"):
        smoke("eval_cam.split=val").plan()
    with pytest.raises(ConfigError, match="eval_sem_seg.split contains 8 images of the list val, on which make_sem_seg_labels.bg"):
        smoke("eval_sem_seg.split=all").plan()
    plan = smoke("eval_sem_seg.split=val", "make_sem_seg_labels.bg_threshold=0.3", "replace=true").plan()
    assert len(plan[6].lists["ids"]) == 24 + 8   # the pseudo masks of train are made all the same


def test_without_masks_the_rest_runs(outputs, tmp_path):
    data = shutil.copytree(next((outputs / ".data").iterdir()), tmp_path / "data")
    shutil.rmtree(data / "masks")
    call = ("data=folder", f"data.root={data}", "name=bare", f"outputs={outputs}", "data.image_size=96", *TINY, "train_cam.epochs=1",
            "train_irn.epochs=1", "make_lpcam.n_clusters=3", "threads=1")
    default = {planned.name: planned.action for planned in quick_plan(Pipeline.compose(*call))}   # the CRF, which reads no labels and no IRN
    assert default == {"train_cam": "run", "make_cam": "run", "make_lpcam": "run", "eval_cam": "skip", "cam_to_ir_label": "left out",
                       "train_irn": "left out", "make_sem_seg_labels": "run", "eval_sem_seg": "skip"}
    cams = {planned.name: planned.why for planned in quick_plan(Pipeline.compose(*call, "seed_maps=make_cam")) if planned.action == "left out"}
    assert cams["make_lpcam"] == "no step reads it with seed_maps=make_cam" and "make_cam" not in cams
    pipeline = Pipeline.compose(*call, "refiner=walk")
    plan = {planned.name: planned.state for planned in quick_plan(pipeline)}
    assert plan["eval_cam"] == plan["eval_sem_seg"] == "nothing to score"
    summary = pipeline.run()
    assert summary["scores"] == {} and summary["unscored"] == {"eval_cam": "masks", "eval_sem_seg": "masks"}
    assert len(list((outputs / "bare/make_sem_seg_labels").glob("*.png"))) == 24
    source = json.loads((outputs / "bare/cam_to_ir_label/manifest.json").read_text())["result"]
    assert 0 < source["conf_bg"] < source["conf_fg"] < 1 and "the separation rule on 24 images (no val masks" in source["threshold_source"]
