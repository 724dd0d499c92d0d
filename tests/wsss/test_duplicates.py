"""Copies of an image in train and val: saved again, resized, mirrored and cropped."""

import io

import numpy as np
import pytest
from PIL import Image

from wsss.data import doubts, duplicates, open_folder
from wsss.data.duplicates import SAME, closest, copies, hashes
from wsss.errors import DataError


def scene(seed: int, size=(200, 150)) -> Image.Image:
    """Coarse random colours under light from a side, as a photograph (W, H)."""
    pixels = np.random.default_rng(seed).integers(0, 200, (7, 9, 3), np.uint8)
    image = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(image + np.linspace(0, 55, size[0])[None, :, None], 0, 255).astype(np.uint8))


def saved(image: Image.Image, **how) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", **how)
    return Image.open(file)


COPIES = {"saved again": lambda image: saved(image, quality=40), "smaller": lambda image: image.resize((90, 70)),
          "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "cropped": lambda image: image.crop((4, 12, 186, 148))}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_found_among_others(copy):
    first, second = np.stack([hashes(scene(i)) for i in range(6)]), np.stack([hashes(scene(9)), hashes(copy(scene(3)))])
    [(i, j, distance)] = closest(first, second)
    assert (i, j) == (3, 1) and distance <= SAME
    [(i, j, _)] = closest(second, first)   # whichever is the crop of the other
    assert (i, j) == (1, 3)


def test_light_alone_makes_no_copies():
    rng = np.random.default_rng(0)
    surfaces = [np.clip(np.linspace(60, 200, 150)[:, None] + rng.normal(0, 3, (150, 150)), 0, 255).astype(np.uint8) for _ in range(4)]
    found = np.stack([hashes(Image.fromarray(surface)) for surface in surfaces])
    assert not list(closest(found[:2], found[2:]))


def folder(tmp_path, images: dict[str, Image.Image], val: list[str]):
    (tmp_path / "images").mkdir(parents=True)
    for name, image in images.items():
        image.save(tmp_path / "images" / name)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    stems = [name.partition(".")[0] for name in images]
    (tmp_path / "labels.csv").write_text("name,classes\n" + "".join(f"{stem},{'ab'[i % 2]}\n" for i, stem in enumerate(stems)))
    (tmp_path / "val.txt").write_text("\n".join(val) + "\n")
    return open_folder(tmp_path)


def test_one_message_names_the_pairs_and_what_to_do(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 3
    upside_down = tmp_path / "turned.jpg"
    scene(1).transpose(Image.Transpose.ROTATE_180).save(upside_down, exif=turned)
    blank = Image.new("RGB", (50, 40), "white")   # like no other
    images = {f"t{i}.jpg": scene(i) for i in range(5)} | {"v0.png": scene(0), "v7.jpg": scene(7), "v8.jpg": blank, "t8.jpg": blank}
    data = folder(tmp_path / "set", images, ["v0", "v7", "v8"])
    [message] = [text for text in doubts.doubts_of(data, True).problems if "copies" in text]
    assert message.startswith("t0 of train and v0 of val look like copies of one image: ") and "take v0 out of val.txt" in message
    (tmp_path / "set/images/v7.jpg").write_bytes(upside_down.read_bytes())   # shown as t1
    [message] = [text for text in doubts.doubts_of(data, True).problems if "copies" in text]
    assert "one image (also t1 and v7): " in message or "one image (also t0 and v0): " in message


def test_hashes_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    images = {"t0.png": scene(0), "t1.png": scene(1), "v0.png": scene(0)}
    data, marker, read = folder(tmp_path / "set", images, ["v0"]), tmp_path / "marker", []
    grey = duplicates._grey
    monkeypatch.setattr(duplicates, "_grey", lambda *what: read.append(what) or grey(*what))
    first = copies(data, marker)
    assert [pair[:2] for pair in first] == [("t0", "v0")] and len(read) == 3
    assert copies(data, marker) == first and len(read) == 3
    scene(5).save(tmp_path / "set/images/v0.png")
    assert copies(data, marker) == [] and len(read) == 6
    (tmp_path / "set/images/v0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="v0.png is damaged or not"):
        copies(data, marker)
