"""What a run says of its stages: three constructed sets of scores, and what may be missing."""

import json
import math
import sys
from types import SimpleNamespace

import pytest

from pipeline import order
from pipeline.config import compose, typed
from pipeline.order import SEEDS, STEPS, Row, made_from, titles
from pipeline.report import stages
from pipeline.report.stages import MARGIN, describe, setting_in_use, stage_lines
from steps import step
from steps.parts.thresholds import FALLBACK, RULE

VAL = "best mIoU on the masks of 60 val images"
DEFAULTS = {"seed_maps": "make_lpcam", "data.n_val": 60, "backbone": "timm", "backbone.starts_from_weights": True,
            "train_cam.epochs": 12, "train_irn.epochs": 4,
            "make_lpcam.prototypes": None, "make_lpcam.cam_threshold": 0.1, "make_lpcam.fg_threshold": 0.9,
            "make_lpcam.n_clusters": 12, "make_lpcam.background_high": 0.9, "cam_to_ir_label.conf_fg": None, "cam_to_ir_label.conf_bg": None,
            "refiner": "walk", "refiner.exp_times": 8, "refiner.beta": 10.0,
            "eval_cam.threshold.make_cam": None, "eval_cam.threshold.make_lpcam": None, "make_sem_seg_labels.bg_threshold": None}


def score(miou, fp=30.0, fn=20.0, threshold=0.3, best=None, source=VAL, images=300, **more):
    """The values of a score of a summary, from percent."""
    oracle = {} if best is None else {"oracle": {"threshold": best[1], "miou": best[0] / 100}}
    return {"miou": miou if miou is None else miou / 100, "fp": fp / 100, "fn": fn / 100, "precision": 0.7, "recall": 0.8,
            "threshold": threshold, "threshold_source": source, "images": images, **oracle, **more}


def summary(masks=None, val_map=0.9, seed_maps="make_lpcam", **maps):
    """A summary with these scores of maps and of pseudo masks."""
    config = SimpleNamespace(steps=[row.name for row in STEPS], seed_maps=seed_maps)
    facts = {kind: {"title": title, "made_from": made_from(config, kind), "step": "eval_cam",
                    "threshold_key": f"eval_cam.threshold.{kind}"} for kind, title in titles().items()}
    facts["make_sem_seg_labels"] |= {"step": "eval_sem_seg", "threshold_key": "make_sem_seg_labels.bg_threshold", "refiner": "walk"}
    scores = maps if masks is None else {**maps, "make_sem_seg_labels": masks}
    return {"steps": {"train_cam": {"result": {"steps": 9, "val_map": val_map}}, "cam_to_ir_label": {"result": {}}},
            "scores": {kind: facts[kind] | values for kind, values in scores.items()}}


def remarks(of, settings=DEFAULTS):
    """Remarks by (stage, about), and the headline."""
    found = describe(of, settings and settings.get)
    assert json.loads(json.dumps(found)) == found
    return {(each["stage"], each["about"]): each for each in found["remarks"]}, found["headline"]


def tried(remark) -> list[str]:
    return [each["setting"] for each in remark["suggestions"]]


def test_every_stage_lifts():
    found, headline = remarks(summary(score(60.0), make_cam=score(48.0, best=(48.2, 0.28)), make_lpcam_fg_only=score(50.0),
                                      make_lpcam=score(51.9, best=(52.0, 0.33))))
    assert found == {} and headline == "LPCAM +3.9 over CAM, walk +8.1 over LPCAM"
    assert stage_lines({"headline": headline, "remarks": []}) == [f"stages, in points of mIoU: {headline}"]


def test_a_walk_that_makes_it_worse():
    found, headline = remarks(summary(score(51.2, fp=36.0, fn=18.0), make_cam=score(48.0), make_lpcam=score(51.9)))
    assert headline == "LPCAM +3.9 over CAM, walk 0.7 below LPCAM"
    remark = found["make_sem_seg_labels", "change"]
    assert remark["text"] == ("The random walk is 0.7 points below LPCAM (FP 30.0 -> 36.0, FN 20.0 -> 18.0), with more background "
                              "covered.")
    assert tried(remark) == ["refiner=crf", "refiner.exp_times=5", "refiner.beta=20"]
    assert (remark["before"], remark["points"], remark["verdict"]) == ("make_lpcam", -0.7, "worse")
    lines = stage_lines(describe(summary(score(51.2), make_lpcam=score(51.9)), DEFAULTS.get))
    assert lines[1].endswith("Try:") and lines[2] == "  refiner=crf          a dense CRF on the seeds, no walk"
    found, _ = remarks(summary(score(51.2, fp=24.0, fn=28.0), make_lpcam=score(51.9)))
    assert tried(found["make_sem_seg_labels", "change"])[1:] == ["refiner.beta=5", "train_irn.epochs=8"]


def test_seeds_that_are_worse_and_a_threshold_far_from_the_best():
    found, headline = remarks(summary(score(40.2, best=(40.4, 0.3)), make_cam=score(45.0, best=(45.1, 0.3)), val_map=0.56,
                                      make_lpcam=score(40.0, fp=40.0, fn=18.0, threshold=0.2, best=(44.0, 0.5))))
    assert headline == "LPCAM 5.0 below CAM, walk no change from LPCAM (+0.2)"
    assert tried(found["make_lpcam", "change"]) == ["make_lpcam.cam_threshold=0.4", "seed_maps=make_cam"]
    assert found["make_lpcam", "threshold"]["text"] == (
        "LPCAM has 40.0 at the threshold 0.20, but 44.0 at 0.50, the best one on the scored images: 60 val images may be "
        "too few to choose a threshold. The thresholds of cam_to_ir_label follow from this threshold.")
    assert tried(found["make_lpcam", "threshold"]) == ["data.n_val=240"]
    assert "56.0 on val" in found["train_cam", "classifier"]["text"] and tried(found["train_cam", "classifier"]) == ["train_cam.epochs=24"]
    assert set(found) == {("train_cam", "classifier"), ("make_lpcam", "change"), ("make_lpcam", "threshold")}
    found, _ = remarks(summary(score(40.2), make_cam=score(45.0), make_lpcam=score(40.0), val_map=0.56),
                       {**DEFAULTS, "backbone.starts_from_weights": False})
    assert tried(found["train_cam", "classifier"]) == ["backbone=tf_efficientnet_lite0", "train_cam.epochs=24"]


@pytest.mark.parametrize(("result", "setting"), [({"epochs": 34}, "train_cam.epochs=68"), ({}, "train_cam.epochs=8")])
def test_a_longer_training_is_longer_than_the_one_that_was(result, setting):
    """epochs=null has as many as the number of images asks for; summaries of earlier versions do not tell it."""
    of = summary(score(40.2), make_cam=score(45.0), make_lpcam=score(40.0), val_map=0.56)
    of["steps"]["train_cam"]["result"] |= result
    found, _ = remarks(of, {**DEFAULTS, "train_cam.epochs": None})
    assert tried(found["train_cam", "classifier"]) == [setting]


def test_the_classes_that_lost_most_are_named():
    of = summary(score(40.0, iou=[0.9, 0.1, 0.5, None, 0.3, 0.2]), make_lpcam=score(45.0, iou=[1.0, 0.4, 0.4, 0.9, 0.35, 0.2]))
    found, _ = remarks({**of, "classes": ["background", "fox", "taxi", "koi", "rose", "tetra"]})
    assert found["make_sem_seg_labels", "change"]["text"].endswith(". The IoU fell most for fox (-30.0) and rose (-5.0).")


def test_a_fall_that_is_the_thresholds_alone_and_context_that_takes_away_objects():
    found, _ = remarks(summary(make_cam=score(45.0), make_lpcam=score(40.0, best=(49.0, 0.5))))
    assert "above it at another threshold" in found["make_lpcam", "change"]["text"] and not found["make_lpcam", "change"]["suggestions"]
    found, _ = remarks(summary(make_cam=score(40.0), make_lpcam_fg_only=score(47.0), make_lpcam=score(45.0)))
    assert "2.0 points below LPCAM-F" in found["make_lpcam", "background"]["text"]
    assert tried(found["make_lpcam", "background"]) == ["make_lpcam.background_high=0.5"] and ("make_lpcam", "change") not in found


@pytest.mark.parametrize(("source", "says", "setting"), [
    ("best mIoU on the masks of 1449 val images", "the 1449 val images it was chosen on differ from the scored ones", None),
    (FALLBACK, "the fallback threshold of the recipe does not fit this data", None),
    (f"{RULE} on 200 images (no val masks to choose by)", "the threshold of the separation rule does not fit this data", None),
    ("eval_cam.threshold.make_cam in the configuration", "the configured threshold does not fit", "eval_cam.threshold.make_cam=null")])
def test_why_a_threshold_does_not_fit(source, says, setting):
    settings = {**DEFAULTS, "eval_cam.threshold.make_cam": 0.15}
    found, _ = remarks(summary(make_cam=score(45.0, source=source, best=(48.0, 0.5))), settings)
    assert says in found["make_cam", "threshold"]["text"] and tried(found["make_cam", "threshold"]) == [setting]


@pytest.mark.parametrize(("refiner", "short", "long", "first"), [
    ("walk", "walk", "The random walk is", "crf"), (None, "refinement", "The refinement is", "none"), ("crf", "CRF", "The CRF is", "walk"),
    ("walk_crf", "walk and CRF", "The random walk and CRF are", "walk"), ("none", "no refinement", "The seeds without", None),
    ("grabcut", "refinement", "The refinement is", "none")])   # None, or a method whose file is gone
def test_every_refiner_has_its_words(refiner, short, long, first):
    masks = score(50.0, refiner=refiner)
    settings = {**DEFAULTS, "refiner": refiner}
    found, headline = remarks(summary(masks, make_lpcam=score(51.9, threshold=0.41)), settings)
    assert headline == f"{short} 1.9 below LPCAM" and found["make_sem_seg_labels", "change"]["text"].startswith(long)
    wanted = f"refiner={first}" if first else "make_sem_seg_labels.bg_threshold=0.41"
    assert tried(found["make_sem_seg_labels", "change"])[0] == wanted


def test_cam_as_seeds():
    settings = {**DEFAULTS, "seed_maps": "make_cam"}
    found, headline = remarks(summary(score(40.0), seed_maps="make_cam", make_cam=score(45.0), make_lpcam=score(48.0)), settings)
    assert headline == "LPCAM +3.0 over CAM, walk 5.0 below CAM"
    better = found["make_lpcam", "seeds"]
    assert tried(better) == ["seed_maps=make_lpcam"] and (better["before"], better["verdict"]) == ("make_cam", "better")
    assert better["text"] == "LPCAM is 3.0 points above CAM, but the pseudo masks are made from CAM."
    found, _ = remarks(summary(score(46.0), seed_maps="make_cam", make_cam=score(45.0), make_lpcam=score(40.0)), settings)
    assert "seed_maps=make_cam" not in tried(found["make_lpcam", "change"]) and ("make_lpcam", "seeds") not in found
    of = summary(score(46.0), seed_maps="make_cam", make_cam=score(45.0))
    assert remarks(of, None) == ({}, "walk +1.0 over CAM")   # an experiment without LPCAM
    found, _ = remarks(summary(seed_maps="make_cam", make_cam=score(45.0), make_lpcam=score(48.0)), settings)
    assert not found   # nothing is made from the seed maps yet
    of = summary(score(46.0), seed_maps="make_cam", make_cam=score(45.0), make_lpcam=score(48.0, images=9))
    assert set(remarks(of, settings)[0]) == {("make_lpcam", "change")}   # which says that the two are not compared


def test_a_threshold_that_is_configured_does_not_follow_from_another():
    of = summary(make_lpcam=score(40.0, best=(44.0, 0.5)))
    assert "follow from this threshold" in remarks(of)[0]["make_lpcam", "threshold"]["text"]
    configured = {**DEFAULTS, "cam_to_ir_label.conf_fg": 0.4, "cam_to_ir_label.conf_bg": 0.2}
    for settings in (configured, {**DEFAULTS, "seed_maps": "make_cam"}, None):
        assert "follow" not in remarks(of, settings)[0]["make_lpcam", "threshold"]["text"]
    del of["steps"]["cam_to_ir_label"]
    assert "follow" not in remarks(of)[0]["make_lpcam", "threshold"]["text"]


def test_a_step_without_words_of_its_own_is_named_by_its_title():
    assert step.named("LPCAM", {}) == ("LPCAM", "LPCAM is")
    assert step.named("imported maps", {}) == ("imported maps", "the imported maps are")


def add_row(monkeypatch, row, after):
    """Add a row to the steps behind the step `after`."""
    place = [each.name for each in STEPS].index(after) + 1
    rows = (*STEPS[:place], row, *STEPS[place:])
    for module in (order, stages, sys.modules[__name__]):
        monkeypatch.setattr(module, "STEPS", rows)
    monkeypatch.setitem(order.BY_NAME, row.name, row)


def test_another_step_of_the_same_module(monkeypatch):
    """It is described by its own name, and its maps can be the seed maps."""
    add_row(monkeypatch, Row("make_lpcam", "LPCAMs", {"cams": "make_cam"}, name="second"), "make_lpcam")
    settings = {**DEFAULTS, "second.prototypes": None, "second.cam_threshold": 0.1, "second.fg_threshold": 0.9,
                "second.background_high": 0.9}
    maps = {"make_cam": score(45.0), "second_fg_only": score(48.0), "make_lpcam": score(46.0)}
    found, headline = remarks(summary(score(60.0), **maps, second=score(44.0, fp=40.0, fn=18.0)), settings)
    assert tried(found["second", "change"]) == ["second.cam_threshold=0.4"]
    assert tried(found["second", "background"]) == ["second.background_high=0.5"]
    assert headline == "LPCAM +1.0 over CAM, LPCAM (second) 1.0 below CAM, walk +14.0 over LPCAM"
    found, _ = remarks(summary(score(60.0), **maps, second=score(50.0)), settings)
    assert tried(found["second", "seeds"]) == ["seed_maps=second"]


def test_two_masks_of_one_name_are_told_apart_by_their_steps(monkeypatch):
    add_row(monkeypatch, Row("make_sem_seg_labels", "masks", {"seeds": SEEDS}, name="second"), "make_sem_seg_labels")
    add_row(monkeypatch, Row("eval_sem_seg", "scores", {"masks": "second"}, name="second_scores"), "eval_sem_seg")
    of = summary(score(59.7, refiner="crf"), make_lpcam=score(52.0), second=score(50.0, refiner="crf"))
    of["scores"]["second"] = of["scores"].pop("second")   # in the order of the steps
    found, headline = remarks(of)
    assert headline == "CRF (make_sem_seg_labels) +7.7 over LPCAM, CRF (second) 2.0 below LPCAM"
    assert found["second", "change"]["text"].startswith("second: the CRF is 2.0 points below LPCAM")
    of["scores"]["second"]["refiner"] = "walk"
    assert remarks(of)[1] == "CRF +7.7 over LPCAM, walk 2.0 below LPCAM"


def test_only_the_steps_that_use_a_threshold_are_named(monkeypatch):
    """A second step makes labels from other maps than the seed maps."""
    reads = {"seeds": "make_cam", "thresholds": "eval_cam"}
    add_row(monkeypatch, Row("cam_to_ir_label", "labels", reads, name="second"), "cam_to_ir_label")
    of = summary(make_cam=score(40.0, best=(44.0, 0.5)), make_lpcam=score(40.0, best=(44.0, 0.5)))
    of["steps"]["second"] = {"result": {}}
    found, _ = remarks(of, {**DEFAULTS, "second.conf_fg": None, "second.conf_bg": None})
    assert found["make_lpcam", "threshold"]["text"].endswith(". The thresholds of cam_to_ir_label follow from this threshold.")
    assert found["make_cam", "threshold"]["text"].endswith(". The thresholds of second follow from this threshold.")


def test_maps_can_be_seed_maps_if_no_earlier_step_of_the_experiment_reads_them(monkeypatch):
    add_row(monkeypatch, Row("cam_to_ir_label", "labels", {"seeds": SEEDS}, name="early"), "make_cam")
    of = summary(score(60.0), seed_maps="make_cam", make_cam=score(45.0), make_lpcam=score(48.0))
    steps = [row.name for row in STEPS]
    settings = {**DEFAULTS, "seed_maps": "make_cam"}
    assert ("make_lpcam", "seeds") not in remarks(of, {**settings, "steps": steps})[0]
    found, _ = remarks(of, {**settings, "steps": [name for name in steps if name != "early"]})
    assert tried(found["make_lpcam", "seeds"]) == ["seed_maps=make_lpcam"]


def test_what_is_missing_or_small_is_not_spoken_of():
    assert remarks({"steps": {}}) == ({}, "")
    assert remarks(summary()) == ({}, "") and stage_lines(describe(summary())) == []
    assert remarks(summary(score(50.0))) == ({}, "")
    assert remarks(summary(score(None), make_cam=score(math.nan), make_lpcam=score(40.0))) == ({}, "")
    assert remarks(summary(score(50.0), make_cam=score(40.0)))[1] == ""   # the seeds, LPCAM, have no score

    _, headline = remarks(summary(make_cam=score(40.0), make_lpcam=score(40.0 - MARGIN + 0.01)))
    assert headline == "LPCAM no change from CAM (-0.5)"


def test_scores_of_other_images_are_not_compared_and_imported_masks_get_no_settings():
    found, headline = remarks(summary(score(50.0, images=10), make_lpcam=score(40.0)))
    assert headline == "" and "LPCAM was scored on 300 images and the pseudo masks on 10" in found["make_sem_seg_labels", "change"]["text"]

    found, headline = remarks(summary(score(30.0, threshold=None, source="imported pseudo masks"), make_lpcam=score(40.0)))
    assert headline == "imported pseudo masks 10.0 below LPCAM" and not found["make_sem_seg_labels", "change"]["suggestions"]
    assert found["make_sem_seg_labels", "change"]["text"].startswith("The imported pseudo masks are")


def test_nothing_is_suggested_that_the_run_has_already_or_does_not_know():
    worse = summary(score(30.0), make_cam=score(45.0), make_lpcam=score(40.0))
    found, _ = remarks(worse, {**DEFAULTS, "make_lpcam.cam_threshold": 0.4, "make_lpcam.fg_threshold": 0.7,
                               "refiner.exp_times": 1})
    assert tried(found["make_lpcam", "change"]) == ["seed_maps=make_cam"]
    assert "exp_times" not in str(tried(found["make_sem_seg_labels", "change"]))
    found, _ = remarks(worse, {key: value for key, value in DEFAULTS.items() if key != "refiner"})
    assert tried(found["make_sem_seg_labels", "change"])[0] == "refiner.exp_times=5"
    found, _ = remarks(worse, {**DEFAULTS, "make_lpcam.prototypes": "prototypes.npz"})
    assert tried(found["make_lpcam", "change"]) == ["seed_maps=make_cam"]


@pytest.mark.parametrize("changes", [{"fp": 45.0, "fn": 20.0}, {"fp": 20.0, "fn": 45.0}, {"fp": 30.0, "fn": 20.0}])
@pytest.mark.parametrize("experiment", ["smoke", "irn", "lpcam_voc12"])
def test_every_suggestion_can_be_typed(experiment, changes):
    words = [f"experiment={experiment}", *(["data.root=x"] if experiment == "lpcam_voc12" else [])]
    setting = setting_in_use(typed(compose(words)))
    assert setting("refiner.exp_times") == 8 and setting("backbone.name") in ("tf_efficientnet_lite0", "resnet50")
    low = summary(score(30.0, best=(35.0, 0.1), source="make_sem_seg_labels.bg_threshold in the configuration"), val_map=0.5, seed_maps=setting("seed_maps"),
                  make_cam=score(45.0, best=(50.0, 0.2)), make_lpcam_fg_only=score(43.0), make_lpcam=score(40.0, **changes))
    wanted = [word for each in describe(low, setting)["remarks"] for word in tried(each) if word]
    assert len(wanted) >= 4
    for word in wanted:
        if word != "seed_maps=make_lpcam":   # which needs make_lpcam
            typed(compose([*words, word]))
