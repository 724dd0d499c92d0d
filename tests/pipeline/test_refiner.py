"""The family `refiner`: each way makes its own masks, val masks choose among them, and what nothing reads is left out."""

import json
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from pipeline.config import compose, typed
from pipeline.order import BY_NAME, made_kinds
from pipeline.plan.lists import derive_lists, unread_steps
from steps.parts.refining import Refining
from steps.runtime.artifacts import Labels, Maps
from steps.runtime.datasets import open_dataset
from tests.conftest import SMOKE, quick_plan
from wsss.data.images import read_image
from wsss.errors import ArgumentError, ConfigError
from wsss.refinement.crf import DenseCRF, unary_from_labels, unary_from_scores
from wsss.refinement.masks import with_background
from wsss.refiners.method import RefinerMethod

REFINE = ("from_step=make_sem_seg_labels",)


def masks(outputs, name="smoke"):
    folder = outputs / name / "make_sem_seg_labels"
    read = Labels(folder, 8)
    return {path.stem: read(path.stem) for path in sorted(folder.glob("*.png"))}


def chosen(outputs):
    return json.loads((outputs / "smoke/make_sem_seg_labels/threshold.json").read_text())


def test_none_cuts_the_seed_maps_as_they_are(smoke, outputs):
    smoke(*REFINE, "refiner=none", "make_sem_seg_labels.bg_threshold=0.4").run()
    maps = Maps(outputs / "smoke/make_lpcam")
    for image_id, mask in masks(outputs).items():
        values = np.array([0] + [c + 1 for c in maps.classes(image_id)])
        assert np.array_equal(mask, values[with_background(maps.at(image_id, "full"), 0.4).max(0).indices])
    assert chosen(outputs)["refiner"] == "none" and "val_miou" not in chosen(outputs)


@pytest.mark.parametrize("unary", ["scores", "labels"])
def test_crf_refines_what_none_cuts(smoke, outputs, unary):
    smoke(*REFINE, "refiner=crf", "make_sem_seg_labels.bg_threshold=0.4", "refiner.iterations=3",
          "refiner.bilateral_sxy=30", f"refiner.unary={unary}").run()
    maps = Maps(outputs / "smoke/make_lpcam")
    found, image_id = masks(outputs), "train_0003"
    image = read_image(next((outputs / ".data").glob(f"*/images/{image_id}.jpg")))
    scores = with_background(maps.at(image_id, "full"), 0.4)
    start = unary_from_scores(scores, 8.0) if unary == "scores" else unary_from_labels(scores.max(0).indices, len(scores), 0.7)
    label = DenseCRF(image, bilateral_sxy=30).inference(start, 3).max(0).indices
    values = torch.tensor([0] + [c + 1 for c in maps.classes(image_id)])
    assert np.array_equal(found[image_id], values[label])


def test_crf_alone_needs_no_irn_to_choose_its_threshold(smoke, outputs):
    shutil.rmtree(outputs / "smoke/train_irn")
    smoke(*REFINE, "refiner=crf", "refiner.iterations=1").run()
    assert chosen(outputs)["refiner"] == "crf" and "val images" in chosen(outputs)["source"]


def test_val_masks_choose_among_all_four_and_what_they_tried_is_recorded(smoke, outputs, monkeypatch):
    of_the_walk, walked, call = chosen(outputs), [], Refining._computed   # that the finished run chose by the same masks
    monkeypatch.setattr(Refining, "_computed", lambda refining, image_id, *more, **how: walked.append(image_id) or call(refining, image_id, *more, **how))
    summary = smoke(*REFINE, "refiner=best_on_val").run()
    record, val = chosen(outputs), [image_id for image_id in walked if image_id.startswith("val")]
    assert len(val) == len(set(val)) == 8   # each is walked once for both refiners that have a walk
    tried = {trial["refiner"]: trial for trial in record["tried"]}
    assert set(tried) == {"none", "crf", "walk", "walk_crf"}
    best = max(record["tried"], key=lambda trial: trial["miou"])
    assert (record["refiner"], record["threshold"]) == (best["refiner"], best["threshold"])
    assert record["refiner_source"] == record["source"] == "best mIoU on the masks of 8 val images"
    assert summary["scores"]["make_sem_seg_labels"]["refiner"] == record["refiner"]
    assert tried["walk"]["threshold"] == of_the_walk["threshold"] and tried["walk"]["miou"] == max(of_the_walk["val_miou"])


def test_a_configured_threshold_is_kept_by_every_refiner(smoke, outputs):
    smoke(*REFINE, "refiner=best_on_val", "make_sem_seg_labels.bg_threshold=0.35").run()
    record = chosen(outputs)
    assert record["threshold"] == 0.35 and "in the configuration" in record["source"]
    assert {trial["threshold"] for trial in record["tried"]} == {0.35}


def test_irn_and_its_labels_are_left_out_without_a_walk_alone(outputs, tmp_path):
    fresh = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'new'}", f"data.root={outputs / '.data'}", "refiner=crf")
    plan = {planned.name: planned for planned in quick_plan(fresh)}
    for name in ("cam_to_ir_label", "train_irn"):
        assert (plan[name].action, plan[name].why) == ("left out", "no step reads it with refiner=crf")
    assert plan["make_sem_seg_labels"].reads == ("make_lpcam",) and plan["eval_cam"].action == "run"
    asked = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'new'}", f"data.root={outputs / '.data'}", "refiner=crf",
                             "cam_to_ir_label_pass=true", "eval_cam_pass=true", "make_lpcam_pass=true", "make_cam_pass=true", "train_cam_pass=true")
    assert {p.name: p.action for p in quick_plan(asked)}["cam_to_ir_label"] == "run"

    taken = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'new'}", f"data.root={outputs / '.data'}",
                             f"train_irn.weights={outputs / 'smoke/train_irn/weights.safetensors'}")
    plan = {planned.name: planned for planned in quick_plan(taken)}
    assert plan["train_irn"].action == "imported" and plan["cam_to_ir_label"].action == "left out"
    assert plan["cam_to_ir_label"].why.startswith("no step reads it with train_irn.weights=")

    for refiner in ("walk", "walk_crf", "best_on_val"):
        fresh = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'new'}", f"data.root={outputs / '.data'}", f"refiner={refiner}")
        assert all(planned.action == "run" for planned in quick_plan(fresh)), refiner


IRN = "steps=[train_cam,make_cam,{}cam_to_ir_label,train_irn,make_sem_seg_labels,eval_sem_seg{}]"
CRF, CUT = "refiner=crf", "refiner=none"


@pytest.mark.parametrize(("words", "unread"), [
    ([IRN.format("eval_cam,", ""), "seed_maps=make_cam"], {}),
    ([IRN.format("eval_cam,", ""), "seed_maps=make_cam", CRF], {CRF: ["train_irn", "cam_to_ir_label"]}),
    ([IRN.format("make_lpcam,", ""), "seed_maps=make_lpcam"], {}),   # make_lpcam reads the CAMs
    ([IRN.format("make_lpcam,eval_cam,", ""), "seed_maps=make_cam"], {}),   # eval_cam reads all maps
    ([IRN.format("make_lpcam,", ""), "seed_maps=make_cam"], {"seed_maps=make_cam": ["make_lpcam"]}),
    ([IRN.format("make_lpcam,", ""), "seed_maps=make_cam", CUT], {"seed_maps=make_cam": ["make_lpcam"], CUT: ["train_irn", "cam_to_ir_label"]}),
    ([IRN.format("", ",make_ins_seg_labels"), "seed_maps=make_cam", CRF], {}),   # instances need IRN
    (["steps=[train_cam,make_cam,make_lpcam]"], {})], ids=str)   # nothing could read the last ones
def test_what_no_step_reads(smoke_outputs, words, unread):
    config = typed(compose([*SMOKE, f"outputs={smoke_outputs}", *words]))
    data = open_dataset(config.data)
    found = unread_steps(config, data, derive_lists(config, data), ())
    assert found == {step: f"no step reads it with {setting}" for setting, steps in unread.items() for step in steps}


def test_maps_that_no_step_reads_are_left_out_unless_asked_for(smoke, outputs):
    shutil.rmtree(outputs / "smoke/make_lpcam")
    words = (IRN.format("make_lpcam,", ""), "seed_maps=make_cam", CUT)
    plan = {planned.name: planned for planned in quick_plan(smoke(*words))}
    assert (plan["make_lpcam"].action, plan["make_lpcam"].why) == ("left out", "no step reads it with seed_maps=make_cam")
    assert {planned.name: planned.action for planned in quick_plan(smoke(*words, "make_lpcam_pass=true"))}["make_lpcam"] == "run"


def test_impossible_settings_are_refused(smoke):
    with pytest.raises(ConfigError, match=r"refiner=crff: there is no such option; did you mean 'crf'"):
        smoke("refiner=crff")
    for name, key, expected in (("crf", "sharpness=0.0", "above 0"), ("walk_crf", "iterations=0", "at least 1"), ("walk", "beta=0.0", "above 0"),
                                ("best_on_val", "radius=1", "at least 2"), ("crf", "bilateral_compat=-1.0", "0 or more"),
                                ("walk_crf", "exp_times=17", "from 0 to 16"), ("walk", "pad_to=0", "null or at least 1"),
                                ("crf", "gt_prob=1.0", "a probability above 0 and below 1")):
        with pytest.raises(ConfigError, match=f"^refiner.{key} is not possible: expected {expected}$"):
            smoke(f"refiner={name}", f"refiner.{key}")
    for name, key in (("crf", "beta"), ("walk", "sharpness"), ("none", "iterations")):   # what has no effect is not there
        with pytest.raises(ConfigError, match=f"^refiner.{key}: there is no such key"):
            smoke(f"refiner={name}", f"refiner.{key}=3")


def test_only_the_maps_that_are_saved_are_a_kind(smoke):
    assert made_kinds(smoke().config, "make_lpcam") == {"make_lpcam_fg_only": "fg_only", "make_lpcam": ""}
    assert made_kinds(smoke("make_lpcam.save_fg_maps=false").config, "make_lpcam") == {"make_lpcam": ""}


def test_a_reader_of_thresholds_without_seeds_depends_on_all_of_them():
    identity = {"version": 1, "eval_cam": {"threshold": {"make_cam": 0.3}}, "reads": {}, "data": {}}
    assert BY_NAME["eval_cam"].seen_by("eval_cam", identity, SimpleNamespace(sources={"thresholds": ()})) == identity


def test_the_reason_names_the_value_that_was_set(smoke, outputs):
    shutil.rmtree(next((outputs / ".data").iterdir()) / "masks")
    config = smoke("refiner=best_on_val").config
    data = open_dataset(config.data)
    why = unread_steps(config, data, derive_lists(config, data), ())["train_irn"]
    assert why == "no step reads it with refiner=best_on_val, which is crf without val masks"


@dataclass
class Wrong(RefinerMethod):
    """A function that returns a map too much."""

    def maps(self, image):
        return torch.zeros(len(image.seeds) + 1, 2, 2)


@dataclass
class Lost(RefinerMethod):
    """A function that loses a row."""

    def scores(self, image, scores):
        return scores[..., 1:, :]


@dataclass
class Edgy(RefinerMethod):
    """A refiner that does not say that it reads IRN."""

    def maps(self, image):
        return image.seeds * image.edge()


@pytest.mark.parametrize(("method", "message"), [
    (Wrong(), r"Wrong\(.*\): maps returned \(3, 2, 2\), expected \(2, 60, 40\)"),
    (Lost(), r"Lost\(.*\): scores returned \(1, 3, 237, 160\), expected \(1, 3, 238, 160\)"),
    (Edgy(), "the refiner asks for what the network 'irn' computes, which is not loaded: expected reads = 'irn' in its class")])
def test_what_a_refiner_of_ones_own_may_not_do_is_named(smoke, method, message):
    pipeline = smoke()
    run = pipeline.recorded(pipeline.folder.path)
    refining = Refining(run.context("make_sem_seg_labels"), [method])
    image_id = next(image_id for image_id in run.dataset.lists["train"] if len(refining.maps.classes(image_id)) == 2)
    with pytest.raises(ArgumentError, match=message):
        refining(image_id, method, 0.3)
