"""`action=export`: masks of a run, or of a folder of predictions, for annotation tools; what is refused, and that nothing is half-written."""

import json
import shutil
from unittest.mock import patch

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline import Pipeline
from pipeline.actions import names
from pipeline.commandline import act
from pipeline.config import compose, typed
from tests.conftest import SMOKE
from tests.pipeline.test_segmentation import CHOSEN
from wsss import annotations
from wsss.annotations import coco
from wsss.annotations.label_studio import decode_brush
from wsss.data.images import read_image, read_mask, write_mask
from wsss.errors import ArtifactError, ConfigError


@pytest.fixture
def export(smoke_outputs, tmp_path):
    """`export(form, *overrides)` composes the export of the finished run of the embedded data set to `target`."""
    return lambda form, *overrides: Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", "action=export", f"export_format={form}",
                                                     f"export_to={tmp_path / 'target'}", *overrides)


@pytest.mark.parametrize("form", annotations.names())
def test_every_form_has_the_pseudo_masks_and_the_images(export, smoke_outputs, tmp_path, form, capsys):
    pipeline, target = export(form), tmp_path / "target"
    assert act(pipeline) == 0
    told = capsys.readouterr().out
    assert f"pseudo masks, {form}" in told and "regions of a class" in told
    assert ("polygons, at most 1 px from the masks" in told) == (form == "labelme")
    folder = target / annotations.load(form).IMAGES
    for image_id in pipeline.dataset.lists["train"]:
        assert np.array_equal(read_image(folder / f"{image_id}.jpg"), pipeline.dataset.full_image(image_id))
    assert not list(tmp_path.glob(".writing-*"))
    masks = smoke_outputs / "smoke" / "make_sem_seg_labels"
    if form == "voc":
        assert all(np.array_equal(read_mask(target / f"SegmentationClass/{path.name}"), read_mask(path)) for path in masks.glob("*.png"))
    if form == "label_studio":
        for task in json.loads((target / "tasks.json").read_text()):
            mask = read_mask(masks / f"{task['data']['image_id']}.png")
            assert task["data"]["image"] == f"/data/local-files/?d=target/images/{task['data']['image_id']}.jpg"
            for result in task["predictions"][0]["result"]:
                value = pipeline.dataset.classes.index(result["value"]["brushlabels"][0]) + 1
                assert np.array_equal(decode_brush(result["value"]["rle"], mask.shape), mask == value)


def test_a_list_corrections_polygons_and_an_address(export, smoke_outputs, tmp_path):
    (tmp_path / "some.txt").write_text("train_0003\ntrain_0001\n")
    mask = np.zeros_like(read_mask(smoke_outputs / "smoke/make_sem_seg_labels/train_0001.png"))
    mask[5:20, 7:30] = 3
    write_mask(tmp_path / "corrections/train_0001.png", mask)
    report = export("label_studio", f"export_split={tmp_path / 'some.txt'}", f"data.corrections={tmp_path / 'corrections'}", "export_polygons=true",
                    "export_tolerance=0", "export_url='http://here/'").export()
    assert [(line.what, line.found) for line in report[:2]] == [("pseudo masks, label_studio", 2), ("of these corrected by hand before", 1)]
    first, second = json.loads((tmp_path / "target/tasks.json").read_text())
    assert (first["data"]["image_id"], second["data"]["image"]) == ("train_0003", "http://here/train_0001.jpg")
    (region,) = second["predictions"][0]["result"]
    points = np.array(region["value"]["points"]) * (mask.shape[1], mask.shape[0]) / 100
    assert region["value"]["polygonlabels"] == ["koi"] and np.allclose([points.min(0), points.max(0)], [[7, 5], [30, 20]])


def test_the_masks_of_another_step(trained, tmp_path):  # noqa: F811
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={trained}", "action=export", "export_format=voc", "export_step=infer_seg", f"export_to={tmp_path / 'target'}")
    report = pipeline.export()
    assert report[0].what == "segmentations, voc" and report[0].found == 8
    for path in (trained / "smoke/infer_seg").glob("*.png"):
        assert np.array_equal(read_mask(tmp_path / "target/SegmentationClass" / path.name), read_mask(path))
    with pytest.raises(ConfigError, match=r"export_step='eval_seg' is not possible: expected a step of this experiment that makes masks \(make_sem_seg_labels, infer_seg\)"):
        Pipeline.compose(*CHOSEN, f"outputs={trained}", "action=export", "export_format=voc", "export_step=eval_seg", f"export_to={tmp_path / 'other'}").export()


def test_a_folder_of_predictions(trained, tmp_path):  # noqa: F811
    photos, source = tmp_path / "photos", next((trained / ".data").glob("*/images"))
    (photos / "trip 1").mkdir(parents=True)
    with Image.open(source / "val_0000.jpg") as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6   # a quarter turn
        image.crop((0, 0, 90, 50)).save(photos / "turned.jpeg", exif=exif)
        image.crop((0, 0, 64, 40)).save(photos / "trip 1" / "é b.png")
    call = (*CHOSEN, f"outputs={trained}")
    assert act(Pipeline.compose(*call, "action=predict", "run=smoke", f"images={photos}", f"out={tmp_path / 'out'}")) == 0
    export = (*call, "action=export", "export_format=coco", f"export_to={tmp_path / 'target'}", f"export_from={tmp_path / 'out'}")
    assert Pipeline.compose(*export).export()[0].found == 2
    content = json.loads((tmp_path / "target/annotations/instances_default.json").read_text())
    assert [(image["file_name"], image["height"], image["width"]) for image in content["images"]] == [("trip 1/é b.png", 40, 64), ("turned.jpg", 90, 50)]
    for image in content["images"]:
        assert read_image(tmp_path / "target/images" / image["file_name"]).shape[:2] == (image["height"], image["width"])
        mask = read_mask(tmp_path / "out/masks" / image["file_name"].replace(".jpg", ".png"))
        regions = {item["category_id"]: item["segmentation"]["counts"] for item in content["annotations"] if item["image_id"] == image["id"]}
        assert regions == {value: coco.run_lengths(mask == value) for value in np.unique(mask).tolist() if value}
    with pytest.raises(ConfigError, match="export_to=.* is not empty. Choose another folder"):
        Pipeline.compose(*export).export()
    shutil.rmtree(photos)
    with pytest.raises(ConfigError, match="its photographs are no longer in .*photos. Move them back, or predict again"):
        Pipeline.compose(*export).export()
    with pytest.raises(ConfigError, match="has no predictions.json. Expected a folder that action=predict"):
        Pipeline.compose(*export[:-1], f"export_from={tmp_path}").export()


def test_nothing_is_half_written(export, tmp_path):
    with patch.object(coco, "run_lengths", side_effect=ArtifactError("damaged")), pytest.raises(ArtifactError, match="damaged"):
        export("coco").export()
    assert not (tmp_path / "target").exists() and list(tmp_path.iterdir()) == []
    (tmp_path / "target").mkdir()   # an empty folder is no hindrance
    export("coco").export()
    with pytest.raises(ConfigError, match="export_to=.*target is not empty. Choose another folder, or delete it: it need not exist"):
        export("coco", "force=true").export()


@pytest.mark.parametrize(("overrides", "message"), [
    (["export_format=null"], "export_format=None is not possible: expected one of coco, cvat, label_studio, labelme, voc"),
    (["export_format=yolo"], "export_format='yolo' is not possible: expected one of coco"),
    (["export_format=cvat", "export_polygons=true"], "export_polygons=True is not possible: expected false: cvat has masks only"),
    (["export_format=coco", "export_tolerance=-1"], "export_tolerance=-1.0 is not possible: expected 0 or more pixels"),
    (["export_format=coco", "export_from=x", "export_step=y"], "export_step='y' is not possible: expected no value with export_from=x")])
def test_impossible_settings(overrides, message):
    with pytest.raises(ConfigError, match=message):
        typed(compose([*SMOKE, "action=export", *overrides]))


@pytest.mark.parametrize(("overrides", "message"), [
    (["export_to=null"], "action=export needs a target folder: set export_to=DIR"),
    (["name=nothing"], "there is no run"),
    (["refiner.beta=3"], r"has no pseudo masks of this configuration \(.*beta.*\). Make them first: python run_pipeline.py"),
    (["export_split=val"], "the pseudo masks cover 0 of the 8 ids of the list val")])
def test_what_cannot_be_exported_is_refused(export, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        export("coco", *overrides).export()
    assert not (tmp_path / "target").exists()


def test_the_actions_are_told_apart_in_the_help():
    assert {"export", "import", "import_official"} <= set(names())
    with pytest.raises(ConfigError, match="import_from='x' is not possible: expected no value, except with action=import or import_official"):
        typed(compose([*SMOKE, "import_from=x"]))
