"""The instance branch in a run: on a user's folder with drawn objects, odd images among them; what is scored, refused, repaired."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import Pipeline
from pipeline.commandline import act
from pipeline.plan.lists import derive_lists
from pipeline.plan.selection import selected
from pipeline.runfolder.summary import score_table
from steps.make_ins_seg_labels import reader
from tests.conftest import TINY, contents, quick_plan, rewritten, works
from tests.wsss.test_voc import TRAIN
from tests.wsss.test_voc import build as build_voc
from wsss.data.images import write_mask
from wsss.errors import BackendError, ConfigError

SMALL = ("experiment=irn_instances", "data=folder", "name=objects", *TINY, "data.image_size=64", "train_cam.epochs=4",
         "train_cam.batch_size=4", "train_irn.epochs=1", "train_irn.batch_size=4", "make_cam.scales=[1.0]", "threads=1",
         "cam_to_ir_label.conf_fg=0.5", "cam_to_ir_label.conf_bg=0.2", "make_sem_seg_labels.bg_threshold=0.3", "eval_ins_seg.coco_style=true",
         "eval_cam.threshold.make_cam=0.3")
STEPS = ("make_ins_seg_labels", "eval_ins_seg")
CLASSES = {"empty": "", "one": "cat", "wide": "cat;dog"}   # the others: cat
NAMES = ["empty", "one", "wide", "plain1", "plain2", "plain3", "plain4", "plain5"]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2


def draw_folder(root):
    """Dark images with two bright squares, each an object."""
    draws = np.random.default_rng(0)
    for part in ("images", "masks", "instances"):
        (root / part).mkdir(parents=True)
    for name in NAMES:
        height, width = {"one": (1, 1), "wide": (40, 200)}.get(name, tuple(draws.integers(48, 80, 2)))
        pixels, numbers = draws.integers(0, 60, (height, width, 3), dtype=np.uint8), np.zeros((height, width), np.uint8)
        if name != "empty":
            numbers[height // 5:height // 2 + 1, : width // 3 + 1] = 1
            numbers[height // 5:height // 2 + 1, width // 2 + 1:width - 2] = 2
        pixels[numbers > 0] += 150
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        values = np.where(numbers == 2, 2, numbers) if name == "wide" else np.minimum(numbers, 1)
        write_mask(root / "masks" / f"{name}.png", values.astype(np.uint8))
        write_mask(root / "instances" / f"{name}.png", numbers)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels.csv").write_text("name,classes\n" + "".join(f"{name},{CLASSES.get(name, 'cat')}\n" for name in NAMES))
    (root / "train.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="session")
def finished(made_once):
    """The folder `photos` and the finished run `out/objects`, and its summary: never changed; see `run`."""
    def make(root):
        draw_folder(root / "photos")
        Pipeline.compose(*SMALL, f"data.root={root / 'photos'}", f"outputs={root / 'out'}").run()
    root = made_once("objects", make)
    return root, json.loads((root / "out/objects/summary.json").read_text())


@pytest.fixture
def run(finished, tmp_path):
    """`run(*overrides)` composes the pipeline of a copy of the finished run; `run.folder` is that run, `run.photos` its data."""
    shutil.copytree(finished[0] / "out", tmp_path / "out")
    photos = shutil.copytree(finished[0] / "photos", tmp_path / "photos")
    path = tmp_path / "out/objects/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "root": str(photos.resolve())}))   # the data set lies elsewhere now

    def compose(*overrides):
        return Pipeline.compose(*SMALL, f"data.root={photos}", f"outputs={tmp_path / 'out'}", *overrides)
    compose.folder, compose.photos = tmp_path / "out/objects", photos
    return compose


def test_every_image_has_its_instances(finished):
    root, _ = finished
    read = reader(root / "out/objects/make_ins_seg_labels", 2)
    found = {name: read(name) for name in NAMES}
    assert found["empty"].score.shape == (0,) and not found["empty"].label.any()   # no class on it
    for name in NAMES:
        assert found[name].label.shape == Image.open(root / f"photos/images/{name}.png").size[::-1]
        allowed = {0, 1} if name == "wide" else {0}
        assert set(found[name].classes.tolist()) <= allowed
    assert any(len(each.score) and each.score.max() > 0 for each in found.values())


def test_scores_and_their_table(finished):
    root, summary = finished
    score = summary["scores"]["make_ins_seg_labels"]
    stored = json.loads((root / "out/objects/eval_ins_seg/scores.json").read_text())
    assert (stored.pop("kind"), stored.pop("iou")) == ("make_ins_seg_labels", score["min_iou"]) and {**score, **stored} == score
    assert (score["title"], score["step"]) == ("instances", "eval_ins_seg")
    assert score["measures"] == {"ap": "AP50", "ap50": "COCO's AP50", "coco_ap": "COCO's AP"}
    assert score["images"] == 8 and score["objects"] == 13 and score["min_iou"] == 0.5   # of "one", 1 x 1, only the first
    assert 0 <= score["ap"] <= 1 and len(score["ap_of_class"]) == 2 and 0 <= score["coco_style"]["ap"] <= score["coco_style"]["ap50"] <= 1
    assert score["threshold"] == 0.25 and "make_ins_seg_labels.bg_threshold" in score["threshold_source"]
    table = score_table(summary)
    heads, row = (re.split("  +", line.strip()) for line in table.splitlines()[-3:-1])
    assert heads == ["AP50", "COCO's AP50", "COCO's AP", "threshold", "detections", "objects", "images"]
    assert row == ["instances", *(f"{100 * score[name]:.1f}" for name in score["measures"]), "0.25", str(score["detections"]), "13", "8"]
    assert "pseudo masks" in table


def test_instances_that_are_the_objects_score_1(run):
    """The evaluation reads what the other step wrote: put the ground truth there."""
    dataset = (pipeline := run("eval_ins_seg_pass=true", "force=true")).plan() and pipeline.dataset
    for name in NAMES:
        masks, classes = dataset.instances(name)
        label = sum(((i + 1) * mask for i, mask in enumerate(masks)), np.zeros(dataset.size(name))).astype(np.uint8)
        np.savez_compressed(run.folder / f"make_ins_seg_labels/{name}.npz", score=np.linspace(0.9, 0.5, len(classes), dtype=np.float32),
                            **{"class": classes, "label": label})
    index = run.folder / "make_ins_seg_labels/index.jsonl"   # sizes as they are now
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        for file in line["files"]:
            line["files"][file][0] = (run.folder / "make_ins_seg_labels" / file).stat().st_size
        del line["crc"]
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = run.folder / "make_ins_seg_labels/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"]["index.jsonl"][0] = index.stat().st_size
    rewritten(manifest, files=facts["files"])
    score = run("eval_ins_seg_pass=true", "force=true").run()["scores"]["make_ins_seg_labels"]
    assert score["ap"] == 1 and score["ap_of_class"] == [1, 1] and score["coco_style"] == {"ap50": 1.0, "ap": 1.0}


def test_an_image_without_detection(run):
    """At threshold 1 nothing is above it: at that the official code crashes."""
    summary = run("make_ins_seg_labels.bg_threshold=1.0").run()
    score = summary["scores"]["make_ins_seg_labels"]
    assert score["detections"] == 0 and score["ap"] == 0
    with np.load(run.folder / "make_ins_seg_labels/plain1.npz", allow_pickle=False) as file:
        assert file["score"].shape == file["class"].shape == (0,) and not file["label"].any()


def test_a_shrunk_image_keeps_its_size(run):
    run("data.max_side=48", "name=shrunk", "make_cam_pass=true", "train_cam_pass=true", "eval_cam_pass=true", "cam_to_ir_label_pass=true",
        "train_irn_pass=true", "make_ins_seg_pass=true", "eval_ins_seg_pass=true", "train_cam.epochs=1").run()
    with np.load(run.folder.parent / "shrunk/make_ins_seg_labels/wide.npz", allow_pickle=False) as file:
        assert file["label"].shape == (40, 200)


@pytest.mark.parametrize("cut", [0, 20, -30])
def test_a_damaged_file_is_found_and_made_again(run, cut, capsys):
    before, file = contents(run.folder / "make_ins_seg_labels"), run.folder / "make_ins_seg_labels/plain2.npz"
    file.write_bytes(before[file.name][:cut] + bytes(max(-cut, 0)))   # at -30 of the same size
    assert act(run("action=verify")) == 1 and "plain2.npz" in capsys.readouterr().out
    assert set(works(run())) == {"make_ins_seg_labels"}
    run().run()
    after = contents(run.folder / "make_ins_seg_labels")
    after.pop("plain2.npz.damaged", None)
    assert after == before and act(run("action=verify")) == 0


def test_what_makes_the_two_steps_stale(run):
    assert works(run()) == {}
    assert works(run("make_ins_seg_labels.min_area=0.02")) == {
        "make_ins_seg_labels": "make_ins_seg_labels.min_area: 0.01 -> 0.02", "eval_ins_seg": "make_ins_seg_labels changed"}
    assert works(run("eval_ins_seg.iou=0.75")) == {"eval_ins_seg": "eval_ins_seg.iou: 0.5 -> 0.75"}
    assert set(works(run("make_ins_seg_labels.beta=8"))) == {*STEPS}
    assert set(works(run("refiner.beta=8"))) == {"make_sem_seg_labels", "eval_sem_seg"}
    write_mask(run.photos / "instances/plain1.png", np.zeros(Image.open(run.photos / "images/plain1.png").size[::-1], np.uint8))
    assert works(run()) == {"eval_ins_seg": "instances of scored changed"}
    assert run().run()["scores"]["make_ins_seg_labels"]["objects"] == 11


def test_without_objects_there_is_nothing_to_score(run):
    shutil.rmtree(run.photos / "instances")
    plan = {planned.name: planned.state for planned in quick_plan(run())}
    assert plan["eval_ins_seg"] == "nothing to score" and plan["make_ins_seg_labels"] == "done"
    summary = run().run()
    assert summary["unscored"] == {"eval_ins_seg": "instances"} and "make_sem_seg_labels" in summary["scores"]
    assert "eval_ins_seg: nothing to score, because not all images of its list have instances" in score_table(summary)


def test_half_a_list_is_refused(run):
    (run.photos / "instances/plain1.png").unlink()
    with pytest.raises(ConfigError, match="eval_ins_seg scores 8 images, but only 7 have instances in .*photos .first missing: '.*'.. Add the others"):
        run().plan()
    (short := run.photos / "short.txt").write_text("wide\nempty\n")
    assert works(run(f"eval_ins_seg.split={short}")) == {"eval_ins_seg": "labels of scored changed; images of scored changed; instances of scored changed"}
    shutil.rmtree(run.photos / "instances")
    with pytest.raises(ConfigError, match="eval_ins_seg scores 2 images, but only 0 have"):
        run(f"eval_ins_seg.split={short}").plan()


def test_without_pycocotools_it_is_refused_before_work(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BackendError, match="COCO's average precision needs it: run pip install pycocotools, or set"):
        run("eval_ins_seg.iou=0.75").plan()
    assert run("eval_ins_seg.coco_style=false").run()["scores"]["make_ins_seg_labels"]["coco_style"] is None


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("make_ins_seg_labels.beta", 0, "above 0"), ("make_ins_seg_labels.exp_times", 17, "from 0 to 16"), ("make_ins_seg_labels.radius", 1, "at least 2"),
    ("make_ins_seg_labels.pad_to", 0, "null or at least 1"), ("make_ins_seg_labels.centroid_iterations", 0, "at least 1"),
    ("make_ins_seg_labels.group_threshold", 0, "above 0"), ("make_ins_seg_labels.bg_threshold", 1.5, "a number in"),
    ("make_ins_seg_labels.min_area", -1, "a share in"), ("eval_ins_seg.iou", 0, "above 0 and at most 1")])
def test_impossible_settings(key, value, expected):
    with pytest.raises(ConfigError, match=rf"{key}=.* is not possible: expected {expected}"):
        Pipeline.compose("experiment=irn_instances", f"{key}={value}")


def test_they_are_not_among_the_default_steps():
    config = Pipeline.compose("make_ins_seg_pass=true").config
    assert not set(STEPS) & set(config.steps)
    with pytest.raises(ConfigError, match="make_ins_seg_pass=true, but this experiment has no make_ins_seg_labels"):
        selected(config)


def test_voc_scores_its_train_list(tmp_path):
    root = build_voc(tmp_path / "VOC2012")
    call = ("experiment=irn_instances", "recipe=irn", "data=voc12", f"data.root={root}", f"outputs={tmp_path / 'out'}", "backbone.pretrained=false",
            "backbone=resnet18", "data.image_size=96")
    (root / "SegmentationObject").mkdir()
    for image_id in TRAIN:
        shutil.copy(root / f"SegmentationClassAug/{image_id}.png", root / "SegmentationObject")
    pipeline = Pipeline.compose(*call)
    assert pipeline.config.make_ins_seg_labels.bg_threshold == 0.25
    plan = {planned.name: planned for planned in quick_plan(pipeline)}
    lists = derive_lists(pipeline.config, pipeline.dataset)
    assert set(lists["make_ins_seg_labels"]["ids"]) == set(lists["eval_ins_seg"]["scored"]) == set(TRAIN)
    assert plan["make_ins_seg_labels"].reads == ("make_cam", "train_irn") and plan["eval_ins_seg"].action == "run"
