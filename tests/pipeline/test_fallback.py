"""Thresholds without val masks, and the seed maps: what is refused before any work, with what to set."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.config import compose, typed
from steps.parts.thresholds import FALLBACK, Chosen, choose
from tests.conftest import TINY
from wsss.errors import ConfigError
from wsss.metrics.semantic import ThresholdCounts


@pytest.fixture(scope="module")
def no_val_masks(smoke_outputs, tmp_path_factory) -> Path:
    """A data set whose images are all in train (with `data.val_fraction=0`), with masks."""
    root = tmp_path_factory.mktemp("no_val_masks") / "data"
    shutil.copytree(next((smoke_outputs / ".data").iterdir()), root)
    for name in ("train.txt", "val.txt"):
        (root / name).unlink()
    return root


@pytest.fixture(scope="module")
def no_masks(no_val_masks) -> Path:
    root = no_val_masks.parent / "bare"
    shutil.copytree(no_val_masks, root)
    shutil.rmtree(root / "masks")
    return root


def plan(root: Path, *overrides: str) -> dict[str, str]:
    """Step -> action; raises ConfigError if the run is refused."""
    call = ("data=folder", f"data.root={root}", f"outputs={root.parent / 'outputs'}", "data.image_size=96", "data.val_fraction=0", *TINY, "threads=1")
    return {planned.name: planned.action for planned in Pipeline.compose(*call, *overrides).plan()}


@pytest.mark.parametrize(("kind", "instead"), [("make_lpcam", []), ("make_cam", []), ("make_lpcam_fg_only", []),
                                               ("make_cam", ["experiment=irn"])])
def test_eval_cam_needs_a_threshold_of_every_kind_it_scores(no_val_masks, kind, instead):
    none = [*instead, f"eval_cam.fallback.{kind}=null"]
    with pytest.raises(ConfigError, match=f"^eval_cam.fallback has no value for the maps {kind}, and there are no val masks to choose "
                                          f"by. Set eval_cam.threshold.{kind}$"):
        plan(no_val_masks, *none)
    assert plan(no_val_masks, *none, f"eval_cam.threshold.{kind}=0.3")["eval_cam"] == "run"


def test_all_missing_fallbacks_are_named_at_once(no_val_masks):
    with pytest.raises(ConfigError, match="the maps make_cam, make_lpcam, .* Set eval_cam.threshold.make_cam, eval_cam.threshold.make_lpcam$"):
        plan(no_val_masks, "eval_cam.fallback.make_cam=null", "eval_cam.fallback.make_lpcam=null")


def test_maps_that_are_not_scored_need_no_threshold(no_val_masks):
    assert plan(no_val_masks, "experiment=irn", "eval_cam.fallback.make_lpcam=null")["eval_cam"] == "run"


def test_confident_labels_need_a_pair(no_masks, no_val_masks):
    walk = ("refiner=walk", "cam_to_ir_label.fallback.make_lpcam=null")
    with pytest.raises(ConfigError, match="^cam_to_ir_label.fallback has no value for the maps make_lpcam, .* Set cam_to_ir_label.conf_fg "
                                          "and cam_to_ir_label.conf_bg$"):
        plan(no_masks, *walk)
    assert plan(no_masks, *walk, "cam_to_ir_label.conf_fg=0.4", "cam_to_ir_label.conf_bg=0.2")["cam_to_ir_label"] == "run"
    assert plan(no_masks, *walk, "seed_maps=make_cam")["cam_to_ir_label"] == "run"   # whose pair is there
    assert plan(no_val_masks, *walk)["cam_to_ir_label"] == "run"                     # from the threshold in eval_cam
    assert plan(no_masks, walk[1])["cam_to_ir_label"] == "left out"                  # the CRF reads no labels


def test_pseudo_masks_need_a_background_threshold(no_masks):
    none = "make_sem_seg_labels.fallback.make_lpcam=null"
    with pytest.raises(ConfigError, match="^make_sem_seg_labels.fallback has no value for the maps make_lpcam, .* Set "
                                          "make_sem_seg_labels.bg_threshold$"):
        plan(no_masks, none)
    assert plan(no_masks, none, "make_sem_seg_labels.bg_threshold=0.4")["make_sem_seg_labels"] == "run"
    assert plan(no_masks, none, "seed_maps=make_cam")["make_sem_seg_labels"] == "run"


def test_val_masks_make_fallbacks_unnecessary(smoke):
    keys = [f"{step}.fallback.make_lpcam=null" for step in ("eval_cam", "cam_to_ir_label", "make_sem_seg_labels")]
    assert {planned.action for planned in smoke(*keys).plan()} == {"skip"}   # nor do the results depend on them


def test_a_threshold_is_configured_chosen_or_the_fallback():
    assert choose(0.2, "eval_cam.threshold.make_cam", None, 0, 0.15).as_dict() == {
        "threshold": 0.2, "source": "eval_cam.threshold.make_cam in the configuration"}
    assert choose(None, "", None, 0, 0.15).as_dict() == {"threshold": 0.15, "source": FALLBACK}


WITHOUT_EVAL_CAM = "steps=[train_cam,make_cam,make_lpcam,cam_to_ir_label,train_irn,make_sem_seg_labels]"


def test_confident_labels_without_the_scores_of_the_maps(smoke, no_masks):
    """The pair is configured, or there are no masks and it is the fallback: both need no eval_cam."""
    with pytest.raises(ConfigError, match=r"^cam_to_ir_label reads eval_cam, which is not among the steps of this experiment \(.*\). Add it, "
                                          r"or set cam_to_ir_label.conf_fg and cam_to_ir_label.conf_bg$"):
        smoke(WITHOUT_EVAL_CAM, "name=without").plan()
    pair = ("cam_to_ir_label.conf_fg=0.4", "cam_to_ir_label.conf_bg=0.2")
    labels = smoke(WITHOUT_EVAL_CAM, "name=without", *pair).plan()[3]
    assert (labels.name, labels.action, labels.reads) == ("cam_to_ir_label", "run", ("make_lpcam",))
    assert plan(no_masks, WITHOUT_EVAL_CAM, "refiner=walk")["cam_to_ir_label"] == "run"


@pytest.mark.parametrize(("seed_maps", "more", "expected"), [
    ("make_lpcan", [], r"before cam_to_ir_label that makes maps \(make_cam, make_lpcam\); did you mean 'make_lpcam'\?"),
    ("lpcam", [], r"\(make_cam, make_lpcam\); did you mean 'make_lpcam'\?"),        # its name in earlier versions
    ("train_cam", [], r"before cam_to_ir_label that makes maps \(make_cam, make_lpcam\)"),
    ("make_sem_seg_labels", [], r"before cam_to_ir_label that makes maps \(make_cam, make_lpcam\)"),
    ("make_lpcam", ["experiment=irn"], r"before cam_to_ir_label that makes maps \(make_cam\)"),
    ("make_cam", ["steps=[train_cam,cam_to_ir_label]"], r"before cam_to_ir_label that makes maps \(there is none\)")])
def test_seed_maps_of_no_step_before_their_readers_are_refused(seed_maps, more, expected):
    with pytest.raises(ConfigError, match=f"^seed_maps='{seed_maps}' is not possible: expected a step of this .*{expected}"):
        typed(compose([*more, f"seed_maps={seed_maps}"]))


def test_seed_maps_that_no_step_reads_are_not_checked():
    assert typed(compose(["steps=[train_cam,make_cam,eval_cam]"])).seed_maps == "make_lpcam"


def test_a_flat_curve_on_val_chooses_nothing():
    counts = ThresholdCounts(1)
    counts.update(np.full((1, 2, 2), 0.4, np.float32), [0], np.zeros((2, 2), int))
    chosen = choose(None, "key", counts, 1, 0.45)
    assert chosen == Chosen(0.45, "fallback of the recipe (every threshold has the same mIoU on the masks of 1 val images)")
    assert choose(None, "key", counts, 1, None).threshold == 0   # a recipe without a fallback
    counts.update(np.full((1, 2, 2), 0.9, np.float32), [0], np.ones((2, 2), int))
    assert choose(None, "key", counts, 2, 0.45) == Chosen(0.4, "best mIoU on the masks of 2 val images")
