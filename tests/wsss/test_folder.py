"""A user's folder: what is accepted, and every refusal with the words that repair it."""

import logging
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from wsss.data import Dataset, check_id, folder, open_folder
from wsss.data.images import check_image, resize_image, write_mask
from wsss.errors import DataError


def write_image(path, height=20, width=30, mode="RGB"):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def build(root, rows, classes=("cat", "dog"), masks=(), **files):
    """A folder data set: `rows` id -> classes; `masks` ids; `files` such as train="a\\nb"."""
    (root / "images").mkdir(parents=True)
    for image_id in rows:
        write_image(root / "images" / f"{image_id}.jpg")
    lines = ["name,classes", *(f"{image_id},{names}" for image_id, names in rows.items())]
    (root / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    if masks:
        (root / "masks").mkdir()
    for image_id in masks:
        write_mask(root / "masks" / f"{image_id}.png", np.ones((20, 30), np.uint8))
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    return root


TWELVE = {f"img{i:02d}": ("cat", "dog", "cat;dog")[i % 3] for i in range(12)}


def test_a_complete_folder(tmp_path):
    rows = {"b": "dog;cat", "a": "cat", "c": ""}
    data = open_folder(build(tmp_path, rows, masks="abc", train="c\na\n", val="b\n"), name="mine")
    assert (data.name, data.classes, data.root) == ("mine", ("cat", "dog"), tmp_path)
    assert data.lists == {"train": ("c", "a"), "val": ("b",), "all": ("a", "b", "c")}
    assert data.labels == {"a": (0,), "b": (0, 1), "c": ()}
    assert data.label_vector("b").tolist() == [1, 1] and data.label_vector("c").dtype == np.float32
    assert data.image("a").shape == (20, 30, 3) and data.size("a") == (20, 30)
    assert np.array_equal(data.mask("a"), np.ones((20, 30)))
    assert data.has_masks(["a", "b"]) and not data.has_masks([]) and not data.has_masks(["a", "nobody"])
    assert data.mask_path("a") == tmp_path / "masks/a.png"
    assert "labels" not in repr(data)  # a million ids must not land in a log
    assert pickle.loads(pickle.dumps(data)).lists == data.lists


def test_unusual_images_are_accepted(tmp_path, caplog):
    rows = {"dog.1_a": "dog", "Zoë 猫": "cat", "grey": "", "tiny": "cat", "wide": "dog", "flat": "dog", "png": "cat"}
    root = build(tmp_path, rows, classes=("cat", "dog", "rare"))
    for name, size, mode in [("grey", (20, 30), "L"), ("tiny", (1, 1), "RGB"), ("wide", (40, 700), "RGB")]:
        write_image(root / "images" / f"{name}.jpg", *size, mode)
    Image.new("RGB", (30, 20), (7, 7, 7)).save(root / "images" / "flat.jpg")
    (root / "images" / "png.jpg").unlink()
    write_image(root / "images" / "png.PNG", mode="P")
    with caplog.at_level(logging.WARNING):
        data = open_folder(root)
    assert "no image of class rare" in caplog.text
    assert set(data.lists["all"]) == set(rows)
    shapes = {"grey": (20, 30, 3), "tiny": (1, 1, 3), "wide": (40, 700, 3), "flat": (20, 30, 3), "png": (20, 30, 3)}
    assert {name: data.image(name).shape for name in shapes} == shapes
    assert not data.has_masks(["grey"]) and data.mask_path("grey") is None


def test_text_files_and_unicode_names_of_other_systems(tmp_path):
    root = build(tmp_path, {"a": "cat", "b": "dog"})
    (root / "labels.csv").write_bytes(b"\xef\xbb\xbfname,classes\r\n\"a\", cat ;dog; \r\nb,dog\r\n\r\n")
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfcat  \r\ndog\r\n\r\n")
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfb \t\r\n\r\na\r\n")
    data = open_folder(root)
    assert data.labels == {"a": (0, 1), "b": (1,)} and data.classes == ("cat", "dog") and data.lists["train"] == ("b", "a")
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    root = build(tmp_path / "unicode", {decomposed: "cat"}, masks=[decomposed])
    (root / "labels.csv").write_text(f"name,classes\n{composed},cat\n", encoding="utf-8")
    data = open_folder(root)
    assert data.lists["all"] == (composed,) and data.image(composed).shape == (20, 30, 3) and data.has_masks([composed])


def test_other_files_are_left_alone(tmp_path, caplog):
    root = build(tmp_path, {"a": "cat"}, masks="ab", classes=("cat",))
    for name in ("images/.DS_Store", "images/._a.jpg", "images/notes.txt"):
        (root / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        assert open_folder(root).lists["all"] == ("a",)
    assert "ignored 1 entries that are not .jpg, .jpeg, .png, .webp, .tif, .tiff, .bmp, for example notes.txt" in caplog.text
    assert "1 masks have no image and are ignored, for example b" in caplog.text


def test_without_lists_some_are_held_out_by_their_names(tmp_path):
    data = open_folder(build(tmp_path / "a", TWELVE))
    assert len(data.lists["val"]) == 2 and len(data.lists["train"]) == 10
    assert sorted(data.lists["train"] + data.lists["val"]) == sorted(TWELVE)
    assert data.lists["val"] == ("img03", "img11")  # the same for ever, on every machine
    assert len(open_folder(tmp_path / "a", val_fraction=0.5).lists["val"]) == 6
    assert open_folder(tmp_path / "a", val_fraction=0.01).lists["val"] == ("img11",)
    assert open_folder(tmp_path / "a", val_fraction=0).lists["val"] == ()
    few = open_folder(build(tmp_path / "b", dict(list(TWELVE.items())[:4])))
    assert few.lists["val"] == () and len(few.lists["train"]) == 4


@pytest.mark.parametrize("given, other", [("train", "val"), ("val", "train")])
def test_one_list_leaves_the_rest_to_the_other(tmp_path, given, other):
    data = open_folder(build(tmp_path, TWELVE, **{given: "img03\nimg01\n"}))
    assert data.lists[given] == ("img03", "img01")
    assert data.lists[other] == tuple(i for i in TWELVE if i not in ("img01", "img03"))


@pytest.mark.parametrize("files, message", [
    ({"train": "a\nb", "val": "b"}, "1 ids are in both train.txt and val.txt .* for example 'b'"),
    ({"val": "a\nb\nc"}, "val.txt .* lists every image, so nothing is left for train"),
    ({"train": "a\nnobody"}, "train.txt: 1 problem\n  - 'nobody' has no image"),
    ({"train": "a.jpg\na"}, "'a' is listed twice"),
    ({"train": "z.jpg"}, "'z.jpg' has no image; add the image or remove the line"),
    ({"train": "a\nb\na"}, "'a' is listed twice"),
    ({"train": "../a"}, "id '../a' holds a path separator and would leave its folder"),
    ({"val": "\n\n"}, "val.txt is empty; expected one id per line"),
])
def test_lists_that_are_refused(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        open_folder(build(tmp_path, {"a": "cat", "b": "dog", "c": ""}, **files))


def test_list_ids(tmp_path):
    data = open_folder(build(tmp_path / "data", TWELVE, train="img03\nimg01", val="img02"))   # two lists may leave images out
    assert (data.lists["val"], len(data.lists["all"])) == (("img02",), 12)
    assert data.list_ids("train") == ("img03", "img01")
    (tmp_path / "mine.txt").write_bytes("\ufeffimg05\r\nimg04  \r\n".encode())
    assert data.list_ids(tmp_path / "mine.txt") == data.list_ids(str(tmp_path / "mine.txt")) == ("img05", "img04")
    with pytest.raises(DataError, match="no list 'trian' and .* no such file; expected one of train, val, all .* mean 'train'"):
        data.list_ids("trian")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(DataError, match="mine.txt is empty"):
        data.list_ids(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_text("\n".join(f"x{i}" for i in range(13)))
    with pytest.raises(DataError, match="13 problems\n  - 'x0' has no image(.|\n)*'x9' has no image; .*\n  - ... and 3 more$"):
        data.list_ids(tmp_path / "mine.txt")
    (tmp_path / "mine.txt").write_bytes(b"img\xff")
    with pytest.raises(DataError, match="mine.txt is not UTF-8 text .*save it as UTF-8"):
        data.list_ids(tmp_path / "mine.txt")
    assert open_folder(tmp_path / "data", val_fraction=0).list_ids("val") == ("img02",)
    with pytest.raises(DataError, match="list 'val' of data set folder is empty; name another: train, all"):
        open_folder(build(tmp_path / "one", {"a": "cat"})).list_ids("val")


def test_missing_parts_say_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; expected this layout:\n(.|\n)*labels.csv +first line: name"):
        open_folder(tmp_path / "nowhere")
    root = build(tmp_path / "a", {"a": "cat"})
    (root / "labels.csv").rename(root / "aside")
    with pytest.raises(DataError, match="labels.csv does not exist, and there are neither masks nor labels in another form; expected this"):
        open_folder(root)
    (root / "aside").rename(root / "labels.csv")
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no image in .*images; expected this layout"):
        open_folder(root)
    with pytest.raises(DataError, match="val_fraction is 1; expected 0 <= val_fraction < 1"):
        open_folder(root, val_fraction=1)


def test_files_and_folders_that_cannot_be_read_are_named(tmp_path):
    root = build(tmp_path, {"a": "cat"}, masks="a")
    data = open_folder(root)
    (root / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match=r"cannot read the mask .*a\.png: No such file"):
        data.digest_of_masks(["a"])
    (root / "labels.csv").unlink()
    (root / "labels.csv").mkdir()
    with pytest.raises(DataError, match="cannot read .*labels.csv: Is a directory; expected a text file"):
        open_folder(root)
    (root / "images").rename(root / "pictures")
    (root / "images").touch()
    with pytest.raises(DataError, match="cannot read the folder .*images: Not a directory; expected a folder of files .jpg, .jpeg, .png"):
        open_folder(root)


@pytest.mark.parametrize("text, message", [
    ("name,classes\na,cta\nb,\n", "line 2: unknown class 'cta'; did you mean 'cat'"),
    ("name,classes\na,xyz\nb,\n", "line 2: unknown class 'xyz'; expected one of the class list, separated by ';'"),
    ("name,classes\na,cat\nb,\nc,dog\n", "line 4: 'c' has no image"),
    ("name,classes\nz.jpg,cat\na,\nb,\n", "line 2: 'z.jpg' has no image; add the image or remove the line"),
    ("name,cat,dog\na,1,0\nb,0,2\n", "line 3: '2' in column 'dog'; expected 0 or 1 in the column of a class"),
    ("name,cat,cow\na,1,0\nb,0,0\n", "column 'cow' is no class of the class list(.|\n)*class 'dog' of the class list has no column"),
    ("name,classes\n../a,cat\na,\nb,\n", "line 2: id '../a' holds a path separator and would leave its folder"),
    ("name,classes\na,cat\n", "images/b.jpg has no row; write 'b,' if it shows no class"),
    ("name,classes\na,cat\nb\n", r"line 3, 'b', has 1 fields; expected NAME,cat;dog \(no class: NAME,\)"),
    ("title,text\na,cat\nb,\n", "starts with 'title,text'; expected the line 'name,classes', or 'name' and a column of 0 and 1"),
    ("", "starts with ''; expected the line 'name,classes'"),
    ('name,classes\na,cat\n"b,dog\n', "labels.csv, line [34]: unexpected end of data; is a quotation mark not closed"),
])
def test_labels_that_are_refused(tmp_path, text, message):
    root = build(tmp_path, {"a": "cat", "b": ""})
    (root / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_folder(root)


@pytest.mark.parametrize("text, message", [
    ("cat\ndog\ncat\n", "line 3 repeats 'cat' of line 1"),
    ("Background\ncat\n", "line 1 is 'Background'; background is mask value 0"),
    ("cat\n\ndog\n", "line 2 is empty; it would shift the mask values"),
    ("cat;dog\n", "holds ';'"),
    ("\n", "it is empty; expected a class name on each line"),
])
def test_classes_that_are_refused(tmp_path, text, message):
    root = build(tmp_path, {"a": ""})
    (root / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_folder(root)


def test_254_classes_are_accepted_and_two_images_of_one_name_refused(tmp_path):
    root = build(tmp_path, {"a": "c253"}, classes=[f"c{i}" for i in range(254)])
    assert open_folder(root).label_vector("a").nonzero()[0].tolist() == [253]
    write_image(root / "images" / "a.PNG")
    with pytest.raises(DataError, match="a.PNG and a.jpg share the id 'a'; rename one"):
        open_folder(root)


def test_damaged_files_are_refused_unless_unchecked(tmp_path):
    root = build(tmp_path, {"a": "cat", "b": "cat", "c": "dog"})
    write_image(root / "images" / "a.jpg", 200, 200)
    whole = (root / "images" / "a.jpg").read_bytes()
    (root / "images" / "a.jpg").write_bytes(whole[:len(whole) // 2])
    (root / "images" / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 problems\n.*a\.jpg is truncated or damaged(.|\n)*b\.jpg is damaged or not a JPEG"):
        open_folder(root)
    assert open_folder(root, check=False).lists["all"] == ("a", "b", "c")


def test_what_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    """Of an image that changed all are read: truncated, of the same size with its time set back, replaced, added, and damaged."""
    root, marker, read = build(tmp_path / "set", {"a": "cat", "b": "cat"}, masks="ab", train="a", val="b"), tmp_path / "cache/marker", []
    monkeypatch.setattr(folder, "check_image", lambda path, *limits: read.append(path.name) or check_image(path, *limits))

    def reads() -> int:
        read.clear()
        open_folder(root, check=marker)
        return len(read)
    image, mask = root / "images/a.jpg", root / "masks/b.png"
    assert [reads(), reads()] == [2, 0]
    content, times = image.read_bytes(), image.stat()
    image.write_bytes(content[:-20])
    for _ in range(2):   # what is refused is not remembered
        with pytest.raises(DataError, match=r"a\.jpg is truncated or damaged"):
            reads()
    image.write_bytes(content)
    assert [reads(), reads()] == [2, 0]
    time.sleep(0.02)   # the clock of the file system
    image.write_bytes(content)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [reads(), reads()] == [2, 0]
    write_mask(mask, np.zeros((30, 20), np.uint8))
    with pytest.raises(DataError, match="b.png is 30 high and 20 wide"):
        reads()
    write_mask(mask, np.zeros((20, 30), np.uint8))
    write_image(root / "images/c.jpg")
    (root / "labels.csv").open("a").write("c,cat\n")
    assert [reads(), reads()] == [3, 0]
    marker.unlink()
    marker.mkdir()   # it cannot be written
    assert [reads(), reads()] == [3, 3]


@pytest.mark.parametrize("masks, message", [
    (["b"], r"masks in .* are incomplete: train has 1 of 2, val has 0 of 1, for example c\.png is missing"),
    (["a", "b"], r"train has 2 of 2, val has 0 of 1, .* c\.png is missing; expected all of train and val, or all of val"),
])
def test_partial_masks_are_refused(tmp_path, masks, message):
    with pytest.raises(DataError, match=message):
        open_folder(build(tmp_path, {"a": "cat", "b": "dog", "c": "cat"}, masks=masks, val="c"))


def test_masks_of_val_alone_are_accepted(tmp_path):
    data = open_folder(build(tmp_path, {"a": "", "b": "", "c": ""}, masks="c", val="c"))
    assert data.has_masks(data.lists["val"]) and not data.has_masks(data.lists["train"])
    with pytest.raises(DataError, match="data set folder has no mask for id 'a'"):
        data.mask("a")


def test_a_mask_fits_the_image_as_shown_or_is_refused(tmp_path):
    root = build(tmp_path, {"a": "cat"}, masks="a")
    write_mask(root / "masks" / "a.png", np.zeros((30, 20), np.uint8))
    with pytest.raises(DataError, match=r"masks/a.png is 30 high and 20 wide but images/a.jpg is 20 high and 30 wide"):
        open_folder(root)
    with pytest.raises(DataError, match=r"mask .*a.png is 30 high and 20 wide but its image is 20 high and 30 wide"):
        open_folder(root, check=False).mask("a")
    write_mask(root / "masks" / "a.png", np.ones((20, 30), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 30)).save(root / "images" / "a.jpg", exif=exif)  # stored 20 wide and 30 high, shown 30 wide and 20 high
    data = open_folder(root)
    assert data.size("a") == data.mask("a").shape == data.image("a").shape[:2] == (20, 30)


def test_mask_values_are_checked(tmp_path):
    root = build(tmp_path, {"a": "cat"}, masks="a")
    write_mask(root / "masks" / "a.png", np.resize(np.array([0, 1, 2, 255], np.uint8), (20, 30)))
    assert set(np.unique(open_folder(root).mask("a"))) == {0, 1, 2, 255}
    write_mask(root / "masks" / "a.png", np.resize(np.array([0, 3, 254], np.uint8), (20, 30)))
    with pytest.raises(DataError, match=r"a.png holds the values \[3, 254\]; expected 0 \(background\), 1..2 \(class\) or 255"):
        open_folder(root).mask("a")


@pytest.mark.parametrize("image_id, message", [
    ("", "is empty"), ("../x", "path separator"), ("a/b", "path separator"), ("a\\b", "path separator"),
    ("..", "starts with a dot"), (".hidden", "starts with a dot"), (" a", "blank"), ("a\nb", "control character"),
    ("a\x00", "control character"), ("a\udcff", "undecodable byte"), ("x" * 201, "longer than 200 bytes"),
    ("é" * 101, "longer than 200 bytes"),
])
def test_unsafe_ids_are_refused(image_id, message):
    with pytest.raises(DataError, match=message):
        check_id(image_id)


def test_safe_ids_are_returned_in_normal_form_and_a_file_with_an_unsafe_name_refused(tmp_path):
    for image_id in ("dog.1_a", "2007_000032", "猫", "a b", "x..y", "x" * 200):
        assert check_id(image_id) == image_id
    assert check_id("e\u0301") == "\u00e9"
    root = build(tmp_path, {"a": "cat"})
    write_image(root / "images" / "b\n.jpg")
    with pytest.raises(DataError, match="control character .*rename it"):
        open_folder(root)


def test_the_working_frame(tmp_path):
    root = build(tmp_path, {"a": "cat", "tall": "dog"}, masks=["a", "tall"])
    write_image(root / "images" / "tall.jpg", 700, 3)
    write_mask(root / "masks" / "tall.png", np.zeros((700, 3), np.uint8))
    data = open_folder(root, max_side=25)
    assert data.size("a") == (20, 30) and data.working_size("a") == (17, 25) and data.mask("a").shape == (20, 30)
    assert np.array_equal(data.image("a"), resize_image(data.full_image("a"), (17, 25)))
    assert data.working_size("tall") == (25, 1) and data.image("tall").shape == (25, 1, 3)
    same = open_folder(root, max_side=30)
    assert same.working_size("a") == (20, 30) and np.array_equal(same.image("a"), same.full_image("a"))
    with pytest.raises(DataError, match="max_side is 0; expected at least 1"):
        open_folder(root, max_side=0)
    with pytest.raises(DataError, match="data set folder has no image with id 'nobody'"):
        data.image("nobody")


def test_digests_see_what_they_should(tmp_path):
    def digests():
        data = open_folder(tmp_path)
        return tuple(digest(data.lists["all"]) for digest in (data.digest_of_masks, data.digest_of_images, data.digest_of_labels))

    build(tmp_path, {"a": "cat", "b": "dog"}, masks="ab")
    before = digests()
    for path in (tmp_path / "images" / "a.jpg", tmp_path / "masks" / "a.png"):
        os.utime(path, (1, 1))
    assert digests() == before  # times are never compared
    write_mask(tmp_path / "masks" / "a.png", np.zeros((20, 30), np.uint8))
    assert [a == b for a, b in zip(digests(), before)] == [False, True, True]
    (tmp_path / "labels.csv").write_text("name,classes\na,dog\nb,dog\n")
    relabelled = digests()
    assert relabelled[1] == before[1] and relabelled[2] != before[2]
    content = (tmp_path / "images" / "a.jpg").read_bytes()
    (tmp_path / "images" / "a.jpg").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])  # the same size
    assert digests()[1] != relabelled[1]
    data = open_folder(tmp_path)
    assert data.digest_of_images(["a", "b"]) != data.digest_of_images(["b", "a"])
    assert data.digest_of_image("a") != data.digest_of_image("b")


def test_an_inconsistent_description_is_refused():
    good = dict(name="x", root=Path("."), classes=("cat",), lists={"train": ("a",), "val": (), "all": ("a",)}, labels={"a": (0,)},
                image_files={"a": "a.jpg"})
    assert Dataset(**good).image_path("a") == Path("a.jpg")
    with pytest.raises(DataError, match=r"no list \['val'\]; expected train, val and all"):
        Dataset(**good | {"lists": {"train": ("a",), "all": ("a",)}})
    with pytest.raises(DataError, match="1 ids of list train have no image or no label, for example 'b'"):
        Dataset(**good | {"lists": {"train": ("a", "b"), "val": (), "all": ("a",)}})
    with pytest.raises(DataError, match="0 classes; expected at least 1"):
        Dataset(**good | {"classes": ()})


def test_more_classes_than_a_mask_has_values_for(tmp_path):
    """Only masks are limited, to 254: image labels are not."""
    classes = [f"class{i}" for i in range(300)]
    data = open_folder(build(tmp_path / "none", {"a": "class299", "b": "class0"}, classes))
    assert len(data.classes) == 300 and data.labels["a"] == (299,) and data.label_vector("a").nonzero()[0].tolist() == [299]
    root = build(tmp_path / "masks", {"a": "class299", "b": "class0"}, classes, masks="ab")
    with pytest.raises(DataError, match="300 classes; expected at least 1, and with masks, which are 8-bit, at most 254"):
        open_folder(root)
