"""A user's folder in the forms in which labelling tools and people write one."""

import base64
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.wsss.test_folder import build, write_image
from wsss.data import open_folder
from wsss.data.folder.found import Shape, region
from wsss.data.folder.masks import read_colours
from wsss.data.headers import pillow_limit, without_limit
from wsss.data.images import read_image, write_mask
from wsss.data.rle import runs_of
from wsss.errors import DataError

CLASSES = ("cat", "dog")
LABELS = {"a": (0,), "b": (0, 1), "c": ()}


def folder(root, names=("a", "b", "c"), classes=CLASSES, suffix="jpg", below="images"):
    """Images of 20 x 30 pixels without any label."""
    for name in names:
        path = root / below / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path)
    if classes:
        (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return root


@pytest.mark.parametrize("text", [
    "name,classes\na,cat\nb,cat\nb,dog\nc,\n",                      # a line an object
    "name,classes\nimages/a.jpg,cat\n./images/b.JPG,dog;cat\nC:\\data\\images\\c.jpg,\n",
    "filename,cat,dog\na.jpg,1,0\nb.jpg,1,1\nc.jpg,0,0\n",
    "image,dog,cat\na,,1\nb,true,1.0\nc,no,False\n",
    "name;classes\r\na;cat\r\nb;dog;cat\r\nc;\r\n",
    "name\tclasses\na\tcat\nb\t\"dog|cat\"\nc\t\n",
    "name,classes,,\na,cat,,\nb,cat dog,,\nc,,,\n,,,\n",
    "name,classes\na,1\nb,CAT;2\nc,\n",
    "a.jpg,cat\nb.jpg,cat,dog\nc.jpg,\n",                            # no header
    "label,width,name\ncat,30,a\ndog,30,b\ncat,30,b\n,30,c\n",
], ids=["long", "paths", "one-hot", "flags", "semicolons", "tabs", "spreadsheet", "numbers", "bare", "columns"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables(tmp_path, text, encoding):
    (folder(tmp_path) / "labels.csv").write_bytes(text.encode(encoding))
    assert open_folder(tmp_path).labels == LABELS


def test_a_table_without_a_class_list_names_the_classes(tmp_path, caplog):
    folder(tmp_path, classes=())
    (tmp_path / "mine.csv").write_text("name,zebra,ape\na,1,0\nb,0,1\nc,0,0\n")
    data = open_folder(tmp_path)
    assert data.classes == ("zebra", "ape") and data.read_from["labels"] == "mine.csv (a column of 0 and 1 per class)"
    assert data.read_from["images"] == "3 (3 images/*.jpg)"
    (tmp_path / "mine.csv").write_text("name,classes\na,zebra\nb,ape;zebra\nc,\n")
    assert open_folder(tmp_path).classes == ("ape", "zebra")


def test_what_was_taken_for_a_class_is_said(tmp_path, caplog):
    (folder(tmp_path) / "labels.csv").write_text("name,classes\na,1\nb,CAT\nc,cat|dog\n")
    open_folder(tmp_path)
    for note in ("numbers are read as the lines of the class list", "'CAT' and others like it are read as 'cat'",
                 "'cat|dog' and others like it are read as classes separated by '|'"):
        assert note in caplog.text


def test_a_folder_per_class_and_lists_of_folders(tmp_path):
    folder(tmp_path / "one", ("cat/a", "cat/b", "dog/c", "none/d"), classes=())
    data = open_folder(tmp_path / "one")
    assert (data.classes, data.labels) == (CLASSES, {"a": (0,), "b": (0,), "c": (1,), "d": ()})
    folder(tmp_path / "two", ("train/cat/1", "train/dog/1", "val/cat/1"), classes=(), below="")
    data = open_folder(tmp_path / "two")
    assert data.lists["train"] == ("train__cat__1", "train__dog__1") and data.lists["val"] == ("val__cat__1",)
    assert data.labels["train__dog__1"] == (1,) and data.image("val__cat__1").shape == (20, 30, 3)
    write_image(tmp_path / "one/images/e.jpg")
    with pytest.raises(DataError, match="images/e.jpg is in no class folder; move it into one, or write labels.csv"):
        open_folder(tmp_path / "one")


def test_names_in_sub_folders(tmp_path):
    folder(tmp_path, ("x/a", "y/b", "c"))
    (tmp_path / "labels.csv").write_text("name,classes\nx/a.jpg,cat\nb,cat;dog\nc.jpg,\n")
    assert open_folder(tmp_path).labels == LABELS
    (tmp_path / "images/y/a.jpg").write_bytes((tmp_path / "images/x/a.jpg").read_bytes())
    with pytest.raises(DataError, match=r"line 2: 'a' is the name of several images; write its folder too, as in images/c.jpg"):
        (tmp_path / "labels.csv").write_text("name,classes\na,cat\nx/a,cat\ny/a,\nb,cat;dog\nc.jpg,\n")
        open_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("name,classes\nx/a,cat\ny/a,\nb,cat;dog\nc.jpg,\n")
    assert open_folder(tmp_path).labels == {"x__a": (0,), "y__a": (), "y__b": (0, 1), "c": ()}


SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]   # 10 x 10 pixels from row 3 and column 2


def coco(**change):
    """A COCO file with ids from 0: a cat drawn, a cat and a dog on b (run lengths), c without object, and an image without a file."""
    mask = np.zeros((20, 30), bool)
    mask[:, 20:] = True
    images = [{"id": i, "file_name": f"default/{name}.jpg", "height": 20, "width": 30} for i, name in enumerate("abcz")]
    return {"images": images, "categories": [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}], "annotations": [
        {"id": 1, "image_id": 0, "category_id": 0, "segmentation": [SQUARE], "bbox": [2, 3, 10, 10], "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 0, "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 7, "segmentation": {"size": [20, 30], "counts": [400, 200]}, "iscrowd": 0}], **change}


def test_coco_with_classes_and_ids_of_ones_own(tmp_path, caplog):
    folder(tmp_path, ("a", "b", "c", "extra"), classes=(), below="images/default")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(coco()))
    data = open_folder(tmp_path)
    assert data.classes == CLASSES and data.labels == LABELS and data.lists["all"] == ("a", "b", "c")
    assert "1 images of the COCO json have no file and are left out, for example default/z.jpg" in caplog.text
    assert "1 images are in no annotation and are left out, for example images/default/extra.jpg" in caplog.text
    expected = np.zeros((20, 30), np.uint8)
    expected[3:13, 2:12] = 1
    assert np.array_equal(data.mask("a"), expected) and not data.mask("c").any()
    expected[:, 20:] = 2
    assert np.array_equal(data.mask("b"), expected)
    before = data.digest_of_masks(["a", "b"])
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(coco(categories=[{"id": 0, "name": "dog"}, {"id": 7, "name": "cat"}])))
    assert open_folder(tmp_path).digest_of_masks(["a", "b"]) == before   # the first category is value 1, whatever its name
    content = coco()
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "annotations/instances_default.json").write_text(json.dumps(content))
    assert open_folder(tmp_path).labels == LABELS and not open_folder(tmp_path).mask_files   # a box alone gives a label
    assert "1 images have a box without a shape, for example a, so there are no masks" in caplog.text


def test_coco_files_per_list_and_their_errors(tmp_path):
    folder(tmp_path, classes=())
    for name, part in (("train", slice(0, 1)), ("val", slice(1, 3))):
        content = coco()
        content["images"] = content["images"][part]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert open_folder(tmp_path).lists == {"train": ("a",), "val": ("b", "c"), "all": ("a", "b", "c")}
    (tmp_path / "val.json").write_text(json.dumps(coco(annotations=[{"id": 1}])))
    with pytest.raises(DataError, match="val.json has an incomplete image, category or annotation .KeyError: 'image_id'."):
        open_folder(tmp_path)
    (tmp_path / "val.json").write_text("{")
    with pytest.raises(DataError, match="val.json is not a complete JSON file"):
        open_folder(tmp_path)


def test_runs_and_polygons_are_drawn_as_cocos_tools_draw_them():
    tools = pytest.importorskip("pycocotools.mask")
    draws = np.random.default_rng(0)
    for _ in range(20):
        mask = draws.random((17, 23)) > draws.random()
        coded = tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(region(Shape(1, runs=tuple(runs_of(coded, (17, 23)))), (17, 23)), mask)
        corners = draws.random((5, 2)) * [230, 170]
        theirs = tools.decode(tools.merge(tools.frPyObjects([corners.reshape(-1).tolist()], 170, 230))).astype(bool)
        ours = region(Shape(1, (tuple(map(tuple, corners)),)), (170, 230))
        assert (ours != theirs).mean() < 0.03 and abs(ours.sum() - theirs.sum()) < 0.05 * max(theirs.sum(), 1000)
    with pytest.raises(DataError, match="the counts of a mask fill 5 pixels; expected 6"):
        runs_of([2, 3], (2, 3))


def test_labelme(tmp_path):
    folder(tmp_path, classes=())
    drawn = io.BytesIO()
    Image.new("1", (4, 5), 1).save(drawn, format="PNG")
    shapes = {"a": [{"label": "cat", "points": np.reshape(SQUARE, (-1, 2)).tolist(), "shape_type": "polygon"}],
              "b": [{"label": "cat", "points": [[0, 0], [9, 0], [9, 9]]},
                    {"label": "dog", "points": [[20, 10], [23, 14]], "shape_type": "mask", "mask": base64.b64encode(drawn.getvalue()).decode()}],
              "c": []}
    for name, items in shapes.items():
        (tmp_path / f"images/{name}.json").write_text(json.dumps(
            {"imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 30, "flags": {}, "shapes": items}))
    data = open_folder(tmp_path)
    assert data.classes == CLASSES and data.labels == LABELS and data.mask("a").sum() == 100
    assert (data.mask("b") == 2).sum() == 20 and (data.mask("b")[10:15, 20:24] == 2).all()
    content = json.loads((tmp_path / "images/c.json").read_text()) | {"flags": {"dog": True, "cat": False}}
    (tmp_path / "images/c.json").write_text(json.dumps(content))
    assert open_folder(tmp_path).labels["c"] == (1,)   # a flag is a label of the image
    (tmp_path / "images/c.json").write_text(json.dumps(content | {"shapes": [{"points": []}]}))
    with pytest.raises(DataError, match="c.json has an incomplete shape .KeyError: 'label'."):
        open_folder(tmp_path)


def test_xml_of_vocs_form(tmp_path, caplog):
    folder(tmp_path, classes=(), below="JPEGImages")
    (tmp_path / "Annotations").mkdir()
    for name, objects in {"a": ["cat"], "b": ["cat", "dog", "cat"], "c": [], "lost": ["cow"]}.items():
        inside = "".join(f"<object><name>{text}</name><difficult>1</difficult></object>" for text in objects)
        (tmp_path / f"Annotations/{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename><size/>{inside}</annotation>")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b\n")
    data = open_folder(tmp_path)
    assert data.classes == CLASSES and data.labels == LABELS and data.lists["train"] == ("a", "c")
    assert "1 XML files have no image and are left out, for example lost.xml" in caplog.text
    (tmp_path / "labels.txt").write_text("dog\n")
    with pytest.raises(DataError, match="class 'cat' is not in the class list: add it"):
        open_folder(tmp_path)
    (tmp_path / "Annotations/a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="cannot read the annotation .*a.xml .*; restore it, or remove it"):
        open_folder(tmp_path)


@pytest.mark.parametrize("names", ["classes.txt", "obj.names", "data.yaml"])
def test_yolo(tmp_path, names):
    folder(tmp_path, classes=())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.1 0.15 0.4 0.15 0.4 0.65 0.1 0.65\n")
    (tmp_path / "labels/b.txt").write_text("1 0 0 0.5 0 0.5 1\n0 0.5 0.5 1 0.5 1 1\n")
    if names != "data.yaml":
        with pytest.raises(DataError, match="has YOLO labels, .* but no class list; expected classes.txt"):
            open_folder(tmp_path)
    (tmp_path / names).write_text("names: {0: cat, 1: dog}" if names == "data.yaml" else "cat\ndog\n")
    data = open_folder(tmp_path)
    assert data.labels == LABELS
    expected = np.zeros((20, 30), np.uint8)
    expected[3:13, 3:12] = 1
    assert np.array_equal(data.mask("a"), expected) and not data.mask("c").any()
    (tmp_path / "labels/b.txt").write_text("1 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1\n")
    data = open_folder(tmp_path)
    assert data.labels == LABELS and not data.mask_files
    (tmp_path / "labels/b.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match="b.txt, line 1, is '2 0.5 0.5 0.1 0.1'; expected a class from 0 to 1, then x"):
        open_folder(tmp_path)


def test_masks_alone(tmp_path):
    folder(tmp_path, classes=())
    (tmp_path / "masks").mkdir()
    for name, values in {"a": [1], "b": [1, 2, 255], "c": [0]}.items():
        write_mask(tmp_path / f"masks/{name}.png", np.resize(np.array(values, np.uint8), (20, 30)))
    marker = tmp_path / "cache/marker"
    for _ in range(2):
        data = open_folder(tmp_path, check=marker)
        assert data.classes == ("class_1", "class_2") and data.labels == LABELS and data.read_from["labels"] == "the masks"
    write_mask(tmp_path / "masks/c.png", np.full((20, 30), 2, np.uint8))
    assert open_folder(tmp_path, check=marker).labels["c"] == (1,)   # not what was kept
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_folder(tmp_path).classes == CLASSES
    (tmp_path / "masks/c.png").unlink()
    with pytest.raises(DataError, match="images/c.jpg has no mask, so its classes are unknown"):
        open_folder(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for name in "abc":
        write_mask(tmp_path / f"masks/{name}.png", np.resize(np.array([0, 255], np.uint8), (20, 30)))
    with pytest.raises(DataError, match="hold no class number; expected 1 to 254 on some: is the foreground 255"):
        open_folder(tmp_path)


NUMBERS = np.resize(np.array([0, 1, 1, 2, 0], np.uint8), (20, 30))


def masks_with(root, image, suffix="png"):
    root = build(root, {"a": "cat;dog", "b": "", "c": "cat;dog"}, classes=CLASSES)
    (root / "masks").mkdir()
    for name in "ac":
        image.save(root / f"masks/{name}.{suffix}")
    return root


@pytest.mark.parametrize("form", ["8 bit", "16 bit", "tiff", "bmp", "palette", "four bit", "grey as colour", "32 bit"])
def test_masks_of_numbers_in_all_forms(tmp_path, form):
    image, options = Image.fromarray(NUMBERS), {}
    if form == "16 bit":
        image = Image.fromarray(NUMBERS.astype(np.uint16))
    elif form == "32 bit":
        image = Image.fromarray(NUMBERS.astype(np.int32))
    elif form in ("palette", "four bit"):
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    elif form == "grey as colour":
        image = image.convert("RGB")
    data = open_folder(masks_with(tmp_path, image, {"tiff": "tif", "bmp": "bmp", "32 bit": "tif"}.get(form, "png")), **options)
    assert np.array_equal(data.mask("a"), NUMBERS)
    assert not data.mask("b").any() and data.has_masks(["a", "b", "c"])   # an image without a class needs no mask
    assert data.read_from["masks"] == "2 in masks/, 1 images without class need none"
    assert data.mask_path("b") is None and data.digest_of_masks(["b"]) != data.digest_of_masks(["a"])


def test_one_bit_is_0_and_1(tmp_path):
    assert set(np.unique(open_folder(masks_with(tmp_path, Image.fromarray(NUMBERS > 0))).mask("a"))) == {0, 1}


COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [224, 224, 192]], np.uint8)


def test_colours_and_numbers_are_looked_up_in_a_table(tmp_path):
    root = masks_with(tmp_path / "set", Image.fromarray(COLOURS[NUMBERS]))
    with pytest.raises(DataError, match=r"hold colours, for example masks/a.png; expected class numbers(.|\n)*background,0,0,0"):
        open_folder(root)
    table = tmp_path / "colours.txt"
    for text in ("background,0,0,0\ncat,128,0,0\ndog,0,128,0\n", "cat #800000\ndog #008000\nbackground #000000",
                 "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"):
        table.write_text(text)
        assert np.array_equal(open_folder(root, colours=table).mask("a"), NUMBERS)
    (root / "labelmap.txt").write_text(table.read_text())   # CVAT's is taken without being named
    assert np.array_equal(open_folder(root).mask("a"), NUMBERS)
    before = open_folder(root).digest_of_masks(["a"])
    (root / "labelmap.txt").write_text("background,0,0,0\ncat,0,128,0\nignore,128,0,0\n")
    data = open_folder(root)
    assert np.array_equal(data.mask("a"), np.array([0, 255, 1])[NUMBERS]) and data.digest_of_masks(["a"]) != before
    (root / "labelmap.txt").write_text("background,0,0,0\ncat,0,128,0\n")
    with pytest.raises(DataError, match="a.png holds the colour 128,0,0, not in the colour table; .* add a line"):
        open_folder(root).mask("a")
    (root / "labelmap.txt").unlink()
    for name in "ac":
        Image.fromarray((NUMBERS * 100).astype(np.uint8)).save(root / f"masks/{name}.png")
    table.write_text("background 0\ncat 100\ndog 200")
    assert np.array_equal(open_folder(root, colours=table).mask("a"), NUMBERS)


@pytest.mark.parametrize("text, message", [
    ("cat\n", "line 1 is 'cat'; expected NAME,RED,GREEN,BLUE or NAME,NUMBER"),
    ("cat,1\ndog,1,2,3\n", "some lines have a number and some a colour"),
    ("cat,0,0,256\n", "line 1: '0,0,256' is too large"),
    ("\n", "there is no line"),
    ("cta,1\n", "'cta' is no class; did you mean 'cat'"),
])
def test_tables_of_colours_that_are_refused(tmp_path, text, message):
    table = tmp_path / "colours.txt"
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        open_folder(masks_with(tmp_path / "set", Image.fromarray(NUMBERS)), colours=table)


def test_masks_that_are_refused(tmp_path):
    root = masks_with(tmp_path / "jpeg", Image.fromarray(NUMBERS), "png")
    Image.fromarray(NUMBERS).save(root / "masks/a.png", format="JPEG")
    with pytest.raises(DataError, match="a.png is a JPEG file, whose compression changes class numbers"):
        open_folder(root, check=False).mask("a")
    Image.fromarray(NUMBERS.astype(np.uint16) * 300).save(root / "masks/a.png")
    with pytest.raises(DataError, match="holds values up to 600; .* numbers of objects"):
        open_folder(root).mask("a")
    Image.fromarray(NUMBERS.astype(np.float32) * 1e6).save(root / "masks/a.tif")
    with pytest.raises(DataError, match="masks/a.png and masks/a.tif share the id 'a'|a.png and a.tif share the id"):
        open_folder(root)
    os.remove(root / "masks/a.png")
    with pytest.raises(DataError, match="a.tif holds values from 0.0 to 2000000.0; expected whole numbers from 0 to 65535"):
        open_folder(root).mask("a")


def test_object_numbers_of_16_bits(tmp_path):
    root = masks_with(tmp_path, Image.fromarray(np.repeat(np.uint8([[0, 1, 2]]), 20, 0).repeat(10, 1)))
    (root / "instances").mkdir()
    numbers = np.zeros((20, 30), np.uint16)
    numbers[:, 10:15], numbers[:, 15:20], numbers[:, 20:25], numbers[:, 25:] = 255, 300, 4000, 65535
    Image.fromarray(numbers).save(root / "instances/a.png")
    masks, classes = open_folder(root).instances("a")
    assert classes.tolist() == [0, 0, 1] and [int(mask.sum()) for mask in masks] == [100, 100, 100]
    Image.fromarray(COLOURS[NUMBERS]).save(root / "instances/a.png")
    with pytest.raises(DataError, match="a.png are in colour; expected object numbers"):
        open_folder(root).instances("a")


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp", "jpeg"])
def test_images_of_all_formats(tmp_path, suffix):
    (folder(tmp_path, suffix=suffix) / "labels.csv").write_text("name,classes\na,cat\nb,cat;dog\nc,\n")
    assert open_folder(tmp_path).image("a").shape == (20, 30, 3)


@pytest.mark.parametrize("suffix, dtype", [("png", np.uint16), ("tif", np.uint16), ("tif", np.float32)])
def test_a_range_is_stated_for_images_of_more_bits(tmp_path, suffix, dtype):
    (folder(tmp_path) / "labels.csv").write_text("name,classes\na,cat\nb,cat;dog\nc,\n")
    (tmp_path / "images/a.jpg").unlink()
    Image.fromarray(np.resize(np.array([0, 100, 200, 300, 1000], dtype), (20, 30))).save(tmp_path / f"images/a.{suffix}")
    with pytest.raises(DataError, match=r"has (16|32) bits per channel; expected 8, or the range .* set data.range=\[LOW,HIGH\]"):
        open_folder(tmp_path)
    image = open_folder(tmp_path, levels=(100, 300)).image("a")
    assert image[0, :5, 0].tolist() == [0, 0, 128, 255, 255] and (image == image[..., :1]).all()


def test_a_limit_of_pixels_is_explicit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)   # 500 is where Pillow stops
    path = tmp_path / "a.png"
    write_image(path)   # 600 pixels
    with pytest.raises(DataError, match="a.png has 600 pixels; expected at most 500, .* set data.max_pixels=600"):
        read_image(path)
    assert read_image(path, max_pixels=600).shape == (20, 30, 3) and Image.MAX_IMAGE_PIXELS == 250
    (folder(tmp_path / "set") / "labels.csv").write_text("name,classes\na,cat\nb,cat;dog\nc,\n")
    with pytest.raises(DataError, match="3 problems(.|\n)*set data.max_pixels=600"):
        open_folder(tmp_path / "set")
    assert open_folder(tmp_path / "set", max_pixels=600).image("a").shape == (20, 30, 3)
    (tmp_path / "set/masks").mkdir()
    for place in ("masks", "instances"):   # they have the size of the images
        (tmp_path / "set" / place).mkdir(exist_ok=True)
        for name in "abc":
            write_mask(tmp_path / f"set/{place}/{name}.png", np.eye(20, 30, dtype=np.uint8))
    data = open_folder(tmp_path / "set", max_pixels=600)
    assert data.mask("a").sum() == 20 and data.instances("a")[0].shape == (1, 20, 30)


def test_the_limit_is_seen_by_all_threads(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    with ThreadPoolExecutor(1) as pool:
        with without_limit():
            limit = pool.submit(pillow_limit)
            time.sleep(0.05)
            assert not limit.done()
        assert limit.result(10) == 500


def test_shapes_of_another_size_are_told_before_any_work(tmp_path):
    folder(tmp_path)
    for name in "abc":
        shapes = [{"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}]
        height, width = (30, 20) if name == "b" else (20, 30)
        (tmp_path / f"images/{name}.json").write_text(json.dumps(
            {"imagePath": f"{name}.jpg", "imageHeight": height, "imageWidth": width, "flags": {}, "shapes": shapes}))
    with pytest.raises(DataError, match="images/b.json has shapes of images/b.jpg for 30 high and 20 wide, but it is 20 high and 30 wide as shown"):
        open_folder(tmp_path)
    (tmp_path / "images/b.json").write_text((tmp_path / "images/a.json").read_text().replace("a.jpg", "b.jpg"))
    assert open_folder(tmp_path).mask("b").any()


@pytest.mark.parametrize("name", ["void", "Ignore", "_background_"])
def test_reserved_names_are_no_classes(tmp_path, name):
    (folder(tmp_path, classes=(name, "cat", "dog")) / "labels.csv").write_text("name,classes\na,cat\nb,\nc,\n")
    with pytest.raises(DataError, match=f"line 1 is '{name}'; .* remove the line"):
        open_folder(tmp_path)


def cvat(a="", b="", c="", root=""):
    """CVAT's file of three images; the class list is not in alphabetical order."""
    labels = "".join(f"<label><name>{name}</name><color>#ff0000</color><attributes><attribute><name>old</name></attribute></attributes></label>"
                     for name in ("dog", "background", "cat", "void"))
    images = "".join(f'<image id="{number}" name="some/{name}.jpg" width="30" height="20">{inside}</image>'
                     for number, (name, inside) in enumerate({"a": a, "b": b, "c": c, "lost": ""}.items()))
    return f'<?xml version="1.0"?>\n<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{images}{root}</annotations>'


def test_xml_of_cvat(tmp_path, caplog):
    folder(tmp_path, classes=())
    square = "2.00,3.00;12.00,3.00;12.00,13.00;2.00,13.00"
    small = f'<polygon label="dog" occluded="0" points="4,5;6,5;6,7;4,7" z_order="%d"><attribute name="old">no</attribute></polygon><polygon label="cat" points="{square}" z_order="1"/>'
    rest = '<mask label="cat" rle="1, 2, 3" left="20" top="4" width="3" height="2" z_order="0"/><ellipse label="dog" cx="10" cy="10" rx="6" ry="3" rotation="90" z_order="0"/>'
    void = '<polygon label="void" points="0,0;30,0;30,2;0,2"/><polyline label="dog" points="0,0;3,3"/><polyline label="cat" points="0,0;3,3"/><box label="void" xtl="0" ytl="0" xbr="9" ybr="9"/>'
    (tmp_path / "annotations.xml").write_text(cvat(small % 2, rest, void))
    data = open_folder(tmp_path)
    assert data.classes == ("dog", "cat") and data.labels == {"a": (0, 1), "b": (0, 1), "c": ()}
    a, b, c = map(data.mask, "abc")
    assert (a == 1).sum() == 4 and (a == 2).sum() == 96 and (a[5:7, 4:6] == 1).all()
    assert np.argwhere(b == 2).tolist() == [[4, 21], [4, 22]]   # rows of the box, from background
    assert abs((b == 1).sum() - np.pi * 6 * 3) < 3 and (b[5:15, 9:11] == 1).all() and not (b[:, :6] == 1).any()
    assert (c[:2] == 255).all() and not c[2:].any()
    assert "1 images of CVAT's XML have no file and are left out, for example some/lost.jpg" in caplog.text
    assert "shapes without an area are left out: 2 of the kind polyline; draw polygons or masks instead" in caplog.text
    before = data.digest_of_masks(["a"])
    (tmp_path / "annotations.xml").write_text(cvat(small % 0, rest, void))   # below the other
    assert not (open_folder(tmp_path).mask("a") == 1).any() and open_folder(tmp_path).digest_of_masks(["a"]) != before
    (tmp_path / "annotations.xml").write_text(cvat('<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"/>', '<tag label="dog"/>'))
    data = open_folder(tmp_path)
    assert data.labels == {"a": (1,), "b": (0,), "c": ()} and not data.mask_files   # labels alone


@pytest.mark.parametrize(("inside", "message"), [
    ('<polygon label="cat" points="1,1;2"/>', "image 'some/a.jpg', has an incomplete shape .DataError: a polygon is .*; expected pairs"), ('<polygon points="1,1"/>', "KeyError: 'label'"),
    ('<polygon label="cat" points="1,1;2,2"/>', "a polygon has 2 corners"), ('<mask label="cat" rle="1, 2" left="0" top="0" width="3" height="3"/>', "fill 3 pixels; expected 9"),
    ('<mask label="cat" rle="9" left="28" top="0" width="3" height="3"/>', "its box of 3 x 3 pixels in the image"), ('<blob label="cat"/>', "it is a <blob>")])
def test_xml_of_cvat_that_is_refused(tmp_path, inside, message):
    folder(tmp_path, classes=())
    (tmp_path / "annotations.xml").write_text(cvat(inside))
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path)


def test_a_video_of_cvat_is_refused(tmp_path):
    folder(tmp_path, classes=())
    (tmp_path / "annotations.xml").write_text(cvat(root='<track id="0" label="cat"/>'))
    with pytest.raises(DataError, match="annotations.xml has tracks of a video; expected annotations of images"):
        open_folder(tmp_path)


def test_names_that_end_in_a_number_in_a_table_of_colours(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nclass 3:128,0,0::\n7:0,0,9::\nrow 1,2:1,2,3:part:act\n")
    assert read_colours(path).rows == (("background", (0, 0, 0)), ("class 3", (128, 0, 0)), ("7", (0, 0, 9)), ("row 1,2", (1, 2, 3)))
    path.write_text("background 0\nclass 3 128\nclass 4:9\n")
    assert read_colours(path).rows == (("background", 0), ("class 3", 128), ("class 4", 9))


@pytest.mark.parametrize("name", ["ignore", "Void"])
def test_shapes_that_are_not_scored(tmp_path, name):
    """In LabelMe's and COCO's files, as in masks: 255 where no shape of a class covers it."""
    folder(tmp_path, classes=CLASSES)
    for image_id in "abc":
        shapes = [{"label": "cat", "points": [[0, 0], [10, 0], [10, 10], [0, 10]]}, {"label": name, "points": [[5, 0], [15, 0], [15, 10], [5, 10]]}] * (image_id == "a")
        (tmp_path / f"images/{image_id}.json").write_text(json.dumps({"imagePath": f"{image_id}.jpg", "imageHeight": 20, "imageWidth": 30, "shapes": shapes}))
    expected = np.zeros((20, 30), np.uint8)
    expected[:10, 5:15], expected[:10, :10] = 255, 1
    assert np.array_equal(open_folder(tmp_path).mask("a"), expected) and open_folder(tmp_path).labels["a"] == (0,)
    for path in (tmp_path / "images").glob("*.json"):
        path.unlink()
    content = coco()
    content["categories"].append({"id": 99, "name": name})
    content["annotations"].append({"id": 99, "image_id": content["annotations"][0]["image_id"], "category_id": 99, "segmentation": [[0, 0, 30, 0, 30, 2, 0, 2]]})
    (tmp_path / "instances.json").write_text(json.dumps(content))
    data = open_folder(tmp_path)
    assert (data.mask("a")[:2] == 255).all() and (data.mask("a") == 1).sum() == 100 and data.labels == LABELS
