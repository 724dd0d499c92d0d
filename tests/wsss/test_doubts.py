"""What contradicts itself in a data set is told before any work, with the cause and the remedy."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.wsss.test_folder import build
from wsss.data import doubts as module
from wsss.data import open_folder
from wsss.data.doubts import about_labels, doubts_of, tell
from wsss.data.folder.masks import FileMasks
from wsss.data.folder_prepare import draw_samples, folder_findings
from wsss.data.images import read_image, write_mask
from wsss.errors import DataError

CLASSES = ("cat", "dog", "cow")
ROWS = {f"{name}{i}": name for name in CLASSES for i in range(4)} | {"none0": "", "none1": "", "both": "cat;dog"}


def with_masks(root, value_of, rows=ROWS, classes=CLASSES):
    """A folder whose masks hold 0 and `value_of(class number)` of each labelled class."""
    root = build(root, rows, classes=classes, masks=rows)
    for number, (image_id, names) in enumerate(rows.items()):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), np.uint8)   # else all are copies
        Image.fromarray(pixels).save(root / f"images/{image_id}.jpg")
        values = [0, *(value_of(classes.index(name) + 1) for name in names.split(";") if name)]
        write_mask(root / f"masks/{image_id}.png", np.resize(np.array(values, np.uint8), (20, 30)))
    return open_folder(root)


def told(dataset):
    found = doubts_of(dataset, True)
    return found.failed, found.problems


def test_masks_that_agree(tmp_path):
    data = with_masks(tmp_path, lambda value: value)
    assert told(data) == ([], [])
    tell(data, True, pixels=True)
    write_mask(tmp_path / "masks/cat0.png", np.zeros((20, 30), np.uint8))   # one of 15: an object that is not drawn
    assert told(data) == ([], []) and doubts_of(data, True).contradicting == ["cat0"]


@pytest.mark.parametrize("value_of, message", [
    (lambda value: value * 10, "hold the values 10, 20, 30; expected 1 to 3 .*By the labels, write a file .*background,0\n    cat,10\n    dog,20"),
    (lambda value: value + 1, "hold the values 4; .*cat,2\n    dog,3\n    cow,4"),
    (lambda value: 77, "hold the values 77; .*Complete the class list, or name the numbers in a table"),
    (lambda value: 255, "no mask holds class 'cat' though 5 images are labelled with it; .*all their foreground is 255.*Save class numbers, 1 to 3"),
    (lambda value: 0, "no mask holds class 'cat' .*: all masks are background .0.. Draw the classes, or remove the masks"),
], ids=["times ten", "shifted", "other", "ignored", "empty"])
def test_masks_that_cannot_be_those_of_the_labels(tmp_path, value_of, message):
    data = with_masks(tmp_path, value_of)
    assert not told(data)[1]
    with pytest.raises(DataError, match=f"(?s)masks of .*1 problem.*{message}"):
        tell(data, True, pixels=True)
    tell(data, True, pixels=False)


def test_foreground_of_255_alone_is_read_by_the_table_that_is_told(tmp_path):
    rows = {"a": "cat", "b": "cat", "c": ""}
    [error] = told(with_masks(tmp_path / "set", lambda value: 255, rows, ("cat",)))[0]
    assert error.startswith("no mask holds class 'cat' though 2 images are labelled with it, and all their foreground is 255")
    table = tmp_path / "colours.txt"
    table.write_text("\n".join(line.strip() for line in error.splitlines()[1:]))
    data = open_folder(tmp_path / "set", colours=table)
    assert told(data) == ([], []) and set(np.unique(data.mask("a"))) == {0, 1}


@pytest.mark.parametrize("value_of, message", [
    (lambda value: 4 - value, "do not have the classes in the order cat, dog, cow. By the labels, 1 is cow, 2 is dog, 3 is cat. Write "
                              "classes.txt with a class per line in the order cow, dog, cat"),
    (lambda value: value - 1, "are shifted by one: 'cat' is 0, as background is"),
    (lambda value: 1, "the masks of 9 of 15 images do not hold the classes of their labels, for example both: labelled cat, dog, its mask has cat"),
], ids=["order", "shifted", "one"])
def test_masks_that_do_not_fit_the_labels(tmp_path, value_of, message):
    errors, warnings = told(with_masks(tmp_path, value_of))
    assert not errors and message in warnings[0]


def test_a_class_that_no_mask_has(tmp_path):
    warnings = told(with_masks(tmp_path, lambda value: 2 if value == 3 else value))[1]
    assert "no mask holds class 'cow' though 4 images are labelled with it, so it has no scores" in warnings[-1]


@pytest.mark.parametrize("rows, lists, messages", [
    ({"a": "cat", "b": "cat;dog", "c": "cat", "d": "dog"}, {"val": "d"},
     ["class 'cat' is on each of the 3 training images, so no map can tell it from its surroundings: add images without it"]),
    ({"a": "cat", "b": "", "c": "dog"}, {"val": "c"}, ["class 'dog' has no training image, but 1 of val: it cannot be learned"]),
    ({"a": "cat;dog", "b": "cat;dog", "c": "cow", "d": "dog"}, {"val": "d"},
     ["classes 'cat' and 'dog' are on the same 2 training images, so they cannot be told apart"]),
    ({"a": "cat", "b": "dog", "c": ""}, {"val": "c"}, ["none of the 1 images of val has a class, so nothing can be chosen on them"]),
    ({"a": "cat", "b": "dog", "c": "cat"}, {"val": "c"}, []),
])
def test_labels_that_nothing_can_be_learned_from(tmp_path, rows, lists, messages):
    found = about_labels(open_folder(build(tmp_path, rows, classes=CLASSES, **lists)))
    assert len(found) == len(messages) and all(text.startswith(message) for text, message in zip(found, messages))


def test_masks_are_read_once(tmp_path, monkeypatch, caplog):
    data, reads = with_masks(tmp_path / "set", lambda value: 4 - value), []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda dataset: reads.append(1) or read(dataset))
    marker = tmp_path / "cache/marker"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tell(data, marker, pixels=True)
    assert len(reads) == 1 and caplog.text.count("do not have the classes in the order") == 2   # told at each call
    write_mask(tmp_path / "set/masks/cat0.png", np.ones((20, 30), np.uint8))
    tell(data, marker, pixels=True)
    assert len(reads) == 2


def test_the_report_on_a_folder(tmp_path):
    data = with_masks(tmp_path / "set", lambda value: 4 - value)
    rows = {finding.what: finding for finding in folder_findings(data, True)}
    assert rows["labels"].note == "labels.csv (classes of each name)" and rows["images"].found == 15
    assert rows["images of class cat (value 1)"].found == 5 and rows["images without a class"].found == 2
    assert rows["masks that differ from the label"].found == 9 and not rows["masks that differ from the label"].ok
    assert rows["doubts about labels and masks"].found == 1
    picture = read_image(draw_samples(data, tmp_path / "samples.png"))
    assert picture.shape[1] == 2 * 320 + 6 and 4 * 200 < len(picture) < 4 * 300
    assert not np.array_equal(picture[20:200, :320], picture[20:200, 326:])   # the mask is drawn on the image beside it


def test_masks_are_read_once_also_where_they_give_the_labels(tmp_path, monkeypatch):
    root = build(tmp_path / "set", {"a": "cat", "b": "dog"}, classes=("cat", "dog"), masks=("a", "b"))
    (root / "labels.csv").unlink()
    for value, name in enumerate("ab", start=1):
        write_mask(root / f"masks/{name}.png", np.full((20, 30), value, np.uint8))
    read, marker, opened = FileMasks.read, tmp_path / "cache/marker", []
    monkeypatch.setattr(FileMasks, "read", lambda self, image_id: opened.append(image_id) or read(self, image_id))
    for _ in range(2):
        tell(open_folder(root, check=marker), marker, pixels=True)
    assert sorted(opened) == ["a", "b"]
    write_mask(root / "masks/a.png", np.full((20, 30), 2, np.uint8))
    assert open_folder(root, check=marker).labels["a"] == (1,)


def test_drawn_masks_follow_the_class_list(tmp_path):
    root = build(tmp_path / "set", {f"{name}{i}": name for name in ("cat", "dog") for i in range(2)}, classes=("cat", "dog"))
    (root / "labels.csv").unlink()
    for name in ("cat0", "cat1", "dog0", "dog1"):
        shape = {"label": name[:3], "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
        (root / f"images/{name}.json").write_text(json.dumps({"imageHeight": 20, "imageWidth": 30, "imagePath": f"{name}.png", "shapes": [shape]}))
    marker = tmp_path / "cache/marker"
    assert doubts_of(open_folder(root, check=marker), marker).contradicting == []
    (root / "classes.txt").write_text("dog\ncat\n")
    assert doubts_of(open_folder(root, check=marker), marker).contradicting == []
