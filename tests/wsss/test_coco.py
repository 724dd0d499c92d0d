"""COCO 2014: classes and ids, labels and both kinds of masks from a small set in its layout, and every refusal."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.data import coco_prepare, open_coco, prepare_coco
from wsss.data.coco_layout import CATEGORY_IDS, CLASS_INDEX, COCO_CLASSES, PARTS
from wsss.data.findings import report_table
from wsss.data.images import read_mask, write_mask
from wsss.errors import BackendError, DataError, StorageError, WsssError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2

H, W = 24, 30
CATEGORIES = [{"supercategory": "", "id": category, "name": name} for category, name in zip(CATEGORY_IDS, COCO_CLASSES)]
PERSON, DOG, TV, BOOK, TOOTHBRUSH = 1, 18, 72, 84, 90
ELL = [3, 2, 20, 2, 20, 9, 10, 9, 10, 20, 3, 20]   # x, y of its corners

# Images by id: of each annotation the category, the shape (polygons or the pixels of run lengths) and whether it is a crowd.
TRAIN = {
    9: [(PERSON, [ELL], 0), (DOG, [[8, 5, 28, 5, 28, 22, 8, 22]], 0), (TV, [[12, 7, 15, 7, 15, 12, 12, 12]], 0)],
    12: [(TV, [[12, 7, 15, 7, 15, 12, 12, 12]], 0), (DOG, [[8, 5, 28, 5, 28, 22, 8, 22]], 0)],   # the small one comes first
    25: [(PERSON, (2, 14, 1, 29), 1), (TOOTHBRUSH, [[0, 0, 5, 0, 5, 24, 0, 24], [20, 10, 30, 10, 30, 20, 20, 20]], 0)],
    30: [],
    49: [(DOG, (4, 10, 5, 11), 0), (DOG, [[2, 2, 9, 2, 9, 9, 2, 9]], 0), (PERSON, [[2, 2, 9, 2, 9, 9, 2, 9]], 0)],   # two equal ones
    34: [(BOOK, (0, 6, 0, 6), 1)],   # nothing but a crowd
}
VAL = {7: [(PERSON, [ELL], 0)], 42: []}


def box_runs(y0, y1, x0, x1):
    """Run lengths, down the columns, of the box of these rows and columns, beginning with a run of zeros."""
    inside = np.zeros((H, W), bool)
    inside[y0:y1, x0:x1] = True
    counts, value = [0], False
    for pixel in inside.T.reshape(-1):
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return {"size": [H, W], "counts": counts}


def instances(images, part):
    annotations = [{"id": 1000 * number + k, "image_id": number, "category_id": category, "iscrowd": crowd, "area": 0,
                    "segmentation": box_runs(*shape) if isinstance(shape, tuple) else shape}
                   for number, shapes in images.items() for k, (category, shape, crowd) in enumerate(shapes)]
    return {"info": {}, "licenses": [], "categories": CATEGORIES, "annotations": annotations,
            "images": [{"id": i, "file_name": f"COCO_{part}_{i:012d}.jpg", "height": H, "width": W} for i in images]}


def build(root: Path, train=TRAIN, val=VAL) -> Path:
    """A small set in the layout of COCO 2014."""
    (root / "annotations").mkdir(parents=True)
    for part, images in zip(PARTS.values(), (train, val)):
        (root / part).mkdir()
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(instances(images, part)))
        for number in images:
            pixels = np.random.default_rng(number).integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / f"COCO_{part}_{number:012d}.jpg")
    return root


def change(root, edit, part="train2014"):
    """Applies `edit` to the parsed JSON of one part."""
    path = root / "annotations" / f"instances_{part}.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(edit(data) or data))


def train_id(number):
    return f"COCO_train2014_{number:012d}"


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "coco")


def test_ids_and_classes_map_both_ways():
    assert len(set(COCO_CLASSES)) == len(CATEGORY_IDS) == 80
    assert [CATEGORY_IDS[CLASS_INDEX[category]] for category in CATEGORY_IDS] == list(CATEGORY_IDS) == sorted(set(CATEGORY_IDS))
    known = {1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack", 31: "handbag", 44: "bottle", 46: "wine glass",
             65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 82: "refrigerator", 84: "book", 90: "toothbrush"}
    assert {category: COCO_CLASSES[CLASS_INDEX[category]] for category in known} == known


def test_lists_and_labels(root):
    prepare_coco(root)
    data = open_coco(root)
    assert data.name == "coco14" and data.classes == COCO_CLASSES
    assert data.lists["train"] == tuple(map(train_id, sorted(TRAIN)))   # in the order of their numbers
    assert data.lists["all"] == data.lists["train"] + data.lists["val"]
    assert data.lists["val"] == ("COCO_val2014_000000000007", "COCO_val2014_000000000042")
    for number, shapes in TRAIN.items():   # crowds count
        assert data.labels[train_id(number)] == tuple(sorted({CLASS_INDEX[category] for category, _, _ in shapes}))
    assert data.labels[train_id(30)] == () and data.label_vector(train_id(30)).sum() == 0
    assert data.image(train_id(9)).shape == (H, W, 3) and data.has_masks(data.lists["all"])
    assert open_coco(root, max_side=15, check=False).working_size(train_id(9)) == (12, 15)
    assert f"{train_id(9)},person;dog;tv\n" in (root / "image_labels.csv").read_text()


def covers(shape, y, x):
    """Whether a shape covers the middle of a pixel: the slow way, a ray to the left that crosses an odd number of edges."""
    if isinstance(shape, tuple):
        return shape[0] <= y < shape[1] and shape[2] <= x < shape[3]
    y, x = y + 0.5, x + 0.5
    for polygon in shape:
        corners = list(zip(polygon[::2], polygon[1::2]))
        crossed = [(ay > y) != (by > y) and ax + (y - ay) / (by - ay) * (bx - ax) < x
                   for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1])]
        if sum(crossed) % 2:
            return True
    return False


def slow_mask(shapes, policy):
    """Every pixel by itself: the last annotation of the file that covers it, or the smallest, in which case a crowd comes last."""
    areas = [sum(covers(shape, y, x) for y in range(H) for x in range(W)) for _, shape, _ in shapes]
    mask = np.zeros((H, W), np.uint8)
    for y in range(H):
        for x in range(W):
            here = [k for k, (_, shape, _) in enumerate(shapes) if covers(shape, y, x)]
            objects = [k for k in here if not shapes[k][2]]
            if objects:
                chosen = max(objects) if policy == "official" else min(objects, key=lambda k: (areas[k], -k))
                mask[y, x] = CLASS_INDEX[shapes[chosen][0]] + 1
            elif here and policy == "clean":
                mask[y, x] = 255
    return mask


def test_masks_pixel_by_pixel_and_the_policies_side_by_side(root):
    for policy in ("official", "clean"):
        prepare_coco(root, policy)
    official, clean = open_coco(root, masks="official"), open_coco(root, masks="clean")
    for policy, data in (("official", official), ("clean", clean)):
        for number, shapes in TRAIN.items():
            assert np.array_equal(data.mask(train_id(number)), slow_mask(shapes, policy)), number
        assert not data.mask("COCO_val2014_000000000042").any()
        with Image.open(data.mask_path(train_id(9))) as image:
            assert image.mode == "P"
    small = (9, 13)   # y, x inside the television
    assert official.mask(train_id(12))[small] == CLASS_INDEX[DOG] + 1 and clean.mask(train_id(12))[small] == CLASS_INDEX[TV] + 1
    assert not official.mask(train_id(34)).any() and set(np.unique(clean.mask(train_id(34)))) == {0, 255}
    assert official.labels == clean.labels


def test_compressed_run_lengths_and_slanted_polygons(root):
    from pycocotools import mask as rle

    runs = rle.frPyObjects(box_runs(3, 9, 4, 20), H, W)
    triangle = [[2.5, 2.2, 25.1, 4.9, 11.3, 21.7]]

    def edit(data):
        data["annotations"][0]["segmentation"] = {"size": [H, W], "counts": runs["counts"].decode()}
        data["annotations"][3]["segmentation"] = triangle

    change(root, edit)
    prepare_coco(root, "clean")
    data = open_coco(root, masks="clean")
    assert (data.mask(train_id(9))[3:5, 4:20] == 1).all() and data.mask(train_id(9))[2, 4] == 0
    tv = data.mask(train_id(12)) == CLASS_INDEX[TV] + 1
    inside = np.array([[covers(triangle, y, x) for x in range(W)] for y in range(H)])
    dog = np.zeros((H, W), bool)
    dog[5:22, 8:28] = True
    assert (tv != inside)[~dog].sum() <= 6 and tv[~dog].any()   # pixels on an edge may fall to either side


def test_the_report(root):
    (root / "train2014" / "COCO_train2014_000000000500.jpg").write_bytes(b"x")
    findings = {finding.what: finding for finding in prepare_coco(root)}
    assert (findings["images of train2014"].found, findings["images of train2014"].expected) == (6, 82783)
    assert (findings["images of val2014"].found, findings["images of val2014"].expected) == (2, 40504)
    assert findings["images of train2014 without object"].found == 1 and findings["images of val2014 without object"].ok
    assert findings["annotations of train2014"].note == "2 of them crowds"
    assert findings["classes on an image"].found == 5 and not findings["classes on an image"].ok
    assert not findings["files in train2014 that are in no annotations"].ok
    assert findings["masks in masks_official"].note == "8 made, 0 were there" and findings["masks in masks_official"].ok
    assert re.search(r"images of val2014 +2 +40,504 +! ", report_table(list(findings.values())))


def test_an_interrupted_preparation_goes_on(root, monkeypatch, caplog):
    prepare_coco(root.parent / build(root.parent / "whole").name)
    calls, write = [], coco_prepare.write_mask

    def interrupted(path, mask):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(path, mask)

    monkeypatch.setattr(coco_prepare, "write_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_coco(root)
    with pytest.raises(DataError, match="not all of its official masks are there"):
        open_coco(root)
    kept = {path: path.stat().st_mtime_ns for path in calls[:3]}
    calls[0].write_bytes(calls[0].read_bytes()[:-60])   # and one of the three is damaged
    monkeypatch.setattr(coco_prepare, "write_mask", write)
    with caplog.at_level(logging.INFO):
        findings = prepare_coco(root)
    assert findings[-1].note == "6 made, 2 were there" and "6 of 6 masks to make" in caplog.text
    assert all(path.stat().st_mtime_ns == kept[path] for path in calls[1:3])
    for image_id in open_coco(root).lists["all"]:
        file = f"masks_official/{image_id}.png"
        assert (root / file).read_bytes() == (root.parent / "whole" / file).read_bytes()
    assert prepare_coco(root)[-1].note == "0 made, 8 were there"


def test_masks_that_vanish_meanwhile_are_made_before_it_is_complete(root, monkeypatch):
    write, victims = coco_prepare.write_mask, [root / "masks_official" / f"{train_id(9)}.png"]

    def disturbed(path, mask):   # as another process does that puts away masks of other annotations
        write(path, mask)
        if path not in victims and victims and victims[0].exists():
            victims.pop().unlink()

    monkeypatch.setattr(coco_prepare, "write_mask", disturbed)
    prepare_coco(root)
    assert open_coco(root).mask(train_id(9)).any()


# What is not prepared, or no more.

COMMAND = r"run python run_pipeline.py action=prepare data=coco14 'data.root=.* \(1\)/coco' data.masks={}$"


def test_unprepared_sets_say_what_to_run(tmp_path):
    root = build(tmp_path / "my data (1)" / "coco")
    with pytest.raises(DataError, match="there is no image_labels.csv.*" + COMMAND.format("official")):
        open_coco(root)
    prepare_coco(root)
    with pytest.raises(DataError, match="there are no clean masks, only official ones.*" + COMMAND.format("clean")):
        open_coco(root, masks="clean")
    (root / "masks_official").rename(root / "masks_clean")   # a folder under the other's name is not that of the other
    with pytest.raises(DataError, match="there are no clean masks[.]"):
        open_coco(root, masks="clean")
    with pytest.raises(DataError, match="there are no official masks[.]"):
        open_coco(root)


def test_changed_annotations_are_noticed(root):
    prepare_coco(root)
    before = open_coco(root).mask(train_id(9))
    change(root, lambda data: data["annotations"][0].update(category_id=2))
    with pytest.raises(DataError, match=r"instances_train2014\.json has changed since"):
        open_coco(root)
    assert open_coco(root, check=False)   # of the same size: only a digest tells
    assert prepare_coco(root)[-1].note == "8 made, 0 were there"
    after = open_coco(root)
    assert after.labels[train_id(9)] == (1, CLASS_INDEX[DOG], CLASS_INDEX[TV])
    assert not np.array_equal(after.mask(train_id(9)), before)
    change(root, lambda data: data["annotations"].pop() and None, "val2014")
    with pytest.raises(DataError, match=r"instances_val2014\.json has changed since"):
        open_coco(root, check=False)


def test_labels_and_masks_of_different_annotations_are_refused(root):
    prepare_coco(root, "official")
    original = (root / "annotations" / "instances_train2014.json").read_text()
    change(root, lambda data: data["annotations"].pop() and None)
    prepare_coco(root, "clean")
    (root / "annotations" / "instances_train2014.json").write_text(original)
    with pytest.raises(DataError, match="image_labels.csv and masks_official were made from different annotations"):
        open_coco(root)


@pytest.mark.parametrize("text", ["", "x", "# {}\nname,classes\n", "# []\nname,classes\nx,y\n", "\udcff"])
def test_a_damaged_file_of_labels(root, text):
    prepare_coco(root)
    (root / "image_labels.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match="image_labels.csv is damaged"):
        open_coco(root)
    prepare_coco(root)
    lines = (root / "image_labels.csv").read_text().splitlines()
    (root / "image_labels.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="image_labels.csv is of another version or has been changed"):
        open_coco(root)
    (root / "image_labels.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(",", ",unicorn")]))
    with pytest.raises(DataError, match="image_labels.csv is damaged"):
        open_coco(root)


def test_what_is_lost_or_damaged_after_the_preparation(root):
    for text in ("", "[]", "{}", '{"policy": "official"}'):
        prepare_coco(root)
        (root / "masks_official" / "prepared.json").write_text(text)
        with pytest.raises(DataError, match="there are no official masks"):
            open_coco(root)
    prepare_coco(root)
    (root / "train2014" / f"{train_id(9)}.jpg").unlink()
    write_mask(root / "masks_official" / f"{train_id(12)}.png", np.zeros((W, H), np.uint8))
    with pytest.raises(DataError, match=r"2 problems\n.*no image at .*9\.jpg(.|\n)*12\.png is 30 high and 24 wide but"):
        open_coco(root)


def test_another_folder_or_policy(tmp_path):
    for use in (open_coco, prepare_coco):
        with pytest.raises(DataError, match=r"nowhere does not exist; expected this layout:\n(.|\n)*instances_train2014.json"):
            use(tmp_path / "nowhere")
    root = build(tmp_path / "coco")
    for use in (open_coco, prepare_coco):
        with pytest.raises(DataError, match=r"annotations.train2014 does not exist; .*annotations holds instances_train2014.json, instances_val2014.json; "
                                            r"expected this layout:\n"):
            use(root / "annotations")
    with pytest.raises(DataError, match="unknown kind of COCO masks 'cleen'; expected one of official, clean"):
        prepare_coco(root, "cleen")
    with pytest.raises(DataError, match="unknown kind of COCO masks 'cleen'"):
        open_coco(root, masks="cleen")


def other_year(data):
    for image in data["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"


def captions(data):
    return {"info": {}, "images": data["images"], "licenses": [], "annotations": [{"image_id": 9, "id": 1, "caption": "A dog."}]}


def keypoints(data):
    data["annotations"][0]["keypoints"] = [0] * 51
    data["categories"] = data["categories"][:1]


def setting(where, **values):
    def edit(data):
        data[where][0].update(values)
    return edit


@pytest.mark.parametrize("edit, message", [
    (other_year, r"6 problems\n  - image 9 is the file '000000000009.jpg'; expected COCO_train2014_000000000009.jpg: is it of another year"),
    (lambda data: instances(TRAIN, "val2014"), "is the file 'COCO_val2014_000000000009.jpg'; expected COCO_train2014_0000"),
    (captions, r"holds captions \(annotations, images, info, licenses\); expected object instances"),
    (keypoints, "holds person keypoints .* expected object instances"),
    (lambda data: {"images": [], "annotations": []}, r"holds something else \(annotations, images\); expected object instances"),
    (lambda data: [1], r"holds something else \(list\)"),
    (lambda data: data["categories"].pop() and None, "has 79 categories that are not COCO's 80: id 90 is None, expected 'toothbrush'"),
    (setting("categories", name="human"), "has 80 categories .*: id 1 is 'human', expected 'person'"),
    (lambda data: data.update(categories=[{"id": i + 1, "name": name} for i, name in enumerate(COCO_CLASSES)]),
     "id 12 is 'stop sign', expected None"),
    (lambda data: data["images"].append(data["images"][0]), r"image id 9 \(COCO_train2014_000000000009.jpg\) is listed twice"),
    (setting("annotations", image_id=77), "annotation 9000 is of image 77, which is not in images"),
    (setting("annotations", category_id=12), "annotation 9000 has category 12, which is not in COCO's 80"),
    (setting("images", height=25), "9.jpg is 24 high and 30 wide, but in its annotations 25 high and 30 wide"),
    (setting("images", height="24"), "is 24 high and 30 wide; expected whole numbers"),
    (lambda data: data["images"].clear() or data["annotations"].clear(), "the list images is empty"),
    (lambda data: data["annotations"][0].pop("image_id") and None, r"has an incomplete image or annotation \(KeyError: 'image_id'\)"),
    (lambda data: data["images"].append(3), r"has an incomplete image or annotation \(TypeError"),
])
def test_annotations_that_are_refused(root, edit, message):
    change(root, edit)
    with pytest.raises(DataError, match=message):
        prepare_coco(root)
    assert not (root / "image_labels.csv").exists()   # refused before anything is written


@pytest.mark.parametrize("shape, message", [
    ([[1, 1, 5, 5]], r"a polygon is \[1, 1, 5, 5\], expected x, y"),
    ([[1, 1, 5, 5, 9]], "a polygon is"), ([[1, 1, 5, float("nan"), 9, 9]], "a polygon is"), ([["a"] * 6], "cannot be drawn"),
    ([[1, 1, 5, 1e9, 9, 9]], "a polygon is"), ([5], "a polygon is 5"),
    ({"size": [W, H], "counts": [H * W]}, r"its run lengths are for \(30, 24\) pixels, the image is \(24, 30\)"),
    ({"size": [H, W], "counts": [7]}, "its run lengths are for"), ({"size": [H, W]}, "cannot be drawn"), (None, "cannot be drawn"),
])
def test_shapes_that_cannot_be_drawn(root, shape, message):
    change(root, setting("annotations", segmentation=shape))
    with pytest.raises(DataError, match=rf"annotation 9000 of image 9 cannot be drawn \((.|\n)*{message}" if "drawn" not in message else message):
        prepare_coco(root)
    with pytest.raises(DataError, match="not all of its official masks"):
        open_coco(root)


def test_broken_json_and_missing_images(root):
    path = root / "annotations" / "instances_train2014.json"
    whole = path.read_bytes()
    for content in (b"", whole[:len(whole) // 2], b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"instances_train2014\.json is not a complete JSON file .*unpack annotations_trainval2014\.zip again"):
            prepare_coco(root)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot read .*instances_train2014\.json"):
        prepare_coco(root)
    path.rmdir()
    path.write_bytes(whole)
    (root / "train2014" / f"{train_id(12)}.jpg").rename(root / "aside")
    with pytest.raises(DataError, match=r"train2014 lacks 1 of the 6 images of .*, for example COCO_train2014_000000000012\.jpg; unpack train2014\.zip"):
        prepare_coco(root)
    (root / "train2014" / f"{train_id(12)}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"12\.jpg is damaged or not a JPEG"):
        prepare_coco(root)


def test_without_pycocotools(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    for use in (prepare_coco, lambda root: coco_prepare.download_coco(root / "nowhere", print)):   # not after 20 GB have come
        with pytest.raises(BackendError, match="pycocotools cannot be imported .*run pip install pycocotools"):
            use(root)


def test_a_folder_that_cannot_be_written(root):
    (root / "masks_official").touch()
    with pytest.raises(StorageError, match=r"COCO in .* cannot be prepared \(.*masks_official.*\)\. Make room .*links to train2014"):
        prepare_coco(root)


def test_links_to_the_data_are_enough(root, tmp_path):
    (tmp_path / "mine").mkdir()
    for part in ("train2014", "val2014", "annotations"):
        (tmp_path / "mine" / part).symlink_to(root / part)
    prepare_coco(tmp_path / "mine")
    assert open_coco(tmp_path / "mine").mask(train_id(9)).any() and not (root / "masks_official").exists()
    assert issubclass(DataError, WsssError) and read_mask(tmp_path / "mine/masks_official" / f"{train_id(9)}.png").shape == (H, W)
