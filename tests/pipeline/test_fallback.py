"""Thresholds without val masks: the fallback of the recipe, or the rule; and the seed maps that are refused before any work."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from pipeline.config import compose, typed
from steps import cam_to_ir_label, eval_cam
from steps.parts import thresholds
from steps.parts.refining import choose_refiner
from steps.parts.thresholds import FALLBACK, RULE, Chosen, by_rule, choose, confident_pair
from steps.runtime.artifacts import Maps
from steps.runtime.context import Source, StepContext, methods_of
from steps.runtime.datasets import open_dataset
from tests.conftest import SMOKE, TINY, quick_plan
from wsss.cams.separation import Separation
from wsss.data.ids import smallest_hashes
from wsss.errors import ArtifactError, ConfigError
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
    return {planned.name: planned.action for planned in quick_plan(Pipeline.compose(*call, *overrides))}


@pytest.mark.parametrize("recipe", ["clean", "official"])
def test_no_threshold_is_asked_for_without_val_masks(no_masks, no_val_masks, recipe):
    """The recipe has one, or the rule finds it."""
    for root in (no_masks, no_val_masks):
        found = plan(root, f"recipe={recipe}", "refiner=walk", "backbone=tiny", "eval_cam.threshold.make_cam=null", "cam_to_ir_label.conf_fg=null",
                     "cam_to_ir_label.conf_bg=null", "make_sem_seg_labels.bg_threshold=null")
        assert found["cam_to_ir_label"] == found["make_sem_seg_labels"] == "run"


def context(root: Path, smoke_outputs: Path, step: str, *overrides: str):
    """The context of a step of the finished run, with its data set without val masks and the seed maps as its only input."""
    pipeline = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", *overrides)
    dataset = open_dataset(pipeline.config.data)
    maps = Source("make_lpcam", {"make_lpcam": ""}, smoke_outputs / "smoke/make_lpcam")
    return StepContext(step, getattr(pipeline.config, step), dataset, {"val": (), "ids": dataset.lists["train"], "scored": dataset.lists["train"]},
                       root, {"seeds": (maps,), "maps": (maps,)}, methods=methods_of(pipeline.config, step))


def test_the_rule_is_the_fallback_of_every_step_and_the_same_for_the_same_maps(smoke_outputs, tmp_path):
    source = f"{RULE} on 24 images (no val masks to choose by)"
    by_hand, made = Separation(), context(tmp_path, smoke_outputs, "eval_cam")
    maps = Maps(smoke_outputs / "smoke/make_lpcam")
    for image_id in made.dataset.lists["train"]:
        by_hand.update(maps.at(image_id, "full"), made.dataset.image(image_id))
    assert 0 < by_hand.best() < 1
    eval_cam.run(made)
    assert json.loads((tmp_path / "scores.json").read_text())["chosen"]["make_lpcam"] == {"threshold": by_hand.best(), "source": source}
    labels = context(tmp_path, smoke_outputs, "cam_to_ir_label")
    assert cam_to_ir_label.confident_thresholds(labels) == (confident_pair(by_hand.best()), f"+0.15 / -0.10 of the threshold with the {source}")
    for refiner in ("none", "crf"):   # both cut the seed maps
        chosen = choose_refiner(context(tmp_path / refiner, smoke_outputs, "make_sem_seg_labels", f"refiner={refiner}"))
        assert (chosen["threshold"], chosen["source"]) == (by_hand.best(), source)


def test_a_fallback_of_the_recipe_comes_before_the_rule(smoke_outputs, tmp_path):
    made = context(tmp_path, smoke_outputs, "cam_to_ir_label", "cam_to_ir_label.fallback.make_lpcam={conf_fg:0.45,conf_bg:0.25}")
    assert cam_to_ir_label.confident_thresholds(made) == ((0.45, 0.25), FALLBACK)
    made = context(tmp_path, smoke_outputs, "make_sem_seg_labels", "refiner=none", "make_sem_seg_labels.fallback.make_lpcam=0.6")
    chosen = choose_refiner(made)
    assert (chosen["threshold"], chosen["source"]) == (0.6, FALLBACK)


def test_the_rule_looks_at_a_sample_of_the_train_list_with_maps(smoke_outputs, tmp_path, monkeypatch):
    made = context(tmp_path, smoke_outputs, "eval_cam")
    monkeypatch.setattr(thresholds, "RULE_IMAGES", 5)
    read = []
    whole = Maps.at
    monkeypatch.setattr(Maps, "at", lambda maps, image_id, *args: (read.append(image_id), whole(maps, image_id, *args))[1])
    maps = Maps(smoke_outputs / "smoke/make_lpcam")
    chosen = by_rule(made, maps, "eval_cam.threshold.make_lpcam")
    assert chosen.source.startswith(f"{RULE} on 5 images") and sorted(read) == sorted(smallest_hashes(made.dataset.lists["train"], 5))
    made.dataset.lists["train"] = made.dataset.lists["train"][::-1]
    assert by_rule(made, maps, "") == chosen


def test_maps_that_separate_nothing_are_refused_with_the_setting(smoke_outputs, tmp_path):
    made, maps = context(tmp_path, smoke_outputs, "eval_cam"), Maps(smoke_outputs / "smoke/make_lpcam")
    with pytest.raises(ArtifactError, match="^eval_cam: the separation rule finds no threshold on 24 images: no background threshold separates "
                                            ".*: set the threshold. Set eval_cam.threshold.make_lpcam$"):
        by_rule(made, maps, "eval_cam.threshold.make_lpcam", soft=lambda image_id: torch.zeros(1, *made.dataset.working_size(image_id)))


def test_val_masks_make_fallbacks_unnecessary(smoke):
    keys = [f"{step}.fallback.make_lpcam={value}" for step, value in (
        ("eval_cam", 0.2), ("cam_to_ir_label", "{conf_fg:0.3,conf_bg:0.2}"), ("make_sem_seg_labels", 0.2))]
    assert {planned.action for planned in quick_plan(smoke(*keys))} == {"skip"}   # nor do the results depend on them


def test_a_threshold_is_configured_chosen_the_fallback_or_that_of_the_rule():
    assert choose(0.2, "eval_cam.threshold.make_cam", None, 0, 0.15, Chosen).as_dict() == {
        "threshold": 0.2, "source": "eval_cam.threshold.make_cam in the configuration"}
    assert choose(None, "", None, 0, 0.15, Chosen).as_dict() == {"threshold": 0.15, "source": FALLBACK}
    assert choose(None, "", None, 0, None, lambda why: Chosen(0.7, f"{RULE} ({why})")).source == f"{RULE} (no val masks to choose by)"


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
    ("make_sem_seg_labels", [], r"before make_sem_seg_labels that makes maps \(make_cam, make_lpcam\)"),
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
    rule = partial(Chosen, 0.3)
    chosen = choose(None, "key", counts, 1, 0.45, rule)
    assert chosen == Chosen(0.45, "fallback of the recipe (every threshold has the same mIoU on the masks of 1 val images)")
    assert choose(None, "key", counts, 1, None, rule) == Chosen(0.3, "every threshold has the same mIoU on the masks of 1 val images")
    def fails(why: str) -> Chosen:
        raise ArtifactError(f"constant maps ({why})")
    assert choose(None, "key", counts, 1, None, fails) == Chosen(
        0.5, "any threshold (every threshold has the same mIoU on the masks of 1 val images)")
    with pytest.raises(ArtifactError, match="no val masks to choose by"):
        choose(None, "key", None, 0, None, fails)
    counts.update(np.full((1, 2, 2), 0.9, np.float32), [0], np.ones((2, 2), int))
    assert choose(None, "key", counts, 2, 0.45, rule) == Chosen(0.4, "best mIoU on the masks of 2 val images")
