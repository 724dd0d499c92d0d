"""MCTformer in a run: training, maps, and LPCAM in its maps."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from steps.parts.training_pictures import cam_pictures
from steps.runtime.artifacts import Maps
from steps.runtime.context import Runtime, StepContext
from steps.runtime.schedule import WEIGHTS
from tests.conftest import SMOKE, actions, contents, interrupted, works
from tests.networks import new_backbone
from tests.pipeline.test_distributed import together
from wsss.cams.cam import CAM
from wsss.cams.mctformer import MCTformerMaps
from wsss.classifiers.mctformer import MCTformer
from wsss.errors import ConfigError
from wsss.networks.weights import read_tensors

STEPS = ("train_cam", "make_cam", "make_lpcam", "eval_cam")
OWN = (f"steps=[{','.join(STEPS)}]", "name=mct", "backbone=timm", "backbone.network=test_vit", "backbone.pretrained=false",
       "backbone.drop_path=0.1", "classifier=mctformer_v2", "cam=mctformer", "train_cam.epochs=2", "train_cam.schedule=cosine",
       "train_cam.min_lr=1e-5", "train_cam.random_area=[0.3,1.0]", "train_cam.rand_augment=9", "train_cam.erase=0.25", "train_cam.checkpoint_steps=1",
       "train_cam.crop_size=64", "make_cam.scales=[1.0]", "make_lpcam.save_fg_maps=true")
MCT = (*(each for each in SMOKE if not each.startswith(("backbone", "train_cam.epochs", "train_cam.checkpoint"))), *OWN)


@pytest.fixture(scope="session")
def mct_outputs(smoke_outputs, made_once):
    """The finished run `mct`: never changed."""
    def make(outputs):
        shutil.copytree(smoke_outputs / ".data", outputs / ".data", symlinks=True)
        Pipeline.compose(*MCT, f"outputs={outputs}").run()
    return made_once("mct", make)


@pytest.fixture
def mct(mct_outputs, tmp_path):
    outputs = shutil.copytree(mct_outputs, tmp_path / "outputs", symlinks=True)
    return lambda *overrides: Pipeline.compose(*MCT, f"outputs={outputs}", *overrides)


def test_a_run_trains_and_makes_maps(mct):
    folder = mct().folder
    log = [json.loads(line) for line in (folder.result("train_cam") / "log.jsonl").read_text().splitlines()]
    losses = [line for line in log if "loss" in line]
    assert len(losses) == 6 and all(line["loss"] == pytest.approx(line["class_tokens"] + line["cells"]) for line in losses)
    assert 0 < losses[-1]["lr"] < losses[1]["lr"] and log[-1]["val_map"] > 0
    tensors = read_tensors(folder.result("train_cam") / WEIGHTS)
    assert {name: tuple(tensors[name].shape) for name in ("tokens", "positions", "cells.weight")} == {
        "tokens": (1, 8, 64), "positions": (1, 8, 64), "cells.weight": (8, 64, 3, 3)}
    scores = json.loads((folder.path / "summary.json").read_text())["scores"]
    assert {kind: scores[kind]["title"] for kind in ("make_cam", "make_lpcam")} == {"make_cam": "MCTformer", "make_lpcam": "LPCAM"}
    assert all(step.ok for step in mct().verify()) and works(mct()) == {}


def test_maps_are_brought_to_0_and_1_in_the_image(mct):
    folder = mct().folder
    for step, kind in (("make_cam", ""), ("make_lpcam", ""), ("make_lpcam", "fg_only")):
        maps = Maps(folder.result(step), kind)
        image_id = next(image_id for image_id in maps.index if maps.classes(image_id))
        facts, full = maps.facts(image_id), maps.at(image_id, "full")
        assert facts["merge"] == "stretched" and facts["grids"] == [[-(-facts["height"] // 16), -(-facts["width"] // 16)]]
        assert full.shape[1:] == (facts["height"], facts["width"])
        assert torch.all(full.amin((1, 2)) == 0) and np.allclose(full.amax((1, 2)), 1)


def test_lpcam_depends_on_the_method_of_the_maps_and_on_the_taps(mct, smoke):
    assert list(works(mct("make_lpcam.taps=centre"))) == ["make_lpcam", "eval_cam"]
    identity = mct().folder.manifest("make_lpcam")["identity"]
    assert identity["cam"] == {"method": "mctformer", "last_blocks": 3, "refine": True} and identity["make_lpcam"]["taps"] == "all"
    other = smoke().folder.manifest("make_lpcam")["identity"]
    assert "cam" not in other and "taps" not in other["make_lpcam"]


def test_it_is_continued_with_the_same_bits(mct):
    outputs = mct().folder.path.parent
    before = contents(outputs / "mct/train_cam")
    shutil.rmtree(outputs / "mct/train_cam")
    with interrupted(3):
        mct("to_step=train_cam").run()
    assert actions(mct("to_step=train_cam"))["train_cam"] == "continue"
    mct("to_step=train_cam", "workers=1").run()   # nor do results depend on the processes that load images
    assert contents(outputs / "mct/train_cam") == before


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(mct):
    outputs = mct().folder.path.parent
    before = {name: contents(outputs / "mct" / name) for name in STEPS[:3]}
    for name in before:
        shutil.rmtree(outputs / "mct" / name)
    together(outputs, *MCT[len(MCT) - len(OWN):], "to_step=make_lpcam")
    assert {name: contents(outputs / "mct" / name) for name in before} == before


def test_the_new_settings_count_and_older_runs_stay_valid(mct, smoke):
    assert set(smoke().folder.manifest("train_cam")["identity"]["train_cam"]) & {"schedule", "min_lr", "warmup_start", "random_area", "rand_augment",
                                                                             "erase"} == set()
    for change in ("schedule=poly", "min_lr=0", "random_area=null", "rand_augment=0", "erase=0", "warmup_start=0.1"):
        more = ("train_cam.min_lr=0",) if change == "schedule=poly" else ()
        assert f"train_cam.{change.partition('=')[0]}" in works(mct(f"train_cam.{change}", *more, "replace=true"))["train_cam"]


@pytest.mark.parametrize(("method", "parts"), [(MCTformerMaps(3, True), 3), (CAM(), 1)])
def test_pictures_of_a_training_are_its_maps_if_the_method_fits(method, parts):
    net = MCTformer(True).new(new_backbone("test_vit"), 3)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    dataset = SimpleNamespace(image=lambda image_id: image, labels={"a": [2, 0]})
    context = StepContext("train_cam", None, dataset, {"ids": ("a",), "log": ()}, Path(), methods={"cam": method}, runtime=Runtime())
    assert cam_pictures(context, net)["a"].shape == (40, parts * 60, 3)


def test_official_dictionaries_are_written_and_read(mct, tmp_path):
    """engine.py: class, from 0 -> map (H, W). The official network has another size than this one."""
    files = tmp_path / "official"
    report = {line.what: (line.found, line.note) for line in mct("action=export_official", f"export_to={files}").export_official()}
    assert report["cam_mask"][0] == 32 and not report["checkpoint.pth"][0]
    assert "has the backbone test_vit, the official network of MCTformer a deit_small_patch16_224" in report["checkpoint.pth"][1]
    maps = Maps(mct().folder.result("make_cam"))
    image_id = next(image_id for image_id in maps.index if maps.classes(image_id))
    there = np.load(files / f"cam_mask/{image_id}.npy", allow_pickle=True).item()
    full = maps.at(image_id, "full").numpy()
    assert list(there) == maps.classes(image_id) and np.array_equal(np.stack(list(there.values())), full)
    other = ("name=other", "make_cam_pass=true")
    mct(*other, "action=import_official", f"import_from={files}").import_official()
    read = Maps(mct(*other).folder.result("make_cam"))
    assert np.allclose(read.at(image_id, "full").numpy(), full, atol=1e-3) and read.at(image_id, "strided").max() == 1


@pytest.mark.parametrize(("override", "message"), [
    ("train_cam.schedule=poly", r"train_cam.min_lr=1e-05 is not possible: expected 0, or train_cam.schedule=cosine"),
    ("train_cam.min_lr=1", r"train_cam.min_lr=1.0 is not possible: expected from 0 to train_cam.lr="),
    ("train_cam.random_area=[0.5,1.5]", r"train_cam.random_area=\[0.5, 1.5\] is not possible: expected null or two shares"),
    ("train_cam.rand_augment=11", r"train_cam.rand_augment=11.0 is not possible: expected a magnitude in \[0, 10\]"),
    ("train_cam.erase=2", r"train_cam.erase=2.0 is not possible: expected a probability"),
    ("train_cam.warmup_start=2", r"train_cam.warmup_start=2.0 is not possible: expected null or a share"),
    ("classifier=mctformer_v1", r"make_lpcam needs a classifier that is linear in its features, ClassTokens is not"),
    ("backbone=tiny", r"need a vision transformer of timm with one class token and an embedding of positions, .* is none"),
    ("cam=cam", r"cam=cam does not fit the network: CAM needs a classifier that is linear"),
    ("cam=scorecam", r"cam=scorecam does not fit the network: Score-CAM needs logits of the features"),
    ("classifier=plain", r"cam=mctformer does not fit the network: MCTformer's maps need a network with a token for each class")])
def test_what_does_not_fit_is_refused_before_any_work(mct_outputs, override, message):
    overrides = [each for each in MCT if not (override == "backbone=tiny" and each.startswith("backbone"))]
    with pytest.raises(ConfigError, match=message):
        Pipeline.compose(*overrides, f"outputs={mct_outputs}", "name=no", override).plan()
