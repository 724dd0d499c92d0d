"""Ground truth of single objects: in every kind of data set, and what is refused."""

import logging
import pickle
import sys

import numpy as np
import pytest

from tests.wsss.test_coco import DOG, ELL, PERSON, TV, covers, train_id
from tests.wsss.test_coco import build as build_coco
from tests.wsss.test_folder import build as build_folder
from tests.wsss.test_voc import SIZE, TRAIN, VAL, mask_of
from tests.wsss.test_voc import build as build_voc
from wsss.data import make_shapes, open_coco, open_folder, open_voc, prepare_coco
from wsss.data.coco_layout import CLASS_INDEX
from wsss.data.images import write_mask
from wsss.data.voc import VOC_CLASSES
from wsss.errors import BackendError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2


def folder_with(root, numbers, values, ids="ab"):
    """A folder of two images of 20 x 30 pixels with class masks `values` and objects `numbers`, each (20, 30) uint8."""
    build_folder(root, {"a": "cat;dog", "b": "cat"}, masks="ab", train="a\nb\n")
    (root / "instances").mkdir()
    for image_id in ids:
        write_mask(root / "masks" / f"{image_id}.png", values)
        write_mask(root / "instances" / f"{image_id}.png", numbers)
    return root


@pytest.fixture
def pair():
    """Objects 1 and 7 with a boundary of 255 between them; their classes are dog and cat."""
    numbers, values = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    numbers[2:9, 3:12], values[2:9, 3:12] = 1, 2
    numbers[9], values[9] = 255, 255
    numbers[10:15, 3:12], values[10:15, 3:12] = 7, 1
    return numbers, values


def test_a_folder_with_objects(tmp_path, pair):
    data = open_folder(folder_with(tmp_path / "one", *pair))
    masks, classes = data.instances("a")
    assert masks.dtype == bool and classes.dtype == np.int64 and classes.tolist() == [1, 0]
    assert np.array_equal(masks[0], pair[0] == 1) and np.array_equal(masks[1], pair[0] == 7)
    assert data.has_instances("a") and not data.has_instances("nobody")
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.instances("b")[0], masks) and "PngObjects" not in repr(data)
    numbers, values = pair   # the class is that of most pixels
    values[2:5, 3:12], values[5, 3:12] = 255, 0   # of the 63 pixels of object 1 only 27 have a class
    values[6, 3:12] = 1                            # and a third of these another one
    assert open_folder(folder_with(tmp_path / "other", numbers, values)).instances("a")[1].tolist() == [1, 0]


def test_an_image_or_a_folder_without_objects(tmp_path, pair):
    numbers = np.zeros((20, 30), np.uint8)
    numbers[3] = 255
    masks, classes = open_folder(folder_with(tmp_path / "some", numbers, pair[1])).instances("b")
    assert masks.shape == (0, 20, 30) and masks.dtype == bool and classes.shape == (0,)
    data = open_folder(build_folder(tmp_path / "none", {"a": "cat"}, masks="a"))
    assert data.objects is None and not data.has_instances("a")
    assert data.digest_of_instances(["a"]) == data.digest_of_instances(["a"])


def test_the_digest_is_that_of_both_files(tmp_path, pair):
    root = folder_with(tmp_path, *pair)

    def digest():
        return open_folder(root).digest_of_instances(["a"])
    before = digest()
    assert digest() == before
    write_mask(root / "instances/b.png", np.zeros((20, 30), np.uint8))
    assert digest() == before
    for folder in ("instances", "masks"):
        write_mask(root / folder / "a.png", np.full((20, 30), 1, np.uint8))
        assert digest() != before
        before = digest()
    (root / "instances/a.png").unlink()
    assert digest() != before and not open_folder(root).has_instances("a")


def test_objects_without_class_mask_are_ignored_aloud(tmp_path, pair, caplog):
    root = build_folder(tmp_path, {"a": "cat", "b": "cat"}, masks="a", val="a\n", train="b\n")
    (root / "instances").mkdir()
    for image_id in "ab":
        write_mask(root / "instances" / f"{image_id}.png", pair[0])
    with caplog.at_level(logging.WARNING):
        data = open_folder(root)
    assert data.has_instances("a") and not data.has_instances("b")
    assert "the objects of 1 images are ignored, because the images have no class mask, for example b" in caplog.text
    with pytest.raises(DataError, match="has no ground-truth objects for id 'b'; add them, or leave out eval_ins_seg"):
        data.instances("b")


@pytest.mark.parametrize("value", [0, 9])   # background; beyond the classes
def test_objects_without_a_class(tmp_path, pair, value):
    data = open_folder(folder_with(tmp_path, *pair))
    write_mask(tmp_path / "masks/a.png", np.full((20, 30), value, np.uint8))
    with pytest.raises(DataError, match=r"object 1 of .*instances/a.png has no class: the mask .*masks/a.png is 0 .background., 255"):
        data.instances("a")


def test_objects_of_another_size(tmp_path, pair):
    root = folder_with(tmp_path, *pair)
    write_mask(root / "instances/a.png", np.ones((30, 20), np.uint8))
    with pytest.raises(DataError, match="objects instances/a.png are 30 high and 20 wide but images/a.jpg is 20 high and 30 wide as shown"):
        open_folder(root)
    data = open_folder(root, check=False)
    with pytest.raises(DataError, match="objects .*a.png are 30 high and 20 wide but the mask .*a.png is 20 high and 30 wide"):
        data.instances("a")
    write_mask(root / "masks/a.png", np.ones((30, 20), np.uint8))
    with pytest.raises(DataError, match="the objects of 'a' in data set folder are 30 high and 20 wide but its image is 20 high"):
        data.instances("a")


def test_the_embedded_set_tells_its_objects(tmp_path):
    data = open_folder(make_shapes(tmp_path / "shapes", n_train=30, n_val=2))
    counts = set()
    for image_id in data.lists["all"]:
        masks, classes = data.instances(image_id)
        mask = data.mask(image_id)
        assert np.array_equal(masks.any(axis=0), mask > 0) and masks.sum(axis=0).max() == 1
        assert all((mask[inside] == index + 1).all() for inside, index in zip(masks, classes))
        assert tuple(np.unique(classes)) == data.labels[image_id]
        counts.add(len(classes))
    assert {1, 2} <= counts <= {1, 2, 3}


def test_voc_has_them_in_segmentation_object(tmp_path):
    root = build_voc(tmp_path / "VOC2012")
    (root / "SegmentationObject").mkdir()
    (root / "SegmentationClass").mkdir()
    for image_id, names in {**TRAIN, **VAL}.items():
        numbers = np.zeros(SIZE, np.uint8)
        numbers[:3, 5:12], numbers[:3, 12], numbers[:3, 13:20] = 1, 255, 2   # two of the first class
        write_mask(root / "SegmentationObject" / f"{image_id}.png", numbers)
        values = mask_of(names)
        values[:, 12] = 255
        write_mask(root / "SegmentationClass" / f"{image_id}.png", values)
    data = open_voc(root)
    assert sum(map(data.has_instances, data.lists["train_aug"])) == len(TRAIN)
    for image_id, names in TRAIN.items():
        masks, classes = data.instances(image_id)
        assert classes.tolist() == [VOC_CLASSES.index(names[0])] * 2
        assert masks[0].sum() == masks[1].sum() == 21 and not masks[:, :, 12].any()


def test_coco_has_them_in_its_annotations_without_crowds(tmp_path, monkeypatch):
    root = build_coco(tmp_path / "coco")
    prepare_coco(root)
    data = open_coco(root)
    assert data.objects.memory > 5 * (root / "annotations/instances_train2014.json").stat().st_size
    assert all(map(data.has_instances, data.lists["all"])) and not data.has_instances("COCO_train2014_000000009999")
    masks, classes = data.instances(train_id(9))
    assert classes.tolist() == [CLASS_INDEX[category] for category in (PERSON, DOG, TV)]
    assert masks[0].sum() == sum(covers([ELL], y, x) for y in range(24) for x in range(30))
    assert masks[1, 8, 13] and masks[2, 8, 13]   # they overlap
    for number, objects in ((25, 1), (30, 0), (34, 0), (49, 3)):   # 25 and 34 have a crowd
        masks, classes = data.instances(train_id(number))
        assert masks.shape == (objects, 24, 30) and classes.shape == (objects,)
    assert data.instances("COCO_val2014_000000000007")[1].tolist() == [CLASS_INDEX[PERSON]]
    again = pickle.loads(pickle.dumps(open_coco(root)))
    assert np.array_equal(again.instances(train_id(9))[0], data.instances(train_id(9))[0])
    before = data.digest_of_instances(data.lists["train"]), data.digest_of_instances(data.lists["val"])
    path = root / "annotations/instances_train2014.json"
    path.write_text(path.read_text().replace('"iscrowd": 1', '"iscrowd": 0', 1))
    prepare_coco(root)
    data = open_coco(root)
    assert data.digest_of_instances(data.lists["train"]) != before[0] and data.digest_of_instances(data.lists["val"]) == before[1]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BackendError, match="drawing COCO's masks and objects needs it: run pip install pycocotools"):
        data.instances(train_id(9))
