"""The embedded data set: the same for everybody, complete or absent, and with the problems it is meant to have."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import contents
from wsss.data import drawing, make_shapes, open_folder, shapes
from wsss.data.drawing import CLASSES, draw_picture
from wsss.data.figures import LOOKS
from wsss.errors import DataError, StorageError
from wsss.seeding import generator


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", n_train=40, n_val=10)


def test_it_is_an_ordinary_folder(root):
    data = open_folder(root, name="shapes")
    assert len(data.classes) >= 6 and data.classes == tuple(CLASSES)
    assert {name: len(ids) for name, ids in data.lists.items()} == {"train": 40, "val": 10, "all": 50}
    assert data.has_masks(data.lists["all"])
    sizes = set()
    for image_id in data.lists["all"]:
        height, width = data.size(image_id)
        mask = data.mask(image_id)
        assert 144 <= height <= 250 and 144 <= width <= 250 and height != width
        assert tuple(int(value) - 1 for value in np.unique(mask) if value) == data.labels[image_id]
        assert 1 <= len(data.labels[image_id]) <= 2 and (mask == 0).mean() > 0.3
        sizes.add((height, width))
    assert len(sizes) > 30
    assert all(data.label_vector(image_id).sum() == len(data.labels[image_id]) for image_id in data.lists["all"])
    assert set(np.concatenate([data.labels[image_id] for image_id in data.lists["all"]])) == set(range(len(CLASSES)))


def test_another_interpreter_draws_the_same_bytes(root, tmp_path):
    code = f"from wsss.data import make_shapes; make_shapes({str(tmp_path / 'shapes')!r}, n_train=40, n_val=10)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "1"}, timeout=120)
    assert contents(tmp_path / "shapes") == contents(root)


def test_whoever_comes_second_uses_the_first(tmp_path, monkeypatch):
    write = shapes._write_folder

    def overtaken(folder, parameters):
        write(folder, parameters)
        monkeypatch.setattr(shapes, "_write_folder", write)
        make_shapes(tmp_path / "shapes", n_train=2, n_val=1)  # another process ends first

    monkeypatch.setattr(shapes, "_write_folder", overtaken)
    assert make_shapes(tmp_path / "shapes", n_train=2, n_val=1) == tmp_path / "shapes"
    assert os.listdir(tmp_path) == ["shapes"]


def test_an_existing_set_is_used_as_it_is(root, monkeypatch):
    monkeypatch.setattr(shapes, "_write_folder", lambda *_: pytest.fail("drawn again"))
    assert make_shapes(root, n_train=40, n_val=10) == root
    with pytest.raises(DataError, match="holds the embedded data set of .*'seed': 0.*not of .*'seed': 1.*remove it"):
        make_shapes(root, seed=1, n_train=40, n_val=10)


def test_other_folders_are_never_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=r"is not an embedded data set \(no shapes.json in it\); name another folder"):
        make_shapes(tmp_path, n_train=1, n_val=0)
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(DataError, match="n_train is 0, n_val is 0; expected at least 1 and at least 0"):
        make_shapes(tmp_path / "new", n_train=0, n_val=0)
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "shapes"):   # a place that cannot be written
        with pytest.raises(StorageError, match="cannot write the embedded data set to .*file.*: .*; make room .*data.root=DIR"):
            make_shapes(root, n_train=1, n_val=0)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def stop(rng):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(1)
        return draw_picture(rng)

    monkeypatch.setattr(shapes, "draw_picture", stop)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "deep" / "shapes", n_train=5, n_val=0)
    assert os.listdir(tmp_path / "deep") == []
    monkeypatch.undo()
    (tmp_path / "deep" / "shapes").mkdir()  # an empty folder is as good as none
    make_shapes(tmp_path / "deep" / "shapes", n_train=2, n_val=0)
    assert json.loads((tmp_path / "deep" / "shapes" / "shapes.json").read_text())["n_train"] == 2
    assert open_folder(tmp_path / "deep" / "shapes").lists["val"] == ()


def test_pictures_depend_on_seed_and_name_alone(root, tmp_path):
    other = make_shapes(tmp_path / "more", n_train=3, n_val=2)
    for name in ("train_0002", "val_0001"):
        assert (other / f"images/{name}.jpg").read_bytes() == (root / f"images/{name}.jpg").read_bytes()
    seed_1 = make_shapes(tmp_path / "seed", seed=1, n_train=3, n_val=2)
    assert (seed_1 / "images/train_0002.jpg").read_bytes() != (root / "images/train_0002.jpg").read_bytes()


PLACE = (80, 70, 60)   # cx, cy, half the length


def painted(name, colour=(0, 0, 0), draws="one"):
    """An object of a class painted on a colour -> (H, W, 3), and its inside (H, W)."""
    canvas = np.zeros((150, 160, 3), np.float32) + np.float32(colour)
    window, layers = drawing._object(name, PLACE, generator(0, draws), canvas.shape[:2])
    drawing._paint(canvas[window], layers)
    inside = np.zeros(canvas.shape[:2], bool)
    inside[window] = drawing._inside(layers)
    return canvas, inside


@pytest.mark.parametrize("name", CLASSES)
def test_masks_are_exact(name):
    """Painted on black and on green, without light and noise: nothing green shows inside the mask, but for the smooth edge."""
    (first, inside), (second, _) = painted(name), painted(name, (0, 1, 0))
    seen_through = abs(second - first)[..., 1]  # how much of the background is left
    assert seen_through[inside].max() <= 0.5 and seen_through[~inside].min() >= 0.2  # two edges may meet outside
    assert (seen_through[inside] > 0.01).mean() < 0.2 and (seen_through[~inside] < 0.5).mean() < 0.005


def test_a_pair_shares_its_body_and_not_its_head():
    pairs = {}
    for name, (body, habitat) in CLASSES.items():
        pairs.setdefault(body, []).append((name, habitat))
    assert CLASSES.keys() == LOOKS.keys() and len(pairs) == 4
    assert all(len(pair) == 2 and sum(habitat is not None for _, habitat in pair) == 1 for pair in pairs.values())
    for (one, _), (two, _) in pairs.values():
        (first, inside), (second, inside_too) = painted(one), painted(two)
        assert (inside != inside_too).mean() < 0.01
        different = abs(first - second).max(axis=-1) > 0.15
        assert 0.02 < different.sum() / inside.sum() < 0.35


def test_habitats_go_with_their_class():
    draws = generator(0, "habitat")
    seen = [drawing._scene(["koi"], draws) for _ in range(1000)]
    assert abs(seen.count("water") / 1000 - drawing.HABITAT - (1 - drawing.HABITAT) * drawing.HABITAT_ALONE / 4) < 0.05
    seen = [drawing._scene(["perch"], draws) for _ in range(1000)]
    assert abs(sum(scene in drawing.HABITATS for scene in seen) / 1000 - drawing.HABITAT_ALONE) < 0.05


def test_images_are_jpegs_of_good_quality_whose_objects_hide_little_of_each_other(root):
    image, mask, objects = draw_picture(generator(0, "shapes", "train_0000"))
    stored = np.asarray(Image.open(root / "images/train_0000.jpg"))
    assert stored.shape == image.shape and abs(stored.astype(int) - image).mean() < 8
    assert np.array_equal(np.asarray(Image.open(root / "masks/train_0000.png")), mask)
    for name in open_folder(root).lists["all"]:
        _, _, objects = draw_picture(generator(0, "shapes", name))
        assert set(np.unique(objects)) == set(range(objects.max() + 1)) and objects.max() in (1, 2)
        sizes = np.bincount(objects.ravel())[1:]
        assert sizes.min() > 0.03 * objects.size
