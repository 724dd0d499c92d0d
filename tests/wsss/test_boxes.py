"""Ground-truth boxes of a folder: VOC XML and COCO json, what is accepted, and every refusal."""

import json
import logging
import os
import pickle
import re

import numpy as np
import pytest

from tests.wsss.test_coco import TOOTHBRUSH, TRAIN, TV, change, train_id
from tests.wsss.test_coco import build as build_coco
from tests.wsss.test_folder import build
from tests.wsss.test_voc import build as build_voc
from wsss.data import boxes, open_coco, open_folder, open_voc, prepare_coco
from wsss.data.boxes import folder_boxes
from wsss.data.coco_layout import CLASS_INDEX
from wsss.errors import DataError

ROWS = {"a": "cat", "b": "cat;dog", "c": "", "d": "dog"}   # images of 20 x 30 pixels
LISTS = {"train": "a\nb\n", "val": "c\nd\n"}


def xml(*objects, width=30, height=20, head=""):
    """An annotation of objects (name, xmin, ymin, xmax, ymax); "!" after the name marks a difficult one."""
    found = "".join(f"<object><name>{name.rstrip('!')}</name><part><name>tail</name><bndbox><xmin>99</xmin></bndbox></part><difficult>"
                    f"{int('!' in name)}</difficult><bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox></object>"
                    for name, x0, y0, x1, y1 in objects)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>" if width is not None else ""
    return f"{head}<annotation>{size}{found}</annotation>"


XML = {"a": xml(("cat", 1, 1, 30, 20)), "b": xml(("dog!", 3, 4, 10.5, 12), ("cat", 5, 5, 5, 5)), "c": xml(), "d": xml(("dog", 2, 2, 9, 9), width=None)}


def with_xml(root, files=XML, **changed):
    """The folder with annotations; `changed`: text of an annotation, None for none."""
    build(root, ROWS, **LISTS)
    (root / "annotations").mkdir()
    for name, text in (files | changed).items():
        if text is not None:
            (root / "annotations" / f"{name}.xml").write_text(text)
    return root


def coco(bboxes, ids="abcd", **more):
    """A COCO json: `bboxes` are (id, category, bbox, further keys...)."""
    return {"images": [{"id": 10 + i, "file_name": f"photos/{name}.jpg", "height": 20, "width": 30} for i, name in enumerate(ids)],
            "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "unused"}],
            "annotations": [{"image_id": 10 + ids.index(name), "category_id": {"dog": 7, "cat": 3}.get(of, 1), "bbox": bbox} | rest
                            for name, of, bbox, rest in bboxes]} | more


BOXES = [("a", "cat", [0, 0, 30, 20], {}), ("b", "dog", [2, 3, 8.5, 9], {}), ("b", "cat", [4, 4, 1, 0.5], {}),
         ("b", "cat", [0, 0, 30, 20], {"iscrowd": 1}), ("d", "dog", [1, 1, 8, 8], {})]


def with_json(root, data):
    build(root, ROWS, **LISTS)
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return root


@pytest.mark.parametrize("make", [lambda root: with_xml(root), lambda root: with_json(root, coco(BOXES))])
def test_boxes_are_of_the_first_and_the_last_pixel_from_0(tmp_path, make):
    """In XML both are given, from 1; in a COCO json the extent. The same boxes either way."""
    data = open_folder(make(tmp_path))
    assert data.has_boxes(data.lists["train"]) and data.has_boxes(data.lists["val"]) and set(data.box_lists) == set("abcd")
    assert data.box_lists["a"] == ((0, 0.0, 0.0, 29.0, 19.0),)
    assert data.box_lists["b"] == ((1, 2.0, 3.0, 9.5, 11.0), (0, 4.0, 4.0, 4.0, 4.0))
    found, classes = data.boxes("c")
    assert found.shape == (0, 4) and classes.shape == (0,) and classes.dtype == np.int64
    assert data.boxes("d")[0].tolist() == [[1, 1, 8, 8]] and data.boxes("d")[1].tolist() == [1]
    assert "nobody" not in data.box_lists and data.box_lists.get("nobody") is None and len(data.box_lists) == 4
    again = pickle.loads(pickle.dumps(data))
    assert again.digest_of_boxes("abcd") == data.digest_of_boxes("abcd") != data.digest_of_boxes("abce")


def test_difficult_objects_can_be_left_out(tmp_path):
    root = with_xml(tmp_path)
    assert [len(open_folder(root, difficult=difficult).box_lists["b"]) for difficult in (True, False)] == [2, 1]


def test_a_box_may_leave_the_image_by_one_pixel(tmp_path):
    """Some tools count from 0 in XML, or give the pixel after the last."""
    root = with_xml(tmp_path, a=xml(("cat", 0, 0, 31, 21)))
    assert open_folder(root).box_lists["a"] == ((0, 0.0, 0.0, 29.0, 19.0),)


@pytest.mark.parametrize("text, message", [
    (xml(("cat", 2, 2, 32, 9)), r"a.xml has a box from x=1, y=1 to x=31, y=8 .* but its image is 20 high and 30 wide; expected a box inside"),
    (xml(("cat", 9, 2, 3, 9)), "from x=8, y=1 to x=2, y=8"),
    (xml(("cat", 0, 2, 0, 9)), "from x=-1, y=1 to x=-1"),
    (xml(("cat", "left", 2, 3, 9)), "from x=nan, y=1 to x=2"),
    (xml(("cat", "1</xmin><xmin>", 2, "inf", 9)), "to x=inf"),
    (xml(("cats", 1, 2, 3, 9)), r"a.xml names an object of the unknown class 'cats'; did you mean 'cat'\?; expected one of the 2 classes"),
    (xml(("cat", 1, 2, 3, 9), width=20, height=30), "is for an image that is 30 high and 20 wide, but its image is 20 high and 30 wide as shown"),
    (xml(("cat", 1, 2, 3, 9))[:-9], "cannot read the annotation .*a.xml"),
    ("<html/>", "is not a VOC annotation: it starts with <html>"),
    (xml(("&lol2;", 1, 2, 3, 9), head='<!DOCTYPE a [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;">]>'), "a.xml declares a document type, <!DOCTYPE a>, which"),
    (xml(("&f;", 1, 2, 3, 9), head='<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>'), "declares a document type"),
])
def test_annotations_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_folder(with_xml(tmp_path, a=text))


def test_every_wrong_annotation_is_told(tmp_path):
    with pytest.raises(DataError, match=r"annotations of .*: 2 problems\n  - .*a.xml .*\n  - .*d.xml"):
        open_folder(with_xml(tmp_path, a="<html/>", d=xml(("cow", 1, 1, 2, 2))))


@pytest.mark.parametrize("lacking, covered", [("", {"train", "val"}), ("ab", {"val"}), ("a", None), ("c", None), ("abcd", set())])
def test_boxes_cover_train_and_val_or_val(tmp_path, lacking, covered, caplog):
    root = with_xml(tmp_path, **dict.fromkeys(lacking))
    data = open_folder(root)
    assert {name for name in ("train", "val") if data.has_boxes(data.lists[name])} == (covered or set())
    told = f"the boxes are not used, because they are incomplete: train has .* that of {lacking} is missing"
    assert bool(re.search(told, caplog.text)) is (covered is None)


def test_labels_that_contradict_boxes_and_files_without_an_image_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        data = open_folder(with_xml(tmp_path, a=xml(("dog", 1, 1, 2, 2)), zebra=xml()))
    assert "1 boxes are of a class that their image does not have in labels.csv, for example dog in a" in caplog.text
    assert "1 annotations have no image and are ignored, for example zebra" in caplog.text
    assert data.labels["a"] == (0,) and data.box_lists["a"][0][0] == 1 and "zebra" not in data.box_lists


def test_a_plan_parses_nothing_unless_something_changed(tmp_path, monkeypatch):
    root, marker, read = with_xml(tmp_path / "data"), tmp_path / "marker", []
    parse = boxes.read_annotation
    monkeypatch.setattr(boxes, "read_annotation", lambda path: read.append(path.name) or parse(path))
    open_folder(root, check=marker)
    assert sorted(read) == ["a.xml", "b.xml", "c.xml", "d.xml"]
    read.clear()
    data = open_folder(root, check=marker)
    assert data.has_boxes(data.lists["val"]) and not read
    assert data.boxes("d")[0].tolist() == [[1, 1, 8, 8]] and data.box_lists["d"] and read == ["d.xml"]
    os.utime(root / "labels.csv", (1, 1))   # the boxes are compared with the labels
    open_folder(root, check=marker)
    assert len(read) == 5


@pytest.mark.parametrize("data, message", [
    (coco([("a", "cat", [0, 0, 40, 5], {})]), "instances.json, image a, has a box from x=0, y=0 to x=39, y=4"),
    (coco([("a", "cat", [0, 0, 0, 5], {})]), "image a, has a box from x=nan"),
    (coco([("a", "cat", [0, 0, 5], {})]), "image a, has a box from x=nan"),
    (coco([("a", "cow", [0, 0, 5, 5], {})]), "image a has a box of the unknown class 'unused'"),
    (coco([("a", "cat", [0, 0, 5, 5], {"image_id": 99})]), "an annotation is of image 99, which is not in its images"),
    (coco([], "aabcd"), "two of its images have the same file name without the suffix"),
    (coco([], images=[{"id": 1, "file_name": "a.jpg", "height": 30, "width": 20}]), "its image a is 30 high and 20 wide, but images/a.jpg is 20 high"),
])
def test_a_json_that_is_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        open_folder(with_json(tmp_path, data))


def test_one_json_or_xml_files(tmp_path, caplog):
    root = with_json(tmp_path, coco(BOXES, "abcdz"))
    with caplog.at_level(logging.WARNING):
        assert set(open_folder(root).box_lists) == set("abcd")
    assert "1 of its images are not in images/ and are ignored, for example z" in caplog.text
    for name in ROWS:   # files of the images come first
        (root / f"annotations/{name}.xml").write_text(XML[name])
    assert open_folder(root).boxes("a")[0].tolist() == [[0, 0, 29, 19]]


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"annotations": [{"image_id": 10, "category_id": 3}], "images": [], "categories": []})])
def test_a_json_without_boxes_is_left_out_with_a_warning(tmp_path, caplog, text):
    assert not open_folder(with_json(tmp_path, text)).box_lists
    assert "instances.json has no boxes in COCO's form: expected images" in caplog.text
    folder = tmp_path / "annotations"
    (folder / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    assert not open_folder(tmp_path).box_lists


def test_no_annotations(tmp_path):
    assert not folder_boxes(tmp_path, {}, {"a": "a.jpg"}, ("cat",), {"a": (0,)}, {"train": ("a",), "val": ()})


def test_voc_has_boxes(tmp_path):
    root = build_voc(tmp_path / "VOC2012")
    (root / "Annotations/2008_000008.xml").write_text(xml(("horse", 53, 87, 471, 420), ("person!", 158, 44, 289, 167), width=500, height=442))
    data = open_voc(root)
    assert data.has_boxes(data.lists["all"])
    with pytest.raises(DataError, match="is for an image that is 442 high and 500 wide, but its image is 24 high"):
        data.boxes("2008_000008")
    (root / "Annotations/2008_000008.xml").write_text(xml(("horse", 5, 8, 36, 24), ("person!", 1, 4, 28, 16), width=36, height=24))
    assert data.boxes("2008_000008")[0].tolist() == [[4, 7, 35, 23], [0, 3, 27, 15]] and data.boxes("2008_000008")[1].tolist() == [12, 14]
    assert len(open_voc(root, difficult=False).box_lists["2008_000008"]) == 1


def test_coco_has_the_boxes_of_its_objects(tmp_path):
    """Without crowds, and without boxes of no extent; an annotation without a box is an error when boxes are read."""
    root = build_coco(tmp_path / "coco", train={9: TRAIN[9], 25: TRAIN[25], 30: []})
    prepare_coco(root)
    data = open_coco(root)
    assert data.has_boxes(data.lists["all"]) and data.box_lists[train_id(30)] == ()
    with pytest.raises(DataError, match=f"instances_train2014.json, image {train_id(9)}, has a box from x=nan"):
        data.boxes(train_id(9))

    def add(content):
        for annotation, bbox in zip(content["annotations"], ([3, 2, 17, 18], [8, 5, 0, 17], [12, 7, 3.5, 5], [1, 2, 28, 12], [0, 0, 30, 24])):
            annotation["bbox"] = bbox
    change(root, add)
    prepare_coco(root)
    data = open_coco(root)
    assert data.box_lists[train_id(9)] == ((0, 3, 2, 19, 19), (CLASS_INDEX[TV], 12, 7, 14.5, 11))
    assert data.box_lists[train_id(25)] == ((CLASS_INDEX[TOOTHBRUSH], 0, 0, 29, 23),)   # the other is a crowd
