"""All eight steps on twelve images of a user's folder, odd ones among them; and bad folders, refused before work."""

import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline import Pipeline
from pipeline.actions import prepare
from tests.conftest import TINY, quick_plan
from wsss.data.images import read_image, read_mask, write_mask
from wsss.errors import ConfigError, DataError

SMALL = ("data=folder", "name=odd", *TINY, "data.image_size=64", "train_cam.epochs=2", "train_cam.batch_size=4",
         "train_irn.epochs=1", "train_irn.batch_size=4", "make_lpcam.n_clusters=3", "make_cam.scales=[1.0,0.5]", "threads=1")
NAMES = ["dog.1_a", "größe", "empty", "one", "wide", "grey", "constant", "palette", "alpha", "plain1", "plain2", "plain3"]
CLASSES = {"empty": "", "one": "cat", "wide": "cat;dog", "grey": "dog"}   # the others: cat


def picture(name: str, rng: np.random.Generator) -> Image.Image:
    """A dark picture with a bright square, or one of the odd kinds."""
    height, width = {"one": (1, 1), "wide": (40, 700)}.get(name, tuple(rng.integers(48, 80, 2)))
    pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[height // 4:height // 2, width // 4:width // 2] += 150
    if name == "constant":
        pixels[:] = 77
    image = Image.fromarray(pixels)
    return {"grey": image.convert("L"), "palette": image.convert("P"), "alpha": image.convert("RGBA")}.get(name, image)


@pytest.fixture
def folder(tmp_path):
    """A folder of twelve images, with masks; the class `bird` is on none of them."""
    root, rng = tmp_path / "photos", np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name in NAMES:
        image = picture(name, rng)
        image.save(root / "images" / f"{name}.{'png' if image.mode != 'RGB' else 'jpg'}")
        mask = np.zeros(image.size[::-1], np.uint8)
        mask[len(mask) // 4:len(mask) // 2] = 2 if CLASSES.get(name) == "dog" else 1
        write_mask(root / "masks" / f"{name}.png", mask)
    (root / "classes.txt").write_text("cat\ndog\nbird\n")
    (root / "labels.csv").write_text("name,classes\n" + "".join(f"{name},{CLASSES.get(name, 'cat')}\n" for name in NAMES))
    (root / "val.txt").write_text("plain1\ndog.1_a\n")
    return root


def test_odd_images_pass_every_step(folder, tmp_path):
    pipeline = Pipeline.compose(*SMALL, f"data.root={folder}", f"outputs={tmp_path / 'out'}", "workers=3")
    summary = pipeline.run()
    assert summary["scores"]["make_sem_seg_labels"]["images"] == 10
    assert len(summary["scores"]["make_lpcam"]["iou"]) == 4
    masks = tmp_path / "out/odd/make_sem_seg_labels"
    for name in set(NAMES) - {"plain1", "dog.1_a"}:
        truth, mask = read_mask(folder / f"masks/{name}.png"), read_mask(masks / f"{name}.png")
        assert mask.shape == truth.shape
        allowed = {0} | {1 + ["cat", "dog", "bird"].index(word) for word in CLASSES.get(name, "cat").split(";") if word}
        assert set(np.unique(mask)) <= allowed
    assert not read_mask(masks / "empty.png").any()


def test_a_smaller_working_size_gives_masks_of_the_images_size(folder, tmp_path):
    summary = Pipeline.compose(*SMALL, f"data.root={folder}", f"outputs={tmp_path / 'out'}", "data.max_side=48").run()
    assert read_mask(tmp_path / "out/odd/make_sem_seg_labels/wide.png").shape == (40, 700)
    assert max(read_mask(tmp_path / "out/odd/cam_to_ir_label/wide.png").shape) == 48
    assert summary["scores"]["make_sem_seg_labels"]["miou"] is not None


def unknown_class(root):
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("wide,cat;dog", "wide,cat;dgo"))


def truncated(root):
    file = root / "images/plain2.jpg"
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(("damage", "message"), [
    (shutil.rmtree, "photos"), (unknown_class, "unknown class 'dgo'; did you mean 'dog'"), (truncated, "plain2.jpg is damaged .*Truncated")])
def test_a_bad_folder_is_refused_before_anything_is_written(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=f"(?s){message}"):
        Pipeline.compose(*SMALL, f"data.root={folder}", f"outputs={tmp_path / 'out'}").run()
    assert not (tmp_path / "out").exists()


def test_prepare_shows_what_was_understood_and_a_plan_tells_what_contradicts_itself(folder, tmp_path, capsys):
    compose = [*SMALL, f"data.root={folder}", f"outputs={tmp_path / 'out'}"]
    tables = prepare.do(Pipeline.compose(*compose, "action=prepare"))
    rows = {finding.what: finding for finding in tables[0]}
    assert rows["labels"].note == "labels.csv (classes of each name)" and rows["images"].found == len(NAMES)
    assert read_image(tmp_path / "out/folder_samples.png").shape[1] == 2 * 320 + 6
    assert "samples of images and masks: " in capsys.readouterr().out
    for path in (folder / "masks").iterdir():
        write_mask(path, np.where(read_mask(path) > 0, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match="no mask holds class 'cat' though .*all their foreground is 255"):
        Pipeline.compose(*compose).plan()


def test_a_range_of_values_makes_other_results(folder, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 4096, (50, 60)).astype(np.uint16)).save(folder / "images/plain1.png")
    (folder / "images/plain1.jpg").unlink()
    mask = folder / "masks/plain1.png"
    write_mask(mask, np.ones((50, 60), np.uint8))
    compose = [*SMALL, f"data.root={folder}", f"outputs={tmp_path / 'out'}", "to_step=make_cam"]
    with pytest.raises(DataError, match="plain1.png has 16 bits per channel"):
        Pipeline.compose(*compose).plan()
    Pipeline.compose(*compose, "data.range=[0,4095]").run()
    assert {step.action for step in quick_plan(Pipeline.compose(*compose, "data.range=[0,4095]"))} == {"skip", "left out"}
    with pytest.raises(ConfigError, match=r"data.range: \[0.0, 4095.0\] -> \[0.0, 1000.0\]"):
        Pipeline.compose(*compose, "data.range=[0,1000]").plan()
