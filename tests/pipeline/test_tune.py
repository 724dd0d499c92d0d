"""action=tune: curves over thresholds and walks, and what must not choose."""

import csv
import json
import shutil
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from pipeline.commandline import act
from pipeline.report.figures import merged
from steps.parts.thresholds import count_maps
from steps.parts.tuning import TuneSettings, choosing_ids, confident_curve
from steps.runtime.datasets import open_dataset
from wsss.data.folder import held_out
from wsss.errors import ConfigError, DataError
from wsss.metrics.semantic import ThresholdCounts

SMALL = ("tune.beta=[4.0]", "tune.exp_times=[3]")


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tune" not in path.parts and ".locks" not in path.parts}


def test_val_chooses_again_what_it_chose_in_the_run(smoke, outputs, capsys):
    before = contents(outputs)
    with patch("steps.parts.tuning.count_maps", wraps=count_maps) as counted:
        assert act(smoke("action=tune", *SMALL)) == 0
    assert counted.call_count == 3   # each kind of maps once, though two steps use the seed maps
    assert contents(outputs) == before
    folder, said = outputs / "smoke/tune/val", capsys.readouterr().out
    assert f"The run is unchanged. Curves and plot are in {folder}/" in said and "chosen by the masks of 8 images: the list val" in said
    assert "an oracle" not in said
    result = json.loads((folder / "tune.json").read_text())
    chosen = json.loads((outputs / "smoke/eval_cam/scores.json").read_text())["chosen"]
    assert list(result) == ["labels", "eval_cam", "cam_to_ir_label", "make_sem_seg_labels"]
    for kind, swept in result["eval_cam"].items():
        assert swept["best"]["threshold"] == swept["run"]["threshold"] == chosen[kind]["threshold"]
        assert swept["best"]["miou"] == swept["run"]["miou"] == max(swept["curve"]["miou"])
    walk, threshold = result["make_sem_seg_labels"], json.loads((outputs / "smoke/make_sem_seg_labels/threshold.json").read_text())
    assert [(point["beta"], point["exp_times"]) for point in walk["points"]] == [(4.0, 3), (10.0, 8)]
    own = walk["points"][1]
    assert own["curve"]["miou"] == threshold["val_miou"] and own["best"]["threshold"] == threshold["threshold"]
    assert walk["best"]["miou"] == max(point["best"]["miou"] for point in walk["points"])
    assert result["labels"] == {"list": "val", "held_out": None, "images": 8, "also_scored": 0}
    rows = list(csv.DictReader(open(folder / "thresholds.csv")))
    assert len(rows) == 3 * 101 and {row["maps"] for row in rows} == {"make_cam", "make_lpcam_fg_only", "make_lpcam"}
    assert float(rows[5]["miou"]) == result["eval_cam"]["make_cam"]["curve"]["miou"][5]
    assert len(list(csv.DictReader(open(folder / "walk.csv")))) == 2 * 101
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    rule = result["cam_to_ir_label"]["make_lpcam"]["rule"]
    assert f"cam_to_ir_label.conf_fg={rule['conf_fg']:g} cam_to_ir_label.conf_bg={rule['conf_bg']:g}" in said
    words = said.split("to set them: ")[1].splitlines()[0].split()
    assert smoke(*words).composed.eval_cam.threshold.make_cam is not None and len(words) == 8


def test_scored_labels_are_called_an_oracle_and_a_part_can_be_held_out(smoke, outputs, capsys):
    assert act(smoke("action=tune", "tune.split=train", "tune.held_out=0.25", "tune.beta=[]")) == 0
    said = capsys.readouterr().out
    assert "chosen by the masks of 6 images: 0.25 of the list train" in said
    assert "6 of them are scored in this run too: these values are an oracle" in said
    assert (outputs / "smoke/tune/train-0.25/tune.json").exists()


def test_two_rows_of_a_module_keep_their_tables_and_lines_apart(smoke, second_row):
    pipeline = smoke("action=tune", *SMALL)
    second_row(pipeline, "make_sem_seg_labels")
    curves = []
    with patch("pipeline.report.figures.merged", side_effect=lambda found: curves.extend(merged(found)) or curves):
        assert act(pipeline) == 0
    folder = pipeline.folder.path / "tune/val"
    assert {path.name for path in folder.glob("*.csv")} == {"thresholds.csv", "make_sem_seg_labels-walk.csv", "second-walk.csv"}
    lines = {curve.title: [line.name for line in curve.lines] for curve in curves}
    assert lines["mIoU; ring: best, dot: of the run"] == [
        "make_cam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels: walk (best)", "second: walk (best)"]
    assert lines["walks, each at its best threshold"] == [
        f"{step}: 2^{times} steps" for step in ("make_sem_seg_labels", "second") for times in (3, 8)]


def test_what_may_not_choose_is_refused(smoke, outputs, tmp_path):
    dataset = open_dataset(smoke().config.data)
    settings = TuneSettings("train", 0.25, 0.9, [], [])
    assert choosing_ids(dataset, settings) == held_out(dataset.lists["train"], 0.25)
    assert choosing_ids(dataset, replace(settings, held_out=None)) == dataset.lists["train"]
    test = dataset.lists["train"][3:5]
    with_test = replace(dataset, lists={**dataset.lists, "test": test})
    (tmp_path / "mine.txt").write_text(test[0])
    (tmp_path / "Test.txt").write_text(dataset.lists["train"][0])
    for split in ("test", "train", str(tmp_path / "mine.txt"), str(tmp_path / "Test.txt")):
        with pytest.raises(ConfigError, match="holds test images, whose masks must not be used to choose"):
            choosing_ids(with_test, replace(settings, split=split, held_out=None))
    with pytest.raises(ConfigError, match="too few images to hold out tune.held_out=0.25"):
        choosing_ids(dataset, replace(settings, split=str(tmp_path / "mine.txt")))
    with pytest.raises(ConfigError, match="not all of its 24 images have masks"):
        choosing_ids(replace(dataset, mask_files={}), replace(settings, held_out=None))
    with pytest.raises(DataError, match=r"has no list 'trian'.*did you mean 'train'"):
        smoke("tune.split=trian").tune()
    index = outputs / "smoke/make_cam/index.jsonl"
    index.write_text("".join(line for line in index.read_text().splitlines(keepends=True) if "val_0003" not in line))
    with pytest.raises(ConfigError, match="the run has no make_cam maps of 1 of its 8 images .first missing: 'val_0003'"):
        smoke().tune()


def test_a_run_without_a_walk_is_swept_as_far_as_it_is(smoke, outputs):
    for step in ("train_irn", "eval_cam"):
        shutil.rmtree(outputs / "smoke" / step)
    result = smoke().tune()
    assert "make_sem_seg_labels" not in result and result["eval_cam"]["make_cam"]["run"] is None
    assert result["eval_cam"]["make_lpcam"]["best"]["miou"] > 0


def test_the_confident_curve_is_what_counting_pixels_gives():
    counts, pixels, draws = ThresholdCounts(3), [], np.random.default_rng(0)
    for classes in ([0, 2], [1], []):
        maps = draws.random((len(classes), 20, 30)).astype(np.float32)
        truth = draws.choice([0, 1, 2, 3, 255], (20, 30)).astype(np.uint8)
        counts.update(maps, classes, truth)
        best = maps.max(axis=0) if classes else np.zeros((20, 30), np.float32)
        label = np.array(classes)[maps.argmax(axis=0)] + 1 if classes else np.zeros((20, 30), int)
        pixels.append(np.stack([best, label, truth])[:, truth != 255])
    best, label, truth = np.concatenate(pixels, axis=1)
    curve = confident_curve(counts)
    for i in (0, 17, 60, 99):
        above = best > np.float32(i / 100)
        assert curve["fg_right"][i] == pytest.approx((label == truth)[above].mean())
        assert curve["fg_share"][i] == pytest.approx(above.mean()) and curve["bg_share"][i] == pytest.approx((~above).mean())
        assert curve["bg_right"][i] == pytest.approx((truth == 0)[~above].mean())
    assert curve["fg_right"][100] is None


@pytest.mark.parametrize(("override", "message"), [("tune.held_out=1", "tune.held_out=1.0"), ("tune.beta=[0]", "tune.beta"),
                                                   ("tune.exp_times=[17]", "tune.exp_times"), ("tune.confidence=1", "tune.confidence")])
def test_impossible_settings_are_refused(smoke, override, message):
    with pytest.raises(ConfigError, match=message):
        smoke(override)
