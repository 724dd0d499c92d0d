"""What makes which steps stale: each is planned on the finished small run, nothing is run."""

import importlib
import os

import pytest

from pipeline import Pipeline
from tests.conftest import SMOKE, works
from wsss.data.drawing import CLASSES
from wsss.data.images import read_mask, write_mask

STEPS = ["train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg"]


@pytest.fixture
def root(outputs):
    """The folder of the embedded data set."""
    return next((outputs / ".data").iterdir())


@pytest.mark.parametrize(("override", "expected"), [
    ("refiner.beta=8", STEPS[6:]),
    ("refiner.exp_times=7", STEPS[6:]),
    ("eval_cam.threshold.make_cam=0.2", ["eval_cam"]),
    ("eval_cam.threshold.make_lpcam=0.2", STEPS[3:]),         # the confident pair follows it
    ("eval_sem_seg.ignore=ignore", ["eval_sem_seg"]),
    ("make_lpcam.n_clusters=3", STEPS[2:]),
    ("make_cam.scales=[1.0,0.5]", STEPS[1:]),
    ("train_irn.lr=0.05", STEPS[5:]),
    ("train_irn.parts=2", STEPS[5:]),
    ("cam_to_ir_label.crf_iterations=3", STEPS[4:]),
    ("precision=bf16", STEPS),
])
def test_a_changed_setting_makes_exactly_what_reads_it_stale(smoke_outputs, override, expected):
    why = works(Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", override, "replace=true"))
    assert list(why) == expected
    key, value = override.split("=", 1)
    assert key in why[expected[0]] and "->" in why[expected[0]]
    for follower in expected[1:]:
        assert "changed" in why[follower] or key in why[follower]


@pytest.mark.parametrize("override", ["workers=1", "device=cpu", "log_level=debug", "train_cam.checkpoint_steps=7", "threads=2",
                                      "train_cam.val_epochs=3"])
def test_what_changes_no_result_makes_nothing_stale(smoke_outputs, override):
    assert works(Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", override)) == {}


@pytest.mark.parametrize("step", STEPS)
def test_a_raised_version_makes_the_step_and_what_follows_stale(smoke_outputs, monkeypatch, step):
    module = importlib.import_module(f"steps.{step}")
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    why = works(Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", "replace=true"))
    follow = {"eval_cam": ["eval_cam", *STEPS[4:]]}.get(step, STEPS[STEPS.index(step):])   # it chooses the confident pair's threshold
    assert list(why) == follow
    assert why[step] == f"version: {module.VERSION - 1} -> {module.VERSION}"


def relabel(root, image_id: str) -> None:
    lines = (root / "labels.csv").read_text().splitlines()
    wrong = [f"{image_id},{';'.join(CLASSES)}" if line.startswith(f"{image_id},") else line for line in lines]
    assert wrong != lines
    (root / "labels.csv").write_text("\n".join(wrong) + "\n")


def test_a_changed_label_of_a_training_image_changes_what_reads_it(smoke, root):
    relabel(root, (root / "train.txt").read_text().split()[0])
    why = works(smoke("replace=true"))
    assert list(why) == STEPS   # the classifier was trained on it
    assert why["train_cam"] == "labels of ids changed"


def test_a_changed_label_of_a_val_image_trains_nothing_again_but_what_its_threshold_chose(smoke, root):
    relabel(root, (root / "val.txt").read_text().split()[0])
    why = works(smoke("replace=true"))
    assert "train_cam" not in why
    assert why["make_cam"] == why["make_lpcam"] == "1 image or their labels changed"
    assert why["eval_cam"] == "labels of val changed"


def test_a_changed_image_is_noticed(smoke, root):
    image = root / "images" / f"{(root / 'val.txt').read_text().split()[0]}.jpg"
    content = image.read_bytes()
    image.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])   # the same size
    why = works(smoke("replace=true"))
    assert why["make_cam"] == "1 image or their labels changed" and "images of val changed" in why["eval_cam"]


def test_a_changed_mask_makes_only_scores_stale(smoke, root):
    path = root / f"masks/{(root / 'train.txt').read_text().split()[0]}.png"
    mask = read_mask(path)
    mask[:4] = 255
    write_mask(path, mask)
    for file in root.rglob("*"):
        os.utime(file, (1, 1))   # dates make nothing stale
    assert works(smoke()) == {"eval_cam": "masks of scored changed", "eval_sem_seg": "masks of scored changed"}
