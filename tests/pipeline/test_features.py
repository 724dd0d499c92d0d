"""action=features: pooled features of whole images and boxes, and a linear SVM on them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import pipeline.actions._features as work
from pipeline import Pipeline
from pipeline.actions._crops import cropped, largest_box, largest_of
from pipeline.commandline import act
from pipeline.console import Console
from steps.runtime.datasets import open_dataset
from steps.runtime.networks import load_classifier
from tests.conftest import SMOKE, contents
from wsss.data.images import normalise, read_image, resize_image
from wsss.errors import ConfigError

QUICK = ("action=features", "features.c=[0.01]", "features.folds=3")


def features(outputs, out, *words: str) -> Pipeline:
    return Pipeline.compose(*SMOKE, *QUICK, f"outputs={outputs}", f"out={out}", "run=smoke", *words)


def rows(out) -> list[dict[str, str]]:
    with open(out / "features.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(made_once, smoke_outputs):
    return made_once("features", lambda out: act(features(smoke_outputs, out)))


def classifier(outputs):
    context = Pipeline.compose(*SMOKE, f"outputs={outputs}").recorded(outputs / "smoke").context("make_cam")
    return context, load_classifier(context)


def test_a_row_of_each_array_is_the_mean_of_the_features_of_its_crop(made, smoke_outputs):
    context, net = classifier(smoke_outputs)
    table, full, found = rows(made), np.load(made / "features_full.npy"), np.load(made / "features_found.npy")
    assert full.shape == found.shape == (32, net.backbone.feature_channels) and full.dtype == np.float32
    assert [row["id"] for row in table] == [*context.dataset.lists["train"], *context.dataset.lists["val"]]
    assert [row["list"] for row in table] == ["train"] * 24 + ["test"] * 8
    smaller = 0
    for row, whole, box in list(zip(table, full, found))[::8]:
        image = read_image(context.dataset.image_path(row["id"]))
        x0, y0, x1, y1 = (int(row[f"found_{side}"] or -1) for side in ("x0", "y0", "x1", "y1"))
        crop = image if x0 < 0 else image[y0:y1 + 1, x0:x1 + 1]
        smaller += crop.shape != image.shape
        scale = max(image.shape) / max(crop.shape)
        for expected, pixels in ((whole, image), (box, resize_image(crop, [round(side * scale) for side in crop.shape[:2]]))):
            with torch.no_grad():
                pooled = net.features(normalise(pixels, "cpu", net.backbone.normalisation)[None]).mean((0, 2, 3))
            np.testing.assert_allclose(expected, pooled.numpy(), atol=1e-5)
    assert smaller
    assert {row["classes"] for row in table} >= {";".join(context.dataset.classes[i] for i in context.dataset.labels[table[0]["id"]])}


def test_the_scores_are_printed_and_written(made, smoke_outputs, capsys):
    before = contents(made)
    assert act(features(smoke_outputs, made)) == 0
    said = capsys.readouterr().out
    assert "32 images, 0 of them now" in said and "linear SVM on 32 features: mean average precision in percent, trained on 24 images of train" in said
    scores = json.loads((made / "svm.json").read_text())
    assert [score["crop"] for score in scores] == ["full", "found"]
    for score, name in zip(scores, ("whole image", "box found")):
        line = next(line for line in said.splitlines() if line.startswith(name))
        assert line.split()[2:] == [f"{100 * score['score']:.1f}", f"{100 * score['validation']:.1f}", "0.01"] and 0 <= score["score"] <= 1
    assert contents(made) == before


def test_an_interrupted_call_continues(smoke_outputs, made, tmp_path, monkeypatch):
    out, progress = tmp_path / "out", Console.progress

    def stop(console, name, done, *more):
        if done == 5:
            raise RuntimeError("pulled the plug")
        progress(console, name, done, *more)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="pulled the plug"):
        patch.setattr(Console, "progress", stop)
        work.features(features(smoke_outputs, out))
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("images/*.npy")}
    assert len(first) == 5 and not (out / "svm.json").exists()
    work.features(features(smoke_outputs, out))
    assert {name: (out / "images" / name).stat().st_mtime_ns for name in first} == first
    for name in ("features_full.npy", "features_found.npy", "features.csv", "svm.json"):
        assert (out / name).read_bytes() == (made / name).read_bytes()
    with pytest.raises(ConfigError, match=r"was made otherwise \(share: 0.2 -> 0.5\)"):
        work.features(features(smoke_outputs, out, "features.share=0.5"))


def test_ground_truth_boxes_and_a_fixed_size(smoke_outputs, tmp_path, monkeypatch):
    boxes = {}

    def with_boxes(config, **more):
        dataset = open_dataset(config, **more)
        boxes.update({image_id: ((0, 1.0, 2.0, 3.0, 5.0), (0, 4.0, 3.0, 70.0, 60.0)) for image_id in dataset.lists["all"]})
        return replace(dataset, box_lists=boxes)
    with pytest.raises(ConfigError, match=r"features.crops contains box, but 24 of the 24 images of features.train='train' have no ground-truth boxes"):
        work.features(features(smoke_outputs, tmp_path / "none", "features.crops=[box]"))
    monkeypatch.setattr(work, "open_dataset", with_boxes)
    work.features(features(smoke_outputs, tmp_path / "out", "features.crops=[box]", "features.size=48"))
    context, net = classifier(smoke_outputs)
    boxes[context.dataset.lists["train"][0]] = ((0, 4.0, 3.0, 70.0, 61.0),)   # corrected: made again, with the others as they were
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    monkeypatch.setattr(work, "open_dataset", lambda config, **more: replace(open_dataset(config, **more), box_lists=boxes))
    work.features(features(smoke_outputs, tmp_path / "out", "features.crops=[box]", "features.size=48"))
    changed = [name for name, time in before.items() if (tmp_path / "out/images" / name).stat().st_mtime_ns != time]
    assert changed == [f"{context.dataset.lists['train'][0]}.npy"]
    first = rows(tmp_path / "out")[0]
    assert [first[f"box_{side}"] for side in ("x0", "y0", "x1", "y1")] == ["4", "3", "70", "61"] and first["found_class"] == ""
    pixels = resize_image(np.ascontiguousarray(read_image(context.dataset.image_path(first["id"]))[3:62, 4:71]), (48, 48))
    with torch.no_grad():
        pooled = net.features(normalise(pixels, "cpu", net.backbone.normalisation)[None]).mean((0, 2, 3))
    np.testing.assert_allclose(np.load(tmp_path / "out/features_box.npy")[0], pooled.numpy(), atol=1e-5)


def test_the_largest_box_of_a_map_by_hand():
    saliency = np.zeros((6, 8), np.float32)
    saliency[0, 0], saliency[2, 3], saliency[3, 4], saliency[4, 4:6] = 1, 0.3, 0.5, 0.21   # joined at a corner
    saliency[5, 7] = 0.2   # not above a fifth
    assert largest_box(saliency, 0.2) == (3, 2, 5, 4) and largest_box(saliency, 0.6) == (0, 0, 0, 0)
    assert largest_box(-saliency, 0.2) is None and largest_of(np.zeros((0, 4))) is None
    image = np.arange(3 * 48).reshape(6, 8, 3)
    assert np.array_equal(cropped(image, (3, 2, 5, 4)), image[2:5, 3:6]) and cropped(image, None) is image
    assert cropped(image, (9, 9, 12, 12)).shape == (1, 1, 3)   # outside


@pytest.mark.parametrize(("words", "message"), [
    (["features.test=train"], "features.test='train' contains 24 images of features.train='train', on which the SVM is trained"),
    (["features.crops=[whole]"], r"features.crops=\['whole'\] is not possible: expected one or more of full, box, found"),
    (["features.folds=1"], "features.folds=1 is not possible: expected at least 2"), (["shard=0/2"], "shard='0/2' is not possible"),
    (["name=other"], "name='other' is not possible")])
def test_what_is_refused(smoke_outputs, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        work.features(features(smoke_outputs, tmp_path / "out", *words))


def test_the_folder_of_the_run_is_no_place(smoke_outputs):
    with pytest.raises(ConfigError, match="is the folder of the run or holds it"):
        work.features(features(smoke_outputs, smoke_outputs / "smoke"))
    with pytest.raises(ConfigError, match="^out=None is not possible: expected a folder for the features: out=DIR"):
        Pipeline.compose(*SMOKE, *QUICK, f"outputs={smoke_outputs}", "run=smoke")
