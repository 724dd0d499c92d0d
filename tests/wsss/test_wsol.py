"""CUB, OpenImages30k and ILSVRC in the layout of the evaluation paper: ten drawn images of each, and every refusal."""

import logging

import numpy as np
import pytest
from PIL import ExifTags, Image

from wsss.data import open_wsol, prepare_wsol
from wsss.data.wsol import OFFICIAL, WSOL
from wsss.errors import DataError

SIZE = 20, 30   # height and width
# PATH -> class, as the official lists have them
TREES = {
    "cub": {"train": {f"{folder}/{folder[4:]}_{i:04d}_5{i}.jpg": k for k, folder in enumerate(("001.Black_footed_Albatross", "002.Laysan_Albatross"))
                      for i in range(2)},
            "val": {"001.Black_footed_Albatross/48483065801.jpg": 0, "002.Laysan_Albatross/3105.jpg": 1},
            "test": {f"00{1 + k}.{'Laysan' if k else 'Black_footed'}_Albatross/Test_{k}{i}.jpg": k for k in (0, 1) for i in (0, 1)}},
    "openimages": {"train": {f"train/{name}/{i}a9b.jpg": k for k, name in enumerate(("0bt_c3", "01226z")) for i in range(2)},
                   "val": {"val/0bt_c3/1cd9.jpg": 0, "val/01226z/32fd.jpg": 1},
                   "test": {f"test/{name}/{i}f58.jpg": k for k, name in enumerate(("0bt_c3", "01226z")) for i in range(2)}},
    "ilsvrc": {"train": {f"train/n0{k}/n0{k}_{i}.JPEG": k for k in (0, 299) for i in range(2)},
               "val": {"val2/0/58dc.jpeg": 0, "val2/299/0538.jpeg": 299},
               "test": {f"val/ILSVRC2012_val_0000000{i}.JPEG": (0, 299)[i % 2] for i in range(4)}},
}


def build(root, kind):
    """The drawn tree: boxes (4, 2)-(25, 15) and, of the first image of val, (0, 0)-(30, 20), which ends at the width and height."""
    for split, paths in TREES[kind].items():
        metadata = root / "metadata" / WSOL[kind] / split
        metadata.mkdir(parents=True)
        for i, path in enumerate(paths):
            file = root / "dataset" / WSOL[kind] / path
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, format="JPEG")
        lines = {"image_ids": list(paths), "class_labels": [f"{path},{label}" for path, label in paths.items()]}
        if kind != "openimages":
            lines["image_sizes"] = [f"{path},30,20" for path in paths]
            lines["localization"] = [f"{path},4,2,25,15" for path in paths]
        if split == "val" and kind != "openimages":
            lines["localization"].append(f"{next(iter(paths))},0,0,30,20")
        if split != "train" and kind == "openimages":
            lines["localization"] = draw_masks(root / "dataset/OpenImages", paths)
        if split == "train":
            lines["image_ids_proxy"] = list(paths)[::2]
        for name, text in lines.items():
            (metadata / f"{name}.txt").write_text("\n".join(text))   # the official files have no newline at the end
    return root


def draw_masks(folder, paths):
    """Two objects and an ignored region of each image, as black and white PNGs of one bit; those of the first are twice as large."""
    lines = []
    for i, path in enumerate(paths):
        shapes = {"m1": np.s_[2:6, 3:9], "m2": np.s_[8:12, 3:9], "ignore": np.s_[4:10, 3:20]}
        for name, where in shapes.items():
            mask = np.zeros(SIZE, bool)
            mask[where] = True
            Image.fromarray(np.kron(mask, np.ones((2, 2), bool)) if i == 0 else mask).save(folder / f"{path[:-4]}_{name}.png")
        lines += [f"{path},{path[:-4]}_m1.png,{path[:-4]}_ignore.png", f"{path},{path[:-4]}_m2.png,"]
    return lines


@pytest.fixture(params=TREES)
def kind(request):
    return request.param


def test_the_official_layout(tmp_path, kind):
    data = open_wsol(build(tmp_path, kind), kind)
    ids = {split: tuple(path.rpartition(".")[0].replace("/", "__") for path in paths) for split, paths in TREES[kind].items()}
    union = ids["train"] + ids["val"] + ids["test"]
    assert data.lists == ids | {"train_proxy": ids["train"][::2], "all": union} and len(union) == 10
    assert [data.labels[i] for i in union] == [(label,) for paths in TREES[kind].values() for label in paths.values()]
    assert data.image(union[-1]).shape == (*SIZE, 3) and data.name == kind
    names = {"cub": ("Black_footed_Albatross", "Laysan_Albatross"), "openimages": ("0bt_c3", "01226z")}
    assert data.classes == names.get(kind, tuple(map(str, range(300))))   # the names of 298 classes of ILSVRC are not known
    if kind == "openimages":
        assert not data.box_lists and data.has_masks(data.lists["test"]) and not data.has_masks(data.lists["train"])
    else:
        assert data.has_boxes(union) and not data.mask_files
        boxes, classes = data.boxes(ids["val"][0])
        assert boxes.tolist() == [[4, 2, 25, 15], [0, 0, 30, 20]] and classes.tolist() == [0, 0]
        assert data.boxes(ids["val"][1])[1].tolist() == [{"cub": 1, "ilsvrc": 299}[kind]]


def test_what_preparing_says(tmp_path, kind):
    found = prepare_wsol(build(tmp_path, kind), kind)
    assert [(finding.what, finding.found) for finding in found[:3]] == [("images of train", 4), ("images of val", 2), ("images of test", 4)]
    assert [finding.expected for finding in found] == list(OFFICIAL[kind].values()) and not any(finding.ok for finding in found)


def test_masks_are_joined(tmp_path):
    data = open_wsol(build(tmp_path, "openimages"), "openimages")
    expected = np.zeros(SIZE, np.uint8)
    expected[4:10, 3:20] = 255
    expected[2:6, 3:9] = expected[8:12, 3:9] = 1
    first, second = data.lists["val"]
    assert np.array_equal(data.mask(first), expected)   # its files are twice as large
    assert np.array_equal(data.mask(second), np.where(expected == 1, 2, expected))
    with pytest.raises(DataError, match="has no mask for id 'train__0bt_c3__0a9b'"):
        data.mask(data.lists["train"][0])
    before = [data.digest_of_masks([i]) for i in data.lists["all"]]
    Image.new("1", SIZE[::-1]).save(tmp_path / f"dataset/OpenImages/{data.mask_source.ignored[second]}")
    data = open_wsol(tmp_path, "openimages")
    changed = [i for i, digest in zip(data.lists["all"], before) if data.digest_of_masks([i]) != digest]
    assert changed == [second] and set(np.unique(data.mask(second))) == {0, 2}


def test_a_part_of_the_lists_can_be_used(tmp_path):
    """For scores alone there need be no images to train on, and an edited list is enough to leave images out."""
    root = build(tmp_path, "cub")
    for path in sorted((root / "metadata/CUB/train").iterdir()):
        path.unlink()
    (root / "metadata/CUB/train").rmdir()
    (root / "metadata/CUB/test/image_ids.txt").write_text("001.Black_footed_Albatross/Test_00.jpg\r\n\r\n")
    data = open_wsol(root, "cub")
    assert data.lists["train"] == () and data.lists["test"] == ("001.Black_footed_Albatross__Test_00",) and len(data.box_lists) == 3
    assert data.classes == ("Black_footed_Albatross", "Laysan_Albatross")


@pytest.mark.parametrize("file, old, new, message", [
    ("val/image_ids.txt", "3105.jpg", "3106.jpg", r"class_labels.txt lacks 1 of the 2 images of image_ids.txt, for example 002.Laysan_Albatross/3106.jpg"),
    ("val/localization.txt", "002.Laysan_Albatross/3105.jpg,4,2,25,15", "", "localization.txt lacks 1 of the 2 images"),
    ("val/class_labels.txt", "3105.jpg,1", "3105.jpg,200", "has class 200 for '002.Laysan_Albatross__3105'; expected 0 to 199"),
    ("val/class_labels.txt", "3105.jpg,1", "3105.jpg,one", "has one for '002.Laysan_Albatross__3105'; expected whole numbers"),
    ("val/class_labels.txt", "3105.jpg,1", "3105.jpg", "line 2, '002.Laysan_Albatross/3105.jpg', has 1 columns; expected 2"),
    ("val/localization.txt", "3105.jpg,4,2,25,15", "3105.jpg,25,2,4,15", "has the box 25,2,4,15 .* expected X0,Y0,X1,Y1 with X0 <= X1"),
    ("val/localization.txt", "3105.jpg,4,2,25,15", "3105.jpg,-4,2,25,15", "has -4,2,25,15 for .* expected whole numbers from 0"),
    ("val/image_sizes.txt", "3105.jpg,30,20", "3105.jpg,30,21", "3105.jpg is 20 high and 30 wide as shown, but in image_sizes.txt 21 high and 30 wide"),
    ("val/image_ids.txt", "3105.jpg", "3105.jpg\n002.Laysan_Albatross/3105.jpg", "is listed twice; keep one line"),
    ("val/image_ids.txt", "002.Laysan_Albatross/3105.jpg", "../3105.jpg", r"id '..__3105' starts with a dot"),
    ("val/image_ids.txt", "3105.jpg", "3105.jpg\n002.Laysan_Albatross/3105.png", "two paths have the same id"),
    ("test/image_ids.txt", "001.Black_footed_Albatross/Test_00.jpg", "001.Black_footed_Albatross/48483065801.jpg", "has the id .* of an image of list val, and is in list test"),
])
def test_lists_that_are_refused(tmp_path, file, old, new, message):
    path = build(tmp_path, "cub") / "metadata/CUB" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    if file == "test/image_ids.txt":
        labels = path.with_name("class_labels.txt")
        labels.write_text(labels.read_text() + f"\n{new},0")
    with pytest.raises(DataError, match=message):
        open_wsol(tmp_path, "cub")


def test_files_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"metadata/CUB/train does not exist; .* holds nothing; expected this layout:\n(.|\n)*dataset/CUB/ "):
        open_wsol(tmp_path, "cub")
    with pytest.raises(DataError, match="'birds' is no data set of the evaluation of localisation; expected one of cub, openimages, ilsvrc"):
        open_wsol(tmp_path, "birds")
    root = build(tmp_path, "openimages")
    mask = root / "dataset/OpenImages/val/0bt_c3/1cd9_m2.png"
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(DataError, match=r"files of .*OpenImages: 1 problem\n  - .*1cd9_m2.png is"):
        open_wsol(root, "openimages")
    mask.unlink()
    with pytest.raises(DataError, match="OpenImages lacks 1 of the 28 images and masks of the lists, for example val/0bt_c3/1cd9_m2.png"):
        open_wsol(root, "openimages")
    lines = root / "metadata/OpenImages/val/localization.txt"
    lines.write_text(lines.read_text().replace("val/0bt_c3/1cd9_m2.png", "../secret.png"))
    with pytest.raises(DataError, match="a mask of .* has a path that leads out of this folder"):
        open_wsol(root, "openimages")


def test_what_the_official_code_accepts_is_a_warning(tmp_path, caplog):
    """Boxes beyond the image, and images that are stored turned."""
    root = build(tmp_path, "cub")
    path = root / "dataset/CUB/002.Laysan_Albatross/3105.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", SIZE[::-1]).save(path, exif=exif)
    boxes = root / "metadata/CUB/val/localization.txt"
    boxes.write_text(boxes.read_text().replace("4,2,25,15", "4,2,35,15"))
    with caplog.at_level(logging.WARNING):
        data = open_wsol(root, "cub")
    assert "2 images have a box that is not inside the image" in caplog.text
    assert "1 images are turned by their EXIF orientation" in caplog.text and "3105.jpg; save such images upright" in caplog.text
    assert data.boxes("002.Laysan_Albatross__3105")[0].tolist() == [[4, 2, 35, 15]]
