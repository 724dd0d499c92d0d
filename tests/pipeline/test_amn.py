"""AMN: labels of a first pass train it and are read when its maps are made; labels of a second pass train IRN."""

import json
import shutil

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.order import BY_NAME, sources
from steps.runtime.artifacts import Maps
from steps.runtime.schedule import WEIGHTS
from tests.conftest import SMOKE, actions, contents, interrupted, quick_plan, works
from tests.pipeline.test_distributed import together
from wsss.errors import ConfigError
from wsss.networks.weights import read_tensors

FIRST = ("train_cam", "make_cam", "eval_cam", "cam_to_ir_label")
SECOND = ("train_amn", "make_amn", "make_amn_lpcam", "eval_amn", "amn_ir_label")
LAST = ("train_irn", "make_sem_seg_labels", "eval_sem_seg")
AMN = (*SMOKE, f"steps=[{','.join((*FIRST, *SECOND, *LAST))}]", "name=amn", "seed_maps=make_amn", "train_amn.epochs=2",
       "train_amn.checkpoint_steps=1", "train_amn.batch_size=8", "train_amn.lr=2e-4", "train_amn.freeze_early=false",
       "make_amn.scales=[1.0,0.5]", "make_amn.save_background=true", "train_irn.epochs=1", "refiner=walk_power", "refiner.exp_times=2")


@pytest.fixture(scope="session")
def amn_outputs(smoke_outputs, made_once):
    """The finished run `amn`, on the classifier and the CAMs of `smoke`: never changed."""
    def make(outputs):
        shutil.copytree(smoke_outputs / ".data", outputs / ".data", symlinks=True)
        Pipeline.compose(*AMN, f"outputs={outputs}", f"reuse_from=[{smoke_outputs / 'smoke'}]").run()
    return made_once("amn", make)


@pytest.fixture
def amn(amn_outputs, tmp_path):
    outputs = shutil.copytree(amn_outputs, tmp_path / "outputs", symlinks=True)
    return lambda *overrides: Pipeline.compose(*AMN, f"outputs={outputs}", *overrides)


def test_each_step_reads_its_own_pass(amn):
    folder = amn().folder
    assert {name: folder.manifest(name)["sources"] for name in (*FIRST[2:], *SECOND, *LAST[:2])} == {
        "eval_cam": {"maps": ["make_cam"]},
        "cam_to_ir_label": {"seeds": ["make_cam"], "thresholds": ["eval_cam"]},
        "train_amn": {"labels": ["cam_to_ir_label"]},
        "make_amn": {"network": ["train_amn"], "labels": ["cam_to_ir_label"]},
        "make_amn_lpcam": {"amn": ["train_amn"], "cams": ["make_amn"]},
        "eval_amn": {"maps": ["make_amn", "make_amn_lpcam"]},
        "amn_ir_label": {"seeds": ["make_amn"], "thresholds": ["eval_amn"]},
        "train_irn": {"labels": ["amn_ir_label"], "classifier": ["train_cam"]},
        "make_sem_seg_labels": {"seeds": ["make_amn"], "irn": ["train_irn"]}}
    assert contents(folder.result("amn_ir_label")) != contents(folder.result("cam_to_ir_label"))
    scores = json.loads((folder.path / "summary.json").read_text())["scores"]
    assert {"make_cam", "make_amn", "make_amn_lpcam", "make_amn_lpcam_fg_only"} <= scores.keys()
    assert scores["make_amn"]["title"] == "AMN" and scores["make_amn_lpcam"]["made_from"] == "make_amn"
    assert all(step.ok for step in amn().verify()) and works(amn()) == {}


def test_the_plan_shows_which_list_each_row_covers(amn):
    lists = {step.name: step.lists for step in quick_plan(amn())}
    train, val = set(lists["train_cam"]["ids"]), set(lists["eval_amn"]["val"])
    both = train | val
    assert (len(train), len(val), len(both)) == (24, 8, 32)
    covers = {name: set(found["ids"]) for name, found in lists.items() if "ids" in found}
    assert {name: ids for name, ids in covers.items() if name in ("train_amn", "amn_ir_label", "train_irn")} \
        == dict.fromkeys(("train_amn", "amn_ir_label", "train_irn"), train)
    # val, on which thresholds are chosen, needs AMN's maps, and those need the labels of the first pass
    for name in ("make_cam", "cam_to_ir_label", "make_amn", "make_amn_lpcam"):
        assert covers[name] == both, name
    with pytest.raises(ConfigError, match=r"cam_to_ir_label.split='train' covers 24 of the 32 ids that make_amn reads"):
        amn("cam_to_ir_label.split=train").plan()


def test_seed_maps_that_the_second_scores_leave_out(amn):
    steps = ",".join((*FIRST[:2], "make_lpcam", *FIRST[2:], *SECOND, *LAST))
    with pytest.raises(ConfigError, match="amn_ir_label reads the threshold of the maps of make_lpcam, but eval_amn scores those of make_amn, make_amn_lpcam"):
        amn(f"steps=[{steps}]", "seed_maps=make_lpcam").plan()


def test_the_labels_of_the_first_pass_count_for_the_maps_and_settings_of_the_second_do_not(amn):
    found = works(amn("cam_to_ir_label.gt_prob=0.8", "amn_ir_label.gt_prob=0.7", "replace=true"))
    assert list(found) == ["cam_to_ir_label", *SECOND, *LAST]
    assert list(works(amn("amn_ir_label.conf_fg=0.6", "amn_ir_label.conf_bg=0.1", "replace=true"))) == ["amn_ir_label", *LAST]
    assert list(works(amn("make_amn_lpcam.taps=all"))) == ["make_amn_lpcam", "eval_amn"]
    assert works(amn("train_amn.smoothing=0.3", "replace=true"))["train_amn"] == "train_amn.smoothing: 0.4 -> 0.3"


def test_lpcam_of_the_classifier_does_not_depend_on_the_taps(smoke):
    assert works(smoke("make_lpcam.taps=all")) == {}


def test_maps_of_the_background_can_be_added_and_left_out(amn):
    before = contents(amn().folder.result("make_amn"))
    assert works(amn("make_amn.save_background=false")) == {}
    place = amn().folder.result("make_amn")
    shutil.rmtree(place / "background")
    shutil.rmtree(place)
    amn("make_amn.save_background=false", "to_step=make_amn").run()
    assert not (place / "background").exists()
    amn("to_step=make_amn").run()
    assert contents(place) == before
    maps = Maps(place)
    image_id = next(iter(maps.index))
    total = maps.of_kind("background").packed(image_id).astype(float) + maps.packed(image_id).astype(float).sum(0)
    assert np.isfinite(total).all() and maps.at(image_id, "full").shape[1:] == tuple(maps.facts(image_id)["grids"][0])


def test_amn_is_continued_with_the_same_bits(amn):
    outputs = amn().folder.path.parent
    before = contents(outputs / "amn/train_amn")
    shutil.rmtree(outputs / "amn/train_amn")
    with interrupted(3):
        amn("to_step=train_amn").run()
    assert actions(amn("to_step=train_amn"))["train_amn"] == "continue"
    amn("to_step=train_amn").run()
    assert contents(outputs / "amn/train_amn") == before


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(amn):
    outputs = amn().folder.path.parent
    before = {name: contents(outputs / "amn" / name) for name in ("train_amn", "make_amn")}
    for name in before:
        shutil.rmtree(outputs / "amn" / name)
    together(outputs, *AMN[len(SMOKE):], "to_step=make_amn")
    assert {name: contents(outputs / "amn" / name) for name in before} == before


def test_weights_are_taken_instead_of_training(amn):
    outputs = amn().folder.path.parent
    weights = shutil.copy(outputs / "amn/train_amn" / WEIGHTS, outputs / "taken.safetensors")
    run = amn("name=taken", f"train_amn.weights={weights}", f"reuse_from=[{outputs / 'amn'}]", "to_step=train_amn")
    run.run()
    first, second = (read_tensors(outputs / name / "train_amn" / WEIGHTS) for name in ("amn", "taken"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(("key", "value"), [("rates", "[0]"), ("dropout", "1.0"), ("smoothing", "1.0"), ("scale", "[1.5,0.5]"),
                                            ("head_lr_mult", "0"), ("warmup", "1.0")])
def test_impossible_settings(key, value):
    with pytest.raises(ConfigError, match=rf"train_amn\.{key}=.* is not possible"):
        Pipeline.compose(*AMN, f"train_amn.{key}={value}")


def test_roles_without_amn_are_as_before(smoke_outputs):
    config = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}").config
    assert sources(config, "train_irn") == {"labels": ("cam_to_ir_label",), "classifier": ("train_cam",)}
    assert sources(config, "cam_to_ir_label") == {"seeds": ("make_lpcam",), "thresholds": ("eval_cam",)}
    assert BY_NAME["amn_ir_label"].OFFICIAL.name == "amn_ir_label" and BY_NAME["cam_to_ir_label"].OFFICIAL.name == "ir_label"
