"""The forms of annotation tools: what is written is read back by the tools' own readers where they are installed, and by a plain reader
of each form."""

import json
import zipfile
from itertools import accumulate
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from wsss import annotations
from wsss.annotations import UNSCORED, Options, Sheet
from wsss.annotations.coco import run_lengths
from wsss.annotations.label_studio import decode_brush, encode_brush
from wsss.annotations.polygons import polygons, simplified
from wsss.data.images import read_image
from wsss.errors import DataError
from wsss.overlays import write_picture

CLASSES = ("cat", "bird / été", "a:b", "#grün")
COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]   # of VOC's devkit


def ring(size=(24, 40)):
    """A region with two holes, one of a single pixel, and a second part that touches the first at a corner."""
    region = np.zeros(size, bool)
    region[3:18, 4:25] = True
    region[6:12, 8:15] = region[15, 20] = False
    region[18:21, 25:33] = True
    return region


@pytest.fixture
def sheets():
    first, second = np.zeros((24, 40), np.uint8), np.zeros((17, 11), np.uint8)
    first[ring()] = 2
    first[7:10, 9:13], first[:2], first[22:, 30:] = 1, 4, 255
    second[5:9, 3:11] = 3
    return [Sheet("one", "one.jpg", first), Sheet("two words", "two words.jpg", second), Sheet("none", "none.jpg", np.zeros((8, 9), np.uint8))]


def written(form, sheets, folder, **options):
    module = annotations.load(form)
    module.write(folder, iter(sheets), Options(CLASSES, **options))
    for sheet in sheets:
        write_picture(folder / module.IMAGES / sheet.image, np.zeros((*sheet.mask.shape, 3), np.uint8))
    return folder


def named(sheets):
    """The regions of every image by the names of their classes."""
    names = {**dict(enumerate(CLASSES, start=1)), 255: UNSCORED}
    return {sheet.name: {names[value]: region for value, region in sheet.regions()} for sheet in sheets}


def assert_same(found, sheets, allowed=0):
    for name, regions in named(sheets).items():
        assert found.get(name, {}).keys() == regions.keys(), name
        for label, region in regions.items():
            assert (found[name][label] ^ region).sum() <= allowed * region.sum(), (name, label)


def filled(corners, size):
    """(H, W) bool by the definition: a centre is inside if a ray from it crosses the outline an odd number of times."""
    inside = np.zeros(size, bool)
    for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], corners[0]]):
        for row in range(size[0]):
            if (y <= row + 0.5) != (next_y <= row + 0.5):
                inside[row] ^= np.arange(size[1]) + 0.5 > x + (row + 0.5 - y) / (next_y - y) * (next_x - x)
    return inside


def drawn(outlines, size):
    return np.any([np.zeros(size, bool), *(filled(outline, size) for outline in outlines)], axis=0)


# Polygons.

@pytest.mark.parametrize("seed", range(4))
def test_exact_polygons_hold_exactly_the_pixels(seed):
    draws = np.random.default_rng(seed)
    region = ring() if seed == 0 else draws.random((13, 9)) < draws.random()
    assert np.array_equal(drawn(polygons(region, 0), region.shape), region)


def test_a_hole_stays_open_and_a_part_is_a_polygon():
    assert len(polygons(ring(), 0)) == 2 and polygons(np.zeros((4, 5), bool), 0) == []
    assert not drawn(polygons(ring(), 0.9), ring().shape)[7:11, 9:14].any()


def test_the_outline_moves_by_at_most_the_tolerance():
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.mgrid[:60, :70]
    region = np.hypot(rows - 30.2, (columns - 33.7) / 1.3) < 22
    depth = np.where(region, distance_transform_edt(region), distance_transform_edt(~region))   # from the nearest pixel of the other side
    corners = []
    for tolerance in (0, 0.5, 2):
        (polygon,) = polygons(region, tolerance)
        corners.append(len(polygon))
        wrong = filled(polygon, region.shape) ^ region
        assert (depth[wrong] <= tolerance + 0.75).all()   # the outline is half a pixel or more from the centres
    assert corners[0] > 2 * corners[1] > 3 * corners[2]


def test_a_ring_that_would_vanish_stays():
    square = np.array([[0., 0], [1, 0], [1, 1], [0, 1]])
    assert np.array_equal(simplified(square, 5), square)
    (polygon,) = polygons(np.pad(np.ones((1, 1), bool), 2), 3)
    assert np.array_equal(filled(polygon, (5, 5)), np.pad(np.ones((1, 1), bool), 2))


# Plain readers.

def test_coco_as_run_lengths_and_polygons(sheets, tmp_path):
    for tolerance in (None, 0):
        folder = written("coco", sheets, tmp_path / str(tolerance), tolerance=tolerance)
        content = json.loads((folder / "annotations" / "instances_default.json").read_text())
        names = {item["id"]: item["name"] for item in content["categories"]}
        assert list(names.values()) == [*CLASSES, UNSCORED] and [item["file_name"] for item in content["images"]] == [s.image for s in sheets]
        found = {}
        for item in content["annotations"]:
            sheet = sheets[item["image_id"] - 1]
            shape, coded = sheet.mask.shape, item["segmentation"]
            if tolerance is None:
                inside = np.zeros(sheet.mask.size, bool)
                for start, end in zip(ends := list(accumulate(coded["counts"])), ends[1:]):
                    if ends.index(start) % 2 == 0:
                        inside[start:end] = True
                region = inside.reshape(shape[::-1]).T
            else:
                region = drawn([np.reshape(points, (-1, 2)).tolist() for points in coded], shape)
            found.setdefault(sheet.name, {})[names[item["category_id"]]] = region
            left, top, width, height = item["bbox"]
            assert item["area"] == region.sum() == region[top:top + height, left:left + width].sum() and item["iscrowd"] == 0
        assert_same(found, sheets)


def test_run_lengths_begin_with_the_background():
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.zeros((2, 3), bool)) == [6]


def test_cvat_and_voc(sheets, tmp_path):
    cvat, voc = written("cvat", sheets, tmp_path / "cvat"), written("voc", sheets, tmp_path / "voc")
    table = [line.split(":") for line in (cvat / "labelmap.txt").read_text().splitlines()[1:]]
    assert table[0] == ["background", "0,0,0", "", ""] and [row[0] for row in table[1:]] == ["cat", "bird / été", "a%3Ab", "%23grün", UNSCORED]
    colours = {tuple(map(int, row[1].split(","))): value for row, value in zip(table, (0, 1, 2, 3, 4, 255))}
    assert list(colours)[:5] == COLOURS
    assert (cvat / "ImageSets/Segmentation/default.txt").read_text() == "one\ntwo words\nnone\n"
    assert (voc / "ImageSets/Segmentation/train.txt").read_text() == "one\ntwo words\nnone\n"
    assert (voc / "classes.txt").read_text().splitlines() == list(CLASSES) and (voc / "labelmap.txt").read_bytes() == (cvat / "labelmap.txt").read_bytes()
    for sheet in sheets:
        with Image.open(cvat / "SegmentationClass" / f"{sheet.name}.png") as image, Image.open(voc / "SegmentationClass" / f"{sheet.name}.png") as numbers:
            painted = np.array(image)
            assert image.mode == "RGB" and np.array_equal(np.array(numbers), sheet.mask) and np.array_equal(painted, np.array(numbers.convert("RGB")))
        objects = read_image(cvat / "SegmentationObject" / f"{sheet.name}.png")
        assert len(np.unique(objects.reshape(-1, 3), axis=0)) == len(np.unique(sheet.mask))
        assert all(len({*map(tuple, objects[region])}) == 1 for _, region in sheet.regions())
    with zipfile.ZipFile(cvat / "annotations.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    files = {str(path.relative_to(cvat)): path.read_bytes() for path in cvat.rglob("*") if path.is_file() and path.suffix != ".zip" and "images" not in path.parts}
    assert packed == files and len(files) == 2 * len(sheets) + 2


def test_labelme(sheets, tmp_path):
    folder = written("labelme", sheets, tmp_path, tolerance=0)
    found = {}
    for sheet in sheets:
        content = json.loads((folder / f"{sheet.name}.json").read_text())
        assert (content["imageHeight"], content["imageWidth"]) == sheet.mask.shape and content["imageData"] is None
        assert (folder / content["imagePath"]).is_file()
        for shape in content["shapes"]:
            regions = found.setdefault(sheet.name, {})
            assert shape["shape_type"] == "polygon"
            regions[shape["label"]] = regions.get(shape["label"], False) | filled(shape["points"], sheet.mask.shape)
    assert_same(found, sheets)
    assert (folder / "labels.txt").read_text().splitlines() == [*CLASSES, UNSCORED]


@pytest.mark.parametrize("tolerance", [None, 0])
def test_label_studio(sheets, tmp_path, tolerance):
    folder = written("label_studio", sheets, tmp_path, tolerance=tolerance, url="http://here/", made_by="run")
    found, kind = {}, "brushlabels" if tolerance is None else "polygonlabels"
    interface = ElementTree.fromstring((folder / "labels.xml").read_text())
    assert [label.get("value") for label in interface.iter("Label")] == [*CLASSES, UNSCORED]
    tag = interface.find("BrushLabels" if tolerance is None else "PolygonLabels")
    for task, sheet in zip(json.loads((folder / "tasks.json").read_text()), sheets, strict=True):
        assert task["data"] == {"image": f"http://here/{sheet.image.replace(' ', '%20')}", "image_id": sheet.name}
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            assert result["type"] == kind and result["from_name"] == tag.get("name") and result["to_name"] == tag.get("toName") == interface.find("Image").get("name")
            size, value = (result["original_height"], result["original_width"]), result["value"]
            region = decode_brush(value["rle"], size) if tolerance is None else filled([(x * size[1] / 100, y * size[0] / 100) for x, y in value["points"]], size)
            regions = found.setdefault(sheet.name, {})
            regions[value[kind][0]] = regions.get(value[kind][0], False) | region
    assert_same(found, sheets)


# The run lengths of Label Studio.

def test_brush_masks_of_other_writers():
    """Literal words, which Label Studio writes where neighbouring values differ, and half transparent edges."""
    alpha = [0, 127, 128, 255]
    bits = f"{16:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "0" + "01" + f"{15:04b}"
    bits += "".join(f"{value:08b}" for each in alpha for value in (9, 9, 9, each))
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[at:at + 8], 2) for at in range(0, len(bits), 8)]
    assert decode_brush(packed, (2, 2)).tolist() == [[False, False], [True, True]]


def test_long_and_short_runs():
    for region in (np.ones((300, 301), bool), ring(), np.eye(7, dtype=bool), np.zeros((1, 1), bool)):
        assert np.array_equal(decode_brush(encode_brush(region), region.shape), region)


@pytest.mark.parametrize("packed", [[], [1, 2, 3], [256, 0], encode_brush(np.ones((3, 3), bool)), encode_brush(ring())[:-4]])
def test_a_damaged_brush_mask_is_refused(packed):
    with pytest.raises(DataError, match="a brush mask cannot be read .* 40 x 24 pixels in four channels: export the project again"):
        decode_brush(packed, (24, 40))


# The readers of the tools.

def test_pycocotools_reads_both_shapes_of_coco(sheets, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    for tolerance in (None, 0):
        folder = written("coco", sheets, tmp_path / str(tolerance), tolerance=tolerance)
        read, found = coco.COCO(folder / "annotations" / "instances_default.json"), {}
        for item in read.loadAnns(read.getAnnIds()):
            name = sheets[item["image_id"] - 1].name
            found.setdefault(name, {})[read.cats[item["category_id"]]["name"]] = read.annToMask(item).astype(bool)
        assert_same(found, sheets)


@pytest.mark.parametrize(("form", "kind"), [("cvat", "voc_segmentation"), ("voc", "voc_segmentation"), ("coco", "coco_instances")])
def test_datumaro_reads_what_cvat_imports(sheets, tmp_path, form, kind):
    """Datumaro is the library with which CVAT imports."""
    datumaro = pytest.importorskip("datumaro")
    folder = written(form, sheets, tmp_path)
    read = datumaro.Dataset.import_from(str(folder), kind)
    labels, found = read.categories()[datumaro.AnnotationType.label], {}
    decoded = {"a%3Ab": "a:b", "%23grün": "#grün"}
    for item in read:
        for each in item.annotations:
            if (name := labels[each.label].name) != "background" and hasattr(each, "image"):   # of COCO also its box
                found.setdefault(item.id, {})[decoded.get(name, name)] = np.asarray(each.image).astype(bool)
    assert_same(found, sheets)


def test_the_sdk_of_label_studio_reads_brush_masks_and_the_interface(sheets, tmp_path):
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

    folder, found = written("label_studio", sheets, tmp_path), {}
    for task, sheet in zip(json.loads((folder / "tasks.json").read_text()), sheets):
        for result in task["predictions"][0]["result"]:
            picture = brush.decode_rle(result["value"]["rle"]).reshape(*sheet.mask.shape, 4)
            found.setdefault(sheet.name, {})[result["value"]["brushlabels"][0]] = picture[:, :, 3] > 0
        for _, region in sheet.regions():   # and ours reads theirs
            assert np.array_equal(decode_brush(brush.mask2rle(region.astype(np.uint8) * 255), region.shape), region)
    assert_same(found, sheets)
    assert list(parse_config((folder / "labels.xml").read_text())["tag"]["labels"]) == [*CLASSES, UNSCORED]


def test_labelme_reads_its_files(sheets, tmp_path, monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("labelme")
    from labelme._label_file import read_label_file
    from labelme.utils import shape_to_mask

    folder, found = written("labelme", sheets, tmp_path, tolerance=0), {}
    for sheet in sheets:
        for shape in read_label_file(str(folder / f"{sheet.name}.json")).shapes:
            regions = found.setdefault(sheet.name, {})
            regions[shape["label"]] = regions.get(shape["label"], False) | shape_to_mask(sheet.mask.shape, shape["points"], shape["shape_type"])
    assert_same(found, sheets, allowed=0.8)   # it paints the outline too, so a region grows by up to a pixel on each side
    assert all((found[name][label] & region).sum() == region.sum() for name, regions in named(sheets).items() for label, region in regions.items())


def test_forms_are_files():
    assert annotations.names() == ["coco", "cvat", "label_studio", "labelme", "voc"]
    for name in annotations.names():
        assert set(annotations.load(name).SHAPES) <= {annotations.MASKS, annotations.POLYGONS} and annotations.load(name).__doc__
