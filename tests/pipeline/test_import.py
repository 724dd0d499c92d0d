"""`action=import`: masks come back from annotation tools into a run, checked, and without those that nobody changed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline import Pipeline
from pipeline.actions._corrections import READERS
from pipeline.commandline import act
from tests.conftest import SMOKE, works
from wsss import annotations
from wsss.annotations import UNSCORED, Options, Sheet
from wsss.data import drawing, open_folder
from wsss.data.images import read_mask, write_mask
from wsss.errors import ConfigError, DataError
from wsss.overlays import write_picture
from wsss.palette import IGNORE

FORMS, CLASSES = annotations.names(), tuple(drawing.CLASSES)


@pytest.fixture
def take(outputs, tmp_path):
    """`take(form, *overrides)` composes the import of the folder `tool` into a copy of the finished run."""
    return lambda form, *overrides: Pipeline.compose(*SMOKE, f"outputs={outputs}", "action=import", f"import_format={form}",
                                                     f"import_from={tmp_path / 'tool'}", *overrides)


def done(pipeline):
    return getattr(pipeline, "import")()


def masks_of(outputs, *ids):
    return {image_id: read_mask(outputs / f"smoke/make_sem_seg_labels/{image_id}.png") for image_id in ids}


def returned(form, masks, classes, folder, tolerance=None):
    """What a tool exports in which these masks were drawn."""
    annotations.load(form).write(folder, [Sheet(name, f"{name}.jpg", mask) for name, mask in masks.items()], Options(classes, tolerance))
    if form == "label_studio":
        tasks = json.loads((folder / "tasks.json").read_text())
        for number, task in enumerate(tasks, start=1):
            task |= {"id": number, "annotations": [{"was_cancelled": False, "result": task["predictions"][0]["result"]}], "predictions": []}
        (folder / "tasks.json").write_text(json.dumps(tasks))


@pytest.fixture
def changed(outputs):
    """The masks of three images: the first as the run made it, the second with a square, the third with a square that is not scored."""
    masks = masks_of(outputs, "train_0000", "train_0001", "train_0002")
    masks["train_0001"][10:30, 20:60] = 2
    masks["train_0002"][10:30, 20:60] = IGNORE
    return masks


@pytest.mark.parametrize("form", FORMS)
def test_what_was_changed_comes_back(take, outputs, changed, tmp_path, form):
    returned(form, changed, CLASSES, tmp_path / "tool", 0 if form == "labelme" else None)
    path, report = done(take(form, "export_tolerance=0"))
    assert path.parent == outputs / "smoke/corrections" and [(line.what, line.found) for line in report[:2]] == [
        ("corrected masks", 2), ("left out: as the run made them", 1)]
    found = {file.stem: read_mask(file) for file in path.iterdir()}
    assert found.keys() == {"train_0001", "train_0002"} and all(np.array_equal(found[name], changed[name]) for name in found)
    why = works(Pipeline.compose(*SMOKE, f"outputs={outputs}", f"data.corrections={path}", "replace=true"))
    assert why["cam_to_ir_label"] == "2 corrected masks changed"


@pytest.mark.parametrize(("form", "tolerance"), [("coco", 1.0), ("label_studio", 1.0), ("labelme", 1.0), ("labelme", 2.5)])
def test_polygons_that_nobody_moved_are_no_corrections(take, outputs, tmp_path, form, tolerance):
    masks = masks_of(outputs, *(f"train_{number:04}" for number in range(6)))
    returned(form, masks, CLASSES, tmp_path / "tool", tolerance)
    with pytest.raises(ConfigError, match="all 6 masks are as the run made them, so none is a correction. Correct some, or set import_unchanged=true"):
        done(take(form, f"export_tolerance={tolerance}"))
    assert not (outputs / "smoke/corrections").exists()
    path, report = done(take(form, f"export_tolerance={tolerance}", "import_unchanged=true"))
    assert report[0].found == 6 == len(list(path.iterdir()))


def test_a_zip_file_a_second_import_and_what_the_user_is_told(take, outputs, changed, tmp_path, capsys):
    returned("cvat", changed, CLASSES, tmp_path / "tool")
    assert act(take("cvat", f"import_from={tmp_path / 'tool' / 'annotations.zip'}")) == 0
    told = capsys.readouterr().out
    first, = (outputs / "smoke/corrections").iterdir()
    assert f"data.corrections={first} replace=true" in told and "name=NAME reuse_from=[smoke]" in told
    assert done(take("cvat"))[0] == first   # the same masks: the same folder
    shutil.rmtree(tmp_path / "tool")
    again = masks_of(outputs, "train_0003") | {"train_0001": changed["train_0001"], "train_0002": changed["train_0002"] * 0}
    again["train_0003"][:9] = 4
    returned("cvat", again, CLASSES, tmp_path / "tool")
    path, report = done(take("cvat", f"data.corrections={first}"))
    assert [(line.what, line.found) for line in report[:3]] == [("corrected masks", 2), ("left out: as the run made them", 1), ("corrected before and kept", 1)]
    assert {file.stem for file in path.iterdir()} == {"train_0001", "train_0002", "train_0003"} and not read_mask(path / "train_0002.png").any()
    assert read_mask(first / "train_0002.png").any()   # the folder of before is as it was


def test_masks_of_no_training_list_and_classes_that_labels_lack_are_told(take, tmp_path, outputs):
    pipeline = take("voc", "import_unchanged=true")
    size = Pipeline.compose(*SMOKE, f"outputs={outputs}")
    size.plan()
    labels = size.dataset.labels["train_0004"]
    other = next(value for value in range(1, 9) if value - 1 not in labels)
    returned("voc", {"val_0001": np.zeros(size.dataset.size("val_0001"), np.uint8), "train_0004": np.full(size.dataset.size("train_0004"), other, np.uint8)},
             CLASSES, tmp_path / "tool")
    report = {line.what: (line.found, line.note) for line in done(pipeline)[1]}
    assert report["not used: in no training list"] == (1, "for example val_0001")
    assert report["with a class that the label lacks"][0] == 1 and "train_0004" in report["with a class that the label lacks"][1]


def test_numbers_without_a_table_follow_classes_txt(take, outputs, changed, tmp_path):
    shuffled = CLASSES[::-1]
    for name, mask in changed.items():
        values = np.array([0, *(shuffled.index(label) + 1 for label in CLASSES), *[IGNORE] * 247], np.uint8)
        write_mask(tmp_path / f"tool/SegmentationClass/{name}.png", values[mask])
    (tmp_path / "tool/classes.txt").write_text("\n".join(shuffled))
    path, _ = done(take("voc"))
    assert {file.stem: read_mask(file).tobytes() for file in path.iterdir()} == {name: changed[name].tobytes() for name in ("train_0001", "train_0002")}


# Label Studio.

def tasks_of(folder, change):
    tasks = json.loads((folder / "tasks.json").read_text())
    change(tasks)
    (folder / "tasks.json").write_text(json.dumps(tasks))


def test_tasks_of_label_studio(take, changed, outputs, tmp_path):
    """Of several annotations the last counts, but none that was cancelled; files that were uploaded have a prefix; an annotation without
    a region is background; a later region covers those before."""
    returned("label_studio", {**changed, **masks_of(outputs, "train_0005")}, CLASSES, tmp_path / "tool")

    def change(tasks):
        tasks[0]["annotations"] = [{"was_cancelled": True, "result": []}]
        tasks[1]["annotations"] += [{"was_cancelled": True, "result": []}]
        tasks[1]["data"] = {"image": "/data/upload/3/0a1b2c3d-train_0001.jpg"}
        tasks[2]["annotations"] += [{"result": []}]
        square = {"type": "polygonlabels", "original_width": 100, "original_height": 100, "value": {"polygonlabels": ["koi"], "points": [[0, 0], [100, 0], [100, 100], [0, 100]]}}
        height, width = read_mask(outputs / "smoke/make_sem_seg_labels/train_0005.png").shape
        tasks[3]["annotations"][0]["result"] += [{**square, "original_width": width, "original_height": height}]
    tasks_of(tmp_path / "tool", change)
    path, report = done(take("label_studio"))
    found = {file.stem: read_mask(file) for file in path.iterdir()}
    assert found.keys() == {"train_0001", "train_0002", "train_0005"} and np.array_equal(found["train_0001"], changed["train_0001"])
    assert not found["train_0002"].any() and (found["train_0005"] == 3).all()


@pytest.mark.parametrize(("change", "message"), [
    (lambda tasks: tasks[1]["annotations"][0]["result"].append({"type": "rectanglelabels", "value": {"rectanglelabels": ["koi"]}}),
     "train_0001 has a result of the type 'rectanglelabels'; expected brush masks or polygons: draw it as one, or delete it"),
    (lambda tasks: tasks[1]["annotations"][0]["result"][0]["value"].update(brushlabels=["kio"]), r"train_0001 has the class 'kio'; did you mean 'koi'\?; expected one of the data set"),
    (lambda tasks: tasks[1].update(data={"image": "http://x/other.jpg"}), "task 2 is of 'other.jpg', which is no image; leave it out of the export"),
    (lambda tasks: tasks[1]["annotations"][0]["result"][0].update(original_width=7), "train_0001 has regions of an image of another size|a brush mask cannot be read"),
    (lambda tasks: [task.update(annotations=[]) for task in tasks], "has no task with an annotation; expected Label Studio's JSON with submitted annotations"),
    (lambda tasks: tasks[0].pop("data"), r"cannot be read as tasks of Label Studio \(KeyError: 'data'\); expected its export as JSON")])
def test_tasks_that_cannot_be_used_are_refused(take, changed, tmp_path, outputs, change, message):
    returned("label_studio", changed, CLASSES, tmp_path / "tool")
    tasks_of(tmp_path / "tool", change)
    with pytest.raises(DataError, match=message):
        done(take("label_studio"))
    assert not (outputs / "smoke/corrections").exists()


# What is refused.

def test_masks_of_another_size_are_refused(take, outputs, tmp_path):
    returned("cvat", {"train_0000": np.ones((9, 7), np.uint8)}, CLASSES, tmp_path / "tool")
    with pytest.raises(DataError, match="the mask of train_0000 is 9 high and 7 wide but its image is 145 high and 181 wide as shown; annotate the image as it is"):
        done(take("cvat"))
    assert not (outputs / "smoke/corrections").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_class_of_another_data_set_is_refused(take, changed, tmp_path, form):
    returned(form, changed, (CLASSES[0], "lynx", *CLASSES[2:]), tmp_path / "tool", 0 if form == "labelme" else None)
    with pytest.raises(DataError, match="lynx"):
        done(take(form))


@pytest.mark.parametrize(("form", "message"), [
    ("cvat", "has no folder SegmentationClass; expected an export of the format Segmentation mask 1.1 of CVAT"),
    ("coco", "has no JSON file of COCO or LabelMe with shapes; expected polygons or masks"),
    ("label_studio", "has no task with an annotation")])
def test_a_folder_of_something_else_is_refused(take, tmp_path, form, message):
    (tmp_path / "tool").mkdir()
    Image.new("RGB", (3, 4)).save(tmp_path / "tool/x.png")
    with pytest.raises(DataError, match=message):
        done(take(form))


@pytest.mark.parametrize(("overrides", "message"), [
    (["import_format=yolo"], "import_format='yolo' is not possible: expected one of coco, cvat, label_studio, labelme, voc"),
    (["import_from=null"], "import_from=None is not possible: expected what the annotation tool has exported: import_from=DIR"),
    (["import_from={tmp}/none"], "import_from=.*none is neither a folder nor a zip file. Set it to what the annotation tool has exported"),
    (["name=nothing"], "there is no run")])
def test_what_cannot_be_imported_is_refused(take, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        done(take("cvat", *(override.format(tmp=tmp_path) for override in overrides)))


def test_the_name_of_what_is_not_scored_is_no_class_of_the_readers():
    from wsss.data.folder.classes import is_class

    assert is_class(UNSCORED)   # else a reader would leave the region out, which would then be background


@pytest.fixture
def few(tmp_path):
    """A data set of two images of 20 x 30 pixels, and the folder of an export."""
    for name in "ab":
        write_picture(tmp_path / f"data/images/{name}.jpg", np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "data/labels.csv").write_text("name,classes\na,cat\nb,dog\n")
    (tmp_path / "data/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "export").mkdir()
    return open_folder(tmp_path / "data"), tmp_path / "export"


def test_cvats_own_xml(few):
    data, export = few
    (export / "annotations.xml").write_text('''<annotations><image name="a.jpg" width="30" height="20">
        <polygon label="dog" points="0,0;10,0;10,10;0,10" z_order="0"/><polygon label="ignore region" points="20,0;30,0;30,20;20,20"/></image>
        <image name="b.jpg" width="30" height="20"><box label="cat" xtl="0" ytl="0" xbr="5" ybr="5"/></image></annotations>''')
    found = {name: draw() for name, draw in READERS["cvat"](export, data).items()}
    assert found.keys() == {"a"} and (found["a"][:10, :10] == 2).all() and (found["a"][:, 20:] == IGNORE).all() and (found["a"] == 0).sum() == 300
    (export / "annotations.xml").write_text((export / "annotations.xml").read_text().replace('"dog"', '"dgo"'))
    with pytest.raises(DataError, match="class 'dgo' is not in the class list; did you mean 'dog'"):
        READERS["cvat"](export, data)


def test_a_region_of_label_studio_named_void_is_not_scored(few):
    data, export = few
    square = {"original_width": 30, "original_height": 20, "value": {"polygonlabels": ["Void"], "points": [[0, 0], [50, 0], [50, 50], [0, 50]]}}
    (export / "tasks.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [square]}]}]))
    mask = READERS["label_studio"](export, data)["a"]()
    assert (mask[:10, :15] == IGNORE).all() and (mask == 0).sum() == 450
