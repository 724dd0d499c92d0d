"""PASCAL VOC in its official layout: lists, labels, masks, what preparing says, and every refusal. All pictures are drawn here."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from wsss.data import open_voc, prepare_voc, voc
from wsss.data.findings import report_table
from wsss.data.images import read_mask, write_mask
from wsss.data.voc import LABELS, VOC_CLASSES
from wsss.errors import DataError, StorageError
from wsss.palette import VOC_PALETTE

# id -> classes of the objects in its XML; "!" marks a difficult one.
TRAIN = {"2007_000032": ["aeroplane", "aeroplane", "person"], "2007_000033": ["aeroplane"]}
AUG = TRAIN | {"2008_000008": ["horse", "person!"], "2008_000015": ["bottle", "tvmonitor!"]}
VAL = {"2007_000042": ["train", "train"], "2007_000061": ["boat"]}
ALL = AUG | VAL
SIZE = 24, 36   # height and width


def xml(image_id, names):
    """An annotation as in VOC 2012; a person has parts, whose names are no classes."""
    head = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></part>"
    objects = "".join(f"\t<object>\n\t\t<name>{name.rstrip('!')}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>0</truncated>\n"
                      f"\t\t<difficult>{int('!' in name)}</difficult>\n\t\t<bndbox><xmin>1</xmin></bndbox>\n"
                      f"{head if 'person' in name else ''}\t</object>\n" for name in names)
    return (f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{image_id}.jpg</filename>\n\t<source>\n\t\t<database>The VOC2007 "
            "Database</database>\n\t\t<annotation>PASCAL VOC2007</annotation>\n\t</source>\n\t<size><width>36</width><height>24</height>"
            f"<depth>3</depth></size>\n\t<segmented>1</segmented>\n{objects}</annotation>\n")


def mask_of(names):
    """A stripe a class, with 255 around."""
    mask = np.zeros(SIZE, np.uint8)
    for i, name in enumerate(dict.fromkeys(names)):
        mask[4 * i:4 * i + 3, 5:20], mask[4 * i + 3, 5:20] = VOC_CLASSES.index(name.rstrip("!")) + 1, 255
    return mask


def build(folder):
    """VOC2012 of six images, with masks of all in SegmentationClassAug, as `folder`."""
    for part in ("JPEGImages", "Annotations", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for number, (image_id, names) in enumerate(ALL.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg")
        (folder / "Annotations" / f"{image_id}.xml").write_text(xml(image_id, names))
        write_mask(folder / "SegmentationClassAug" / f"{image_id}.png", mask_of(names))
    for name, ids in {"train": TRAIN, "train_aug": AUG, "val": VAL}.items():
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "VOCdevkit" / "VOC2012")


def by_name(findings):
    return {finding.what: finding for finding in findings}


LABELS_OF_ALL = {image_id: tuple(sorted({VOC_CLASSES.index(name.rstrip("!")) for name in names})) for image_id, names in ALL.items()}


def test_the_official_layout(root):
    for folder in (root.parent.parent, root.parent, root):
        data = open_voc(folder)
        assert (data.name, data.root, data.classes) == ("voc12", root, VOC_CLASSES)
    assert [VOC_CLASSES.index(name) + 1 for name in ("aeroplane", "cat", "person", "train", "tvmonitor")] == [1, 8, 15, 19, 20]
    assert data.lists == {"train": tuple(TRAIN), "train_aug": tuple(AUG), "val": tuple(VAL), "all": tuple(ALL)}
    assert data.labels == LABELS_OF_ALL and data.label_vector("2008_000008").nonzero()[0].tolist() == [12, 14]
    assert data.image("2007_000032").shape == (*SIZE, 3)
    assert np.array_equal(data.mask("2007_000032"), mask_of(ALL["2007_000032"])) and 255 in data.mask("2007_000032")
    assert all(data.has_masks(ids) for ids in data.lists.values())
    assert open_voc(root, name="mine", max_side=18).working_size("2007_000032") == (12, 18)


@pytest.mark.parametrize("folder, message", [
    ("nowhere", r"nowhere does not exist; expected this layout:\n(.|\n)*nowhere/\n +JPEGImages/"),
    ("empty", r"no PASCAL VOC 2012 in .*empty, which holds nothing; expected there, or in VOCdevkit/VOC2012 below it, this layout:\n"),
    ("devkit", r"which holds VOC2007, local; expected there"),
    ("bare", r"JPEGImages does not exist; expected this layout:\n(.|\n)*SegmentationClass/ +optional"),
])
def test_a_wrong_root_says_what_is_there_and_what_should_be(tmp_path, folder, message):
    for path in ("empty", "devkit/VOC2007/JPEGImages", "devkit/local", "bare/ImageSets"):
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        open_voc(tmp_path / folder)


def test_the_official_lists_come_with_the_package():
    lists = {name: (voc._SHIPPED / f"{name}.txt").read_text().split() for name in voc.LISTS}
    assert {name: len(set(ids)) for name, ids in lists.items()} == {"train": 1464, "train_aug": 10582, "val": 1449}
    assert all(len(ids) == len(set(ids)) for ids in lists.values())
    assert set(lists["train"]) < set(lists["train_aug"]) and not set(lists["train_aug"]) & set(lists["val"])
    assert lists["train"][0] == "2007_000032" and lists["val"][0] == "2007_000033"


def test_an_official_list_is_used_where_the_folder_has_none(root, monkeypatch):
    shipped = root.parent / "shipped"
    shutil.copytree(root / "ImageSets" / "Segmentation", shipped)
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(DataError, match=r"JPEGImages lacks \d+ images of the official list train_aug, for example \w+\.jpg; add them, or "
                                        r"write a list of your own to .*ImageSets/Segmentation/train_aug\.txt"):
        open_voc(root)
    shutil.rmtree(root / "ImageSets")
    monkeypatch.setattr(voc, "_SHIPPED", shipped)
    assert open_voc(root).lists["train_aug"] == tuple(AUG)


def test_windows_line_ends_and_blanks_and_images_outside_the_lists(root):
    shutil.copy(root / "JPEGImages" / "2007_000032.jpg", root / "JPEGImages" / "2009_000001.jpg")
    assert open_voc(root).lists["all"] == tuple(ALL)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xef\xbb\xbf2007_000032  \r\n2007_000033\t\r\n\r\n")
    assert open_voc(root).lists["train"] == tuple(TRAIN)


@pytest.mark.parametrize("name, text, message", [
    ("train", "2007_000032\n2007_000032\n", r"train.txt: 1 problem\n  - '2007_000032' is listed twice; keep one line"),
    ("val", "2007_000042\n2007_999999\n", r"'2007_999999' has no image; add the image or remove the line"),
    ("val", "2007_000099.jpg\n", r"'2007_000099.jpg' has no image; add the image or remove the line"),
    ("val", "\n", r"val.txt is empty"),
    ("val", "2007_000042\n2008_000008\n", r"1 ids are in both lists train_aug and val of .* for example '2008_000008'"),
    ("val", "2007_000042\n2007_000033\n", r"1 ids are in both lists train and val of .* for example '2007_000033'"),
])
def test_lists_that_are_refused(root, name, text, message):
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_voc(root)
    report_table(prepare_voc(root))


def test_a_missing_image_is_named(root):
    (root / "JPEGImages" / "2008_000015.jpg").unlink()
    with pytest.raises(DataError, match="train_aug.txt: 1 problem\n  - '2008_000015' has no image"):
        open_voc(root)
    finding = by_name(prepare_voc(root))["images of the lists that can be read"]
    assert (finding.found, finding.expected, finding.note) == (5, 6, "JPEGImages/2008_000015.jpg is missing")


def test_labels_come_from_the_masks_where_there_is_no_annotation(root, caplog):
    shutil.rmtree(root / "Annotations")
    with caplog.at_level(logging.INFO):
        assert open_voc(root).labels == LABELS_OF_ALL
    assert "reading the classes of 6 images" in caplog.text


def test_labels_are_read_from_the_file_that_prepare_makes(root):
    table = report_table(findings := prepare_voc(root))
    made = by_name(findings)["image labels"]
    assert made.ok and made.note == f"written to {root / LABELS}: 6 from annotations, 0 from masks" and made.note in table
    assert (root / LABELS).read_text().splitlines()[:2] == ["name,classes", "2007_000032,aeroplane;person"]
    shutil.rmtree(root / "Annotations")
    shutil.rmtree(root / "SegmentationClassAug")
    data = open_voc(root)
    assert data.labels == LABELS_OF_ALL and not data.has_masks(data.lists["train"])


@pytest.mark.parametrize("text, message", [
    ("name,classes\n2007_000032,aeroplane\n", r"is stale: it lacks 5 of the 6 ids .* '2007_000033'; make it again by `python run_pipeline.py "
                                              r"action=prepare data=voc12 data.root=.*VOC2012`"),
    ("name,classes\n2007_000032,plane\n", r"line 2, '2007_000032,plane', is not an id and its classes of PASCAL VOC; make the file again by `python"),
    ("name,classes\n2007_000032\n", r"line 2, '2007_000032', is not an id and its classes"),
    ("", r"starts with ''; expected the line 'name,classes'"),
])
def test_a_stale_or_damaged_file_of_labels_is_refused(root, text, message):
    (root / LABELS).write_text(text)
    with pytest.raises(DataError, match=message):
        open_voc(root)
    prepare_voc(root)
    assert open_voc(root).labels == LABELS_OF_ALL


@pytest.mark.parametrize("text, message", [
    ("<annotation><object><name>cat</name>", r"1 problem\n  - cannot read the annotation .*2008_000015\.xml \(no element found.*restore it, or remove"),
    ("<?xml version='1.0' encoding='none'?><annotation/>", "cannot read the annotation .*unknown encoding"),
    ("<html><object/></html>", "is not a VOC annotation: it starts with <html>"),
    (xml("x", ["cat", "persn"]), r"2008_000015\.xml names an object of the unknown class 'persn'; did you mean 'person'\?; expected one of the 20"),
    (xml("x", [""]), "unknown class ''"),
])
def test_annotations_that_are_refused(root, text, message):
    (root / "Annotations" / "2008_000015.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_voc(root)
    found = by_name(prepare_voc(root))
    assert found["annotations of the lists that can be read"].found == 5
    assert found["image labels"].note == f"{LABELS} is not written: no valid annotation or mask of 2008_000015"
    assert not (root / LABELS).exists()
    (root / "Annotations" / "2008_000015.xml").unlink()   # then its mask says it
    assert open_voc(root).labels == LABELS_OF_ALL


def test_an_annotation_without_objects_is_background_and_neither_annotation_nor_mask_refused(root):
    (root / "Annotations/2008_000015.xml").write_text(xml("2008_000015", []))
    assert open_voc(root).labels["2008_000015"] == ()
    for path in ("Annotations/2008_000015.xml", "SegmentationClassAug/2008_000015.png"):
        (root / path).unlink()
    with pytest.raises(DataError, match="'2008_000015' has neither annotation nor mask, so .*; add Annotations/2008_000015.xml"):
        open_voc(root)


def test_the_official_masks_are_used_where_the_others_are_missing(root):
    (root / "SegmentationClassAug").rename(root / "SegmentationClass")
    for image_id in ("2008_000008", "2008_000015"):
        (root / "SegmentationClass" / f"{image_id}.png").unlink()
    data = open_voc(root)
    assert [data.has_masks(data.lists[name]) for name in ("train", "val", "train_aug")] == [True, True, False]
    (root / "SegmentationClassAug").mkdir()
    write_mask(root / "SegmentationClassAug" / "2007_000032.png", other := np.full(SIZE, 3, np.uint8))
    data = open_voc(root)
    assert np.array_equal(data.mask("2007_000032"), other) and data.mask_path("2007_000033").parent.name == "SegmentationClass"


def test_half_the_masks_of_a_list_are_refused(root):
    (root / "SegmentationClassAug" / "2007_000042.png").unlink()
    with pytest.raises(DataError, match="1 of the 2 ids of list val have no mask, for example 2007_000042; add 2007_000042.png to Segm"):
        open_voc(root)


def test_masks_are_indices_of_the_palette_and_must_be_of_the_classes(root):
    path = root / "SegmentationClassAug" / "2007_000033.png"
    with Image.open(path) as image:
        assert image.mode == "P" and image.getpalette() == VOC_PALETTE.reshape(-1).tolist()
    assert set(np.unique(read_mask(path))) == {0, 1, 255}
    write_mask(path, np.full(SIZE, 21, np.uint8))
    with pytest.raises(DataError, match=r"2007_000033.png holds the values \[21\]; expected 0 \(background\), 1..20 \(class\) or 255"):
        open_voc(root).mask("2007_000033")
    found = by_name(prepare_voc(root))["masks of the lists that fit"]
    assert found.found == 5 and "holds the values [21]" in found.note


def test_a_mask_of_another_size_and_a_damaged_image_are_refused(root):
    write_mask(root / "SegmentationClassAug" / "2007_000033.png", np.zeros((36, 24), np.uint8))
    (root / "JPEGImages" / "2008_000015.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(DataError, match=r"2 problems(.|\n)*000033.png is 36 high and 24 wide but (.|\n)*2008_000015.jpg is damaged"):
        open_voc(root)
    assert open_voc(root, check=False).lists["all"] == tuple(ALL)
    found = by_name(prepare_voc(root))
    assert "2007_000033.png is 36 high and 24 wide, its image 24 high and 36 wide" in found["masks of the lists that fit"].note
    assert found["images of the lists that can be read"].found == 5


def test_prepare_counts_against_the_official_numbers_and_says_how_difficult_objects_count(root):
    found = by_name(prepare_voc(root))
    assert {what: (finding.found, finding.expected) for what, finding in found.items() if not finding.ok} == {
        "JPEGImages": (6, 17125), "Annotations": (6, 17125), "SegmentationClassAug": (6, 12031), "SegmentationClass": (0, 2913),
        "list train": (2, 1464), "list train_aug": (4, 10582), "list val": (2, 1449)}
    assert found["JPEGImages"].note == f"put the images of VOCtrainval_11-May-2012.tar into {root / 'JPEGImages'}, or set download=true"
    assert found["list val"].note == str(root / "ImageSets/Segmentation/val.txt")
    annotations = found["annotations of the lists that can be read"]
    assert (annotations.found, annotations.note) == (6, "objects marked difficult count as present")
    assert VOC_CLASSES.index("tvmonitor") in open_voc(root).labels["2008_000015"]   # it is marked so


def test_prepare_lists_where_annotation_and_mask_differ(root):
    write_mask(root / "SegmentationClassAug" / "2008_000008.png", mask_of(["horse", "dog"]))
    found = by_name(prepare_voc(root))["images whose annotation and mask name other classes"]
    assert (found.found, found.note) == (1, "2008_000008: annotation horse;person, mask dog;horse")
    assert open_voc(root).labels == LABELS_OF_ALL   # the annotation counts


def test_prepare_works_on_what_there_is(root):
    for part in ("JPEGImages", "Annotations", "SegmentationClassAug"):
        shutil.rmtree(root / part)
        text = report_table(prepare_voc(root))
        assert f"into {root / part}" in text
    assert f"{LABELS} is not written" in text
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a\na\n")
    assert "'a' is listed twice" in report_table(prepare_voc(root))
    with pytest.raises(DataError, match="no PASCAL VOC 2012"):
        prepare_voc(root / "ImageSets")


def test_prepare_reports_where_nothing_can_be_written(root, monkeypatch):
    def refuse(path, text):
        raise StorageError("the disk is read-only")
    monkeypatch.setattr("wsss.data.voc_prepare.write_text", refuse)
    assert by_name(prepare_voc(root))["image labels"].note == "not saved, so read again at each start: the disk is read-only"
