"""AffinityNet: labels by two exponents train it, and its random walk makes the pseudo masks."""

import json
import shutil

import pytest
import torch

from pipeline import Pipeline
from pipeline.order import sources
from steps.parts.thresholds import confident_pair, read_chosen
from steps.runtime.schedule import WEIGHTS
from tests.conftest import SMOKE, actions, contents, interrupted, works
from tests.pipeline.test_distributed import together
from wsss.errors import ConfigError
from wsss.networks.weights import read_tensors

STEPS = ("train_cam", "make_cam", "eval_cam", "affinity_label", "train_psa", "make_sem_seg_labels", "eval_sem_seg")
PSA = (*SMOKE, f"steps=[{','.join(STEPS)}]", "name=psa", "seed_maps=make_cam", "refiner=psa", "train_psa.epochs=2", "train_psa.crop_size=64",
       "train_psa.checkpoint_steps=1", "make_sem_seg_labels.save_soft=true")


@pytest.fixture(scope="session")
def psa_outputs(smoke_outputs, made_once):
    """The finished run `psa`, on the classifier and the CAMs of `smoke`: never changed."""
    def make(outputs):
        shutil.copytree(smoke_outputs / ".data", outputs / ".data", symlinks=True)
        Pipeline.compose(*PSA, f"outputs={outputs}", f"reuse_from=[{smoke_outputs / 'smoke'}]").run()
    return made_once("psa", make)


@pytest.fixture
def psa(psa_outputs, tmp_path):
    outputs = shutil.copytree(psa_outputs, tmp_path / "outputs", symlinks=True)
    return lambda *overrides: Pipeline.compose(*PSA, f"outputs={outputs}", *overrides)


def test_the_masks_are_made_by_its_walk(psa):
    folder = psa().folder
    assert {name: folder.manifest(name)["sources"] for name in STEPS[3:6]} == {
        "affinity_label": {"seeds": ["make_cam"], "thresholds": ["eval_cam"]},
        "train_psa": {"labels": ["affinity_label"], "classifier": ["train_cam"]},
        "make_sem_seg_labels": {"seeds": ["make_cam"], "affinity": ["train_psa"]}}
    masks = folder.result("make_sem_seg_labels")
    assert json.loads((masks / "threshold.json").read_text())["refiner"] == "psa"
    image_id = next(masks.glob("*.png")).stem
    assert (masks / f"psa/{image_id}.npy").exists() and not (masks / "edge").exists()
    losses = (folder.result("train_psa") / "log.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "pos_aff", "neg_aff"} <= set(losses)
    scores = json.loads((folder.path / "summary.json").read_text())["scores"]
    assert scores["make_sem_seg_labels"]["made_from"] == "make_cam"
    assert all(step.ok for step in psa().verify()) and works(psa()) == {}


def test_without_exponents_they_follow_from_the_threshold_of_the_maps(psa):
    folder = psa().folder
    made = folder.manifest("affinity_label")["result"]
    threshold = read_chosen(folder.result("eval_cam") / "scores.json", "make_cam")["threshold"]
    for alpha, value in zip((made["low_alpha"], made["high_alpha"]), confident_pair(threshold)):
        value = min(max(value, 0.01), 0.99)
        assert (1 - value) ** alpha == pytest.approx(value)   # there a map is equal to the background
    assert works(psa("affinity_label.low_alpha=4", "affinity_label.high_alpha=32", "replace=true"))["affinity_label"].startswith("affinity_label.low_alpha: null -> 4.0; affinity_label.high_alpha: null -> 32.0")


def test_settings_make_what_follows_stale(psa):
    assert list(works(psa("affinity_label.low_alpha=2", "affinity_label.high_alpha=9", "replace=true"))) == list(STEPS[3:])
    assert works(psa("train_psa.radius=4", "replace=true"))["train_psa"] == "train_psa.radius: 5 -> 4"
    assert list(works(psa("refiner.alpha=16"))) == list(STEPS[5:])
    assert list(works(psa("refiner=crf"))) == list(STEPS[5:])   # and affinity_label and train_psa are not read


def test_without_its_step_the_plan_says_which_to_add(psa):
    with pytest.raises(ConfigError, match="make_sem_seg_labels reads train_psa, which is not among the steps of this experiment .*Add train_psa to steps"):
        psa("steps=[train_cam,make_cam,eval_cam,make_sem_seg_labels,eval_sem_seg]").plan()


def test_other_refiners_read_it_not_and_it_is_left_out(psa, smoke):
    assert "affinity" not in {role for step in smoke().plan() for role in step.sources}
    unread = psa("refiner=none", "name=other")
    assert not {"affinity_label", "train_psa"} & {step.name for step in unread.plan() if step.action == "run"}


def test_it_is_continued_with_the_same_bits(psa):
    outputs = psa().folder.path.parent
    before = contents(outputs / "psa/train_psa")
    shutil.rmtree(outputs / "psa/train_psa")
    with interrupted(3):
        psa("to_step=train_psa").run()
    assert actions(psa("to_step=train_psa"))["train_psa"] == "continue"
    psa("to_step=train_psa").run()
    assert contents(outputs / "psa/train_psa") == before


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(psa):
    outputs = psa().folder.path.parent
    before = {name: contents(outputs / "psa" / name) for name in ("affinity_label", "train_psa", "make_sem_seg_labels")}
    for name in before:
        shutil.rmtree(outputs / "psa" / name)
    together(outputs, *PSA[len(SMOKE):])
    assert {name: contents(outputs / "psa" / name) for name in before} == before


def test_weights_are_taken_instead_of_training_and_a_backbone_of_its_own(psa):
    outputs = psa().folder.path.parent
    weights = shutil.copy(outputs / "psa/train_psa" / WEIGHTS, outputs / "taken.safetensors")
    keys = ("name=taken", f"reuse_from=[{outputs / 'psa'}]", "to_step=train_psa")
    run = psa(*keys, f"train_psa.weights={weights}")
    assert "affinity_label" not in works(run)
    run.run()
    first, second = (read_tensors(outputs / name / "train_psa" / WEIGHTS) for name in ("psa", "taken"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    own = psa(*keys, "backbone@train_psa.backbone=resnet18", "train_psa.backbone.pretrained=false")
    assert {step.name: step.sources for step in own.plan()}["train_psa"] == {"labels": ("affinity_label",)}
    with pytest.raises(ConfigError, match="train_psa.init=classifier, but it has a backbone of its own, resnet18"):
        psa(*keys, "backbone@train_psa.backbone=resnet18", "train_psa.backbone.pretrained=false", "train_psa.init=classifier").plan()


@pytest.mark.parametrize(("key", "value"), [
    ("train_psa.radius", "1"), ("train_psa.scale", "[1.5,0.5]"), ("train_psa.color_jitter", "1.0"),
    ("train_psa.head_lr_mult", "0"), ("train_psa.warmup", "1.0"), ("affinity_label.high_alpha", "2"),
    ("affinity_label.crf_iterations", "0"), ("affinity_label.bilateral_srgb", "0"), ("refiner.beta", "0"), ("refiner.exp_times", "17"),
    ("refiner.radius", "1"), ("refiner.alpha", "0")])
def test_impossible_settings(key, value):
    with pytest.raises(ConfigError, match=rf"{key}=.* is not possible"):
        Pipeline.compose(*PSA, f"{key}={value}")


def test_roles_without_it_are_as_before(smoke_outputs):
    config = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}").config
    assert sources(config, "train_psa") == {"labels": ("affinity_label",), "classifier": ("train_cam",)}


@pytest.mark.parametrize(("word", "message"), [("train_psa.crop_size=60", "train_psa.crop_size=60 is not possible: expected a multiple of 8"),
                                               ("train_psa.radius=9", "train_psa.radius=9 is not possible: expected at most a 16th of train_psa.crop_size=64")])
def test_a_crop_that_does_not_fit_is_refused_if_the_step_is_in_the_run(psa, smoke, word, message):
    with pytest.raises(ConfigError, match=message):
        psa(word, "train_psa.all_pairs=false", "replace=true").plan()
    assert smoke(word, "train_psa.all_pairs=false").plan()   # does not use it
