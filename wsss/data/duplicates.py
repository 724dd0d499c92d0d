"""Copies of one image in train and val: saved again, resized, mirrored or cropped by up to a tenth.

Each image has a difference hash (which of two neighbouring grey values is larger, across and down) of the whole and of windows of
it. A copy that is cropped is a window of the other image. The distance of two images is the lowest share of bits that differ,
whole against whole or window, mirrored or not.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.checked import remembered
from wsss.data.dataset import Dataset
from wsss.data.headers import DAMAGE, exif_orientation, turn
from wsss.data.images import Levels, read_image

SAME = 0.2   # of the bits: fixed on MSRC, where of 44,000 pairs only two shots of one scene are below (benchmarks/duplicates.py)
SIDE = 12   # comparisons across and down
_THUMB = 64   # pixels
_WINDOWS = [(0.0, 0.0, 1.0)] + [(x, y, share) for share in (0.95, 0.9) for x in np.linspace(0, 1 - share, 3)
                                for y in np.linspace(0, 1 - share, 3)]   # left, top and side, as shares of the image
_BITS = 2 * SIDE * SIDE
_FLAT = 1.0   # grey levels, the deviation below which an image shows nothing
_BLOCK = 256   # images compared at a time


def copies(dataset: Dataset, check: bool | Path) -> list[tuple[str, str, float]]:
    """The ids of train and val that show the same image, and their distance, the closest first. Hashes are `remembered`."""
    train, val = (tuple(dataset.lists[name]) for name in ("train", "val"))
    if not train or not val:
        return []
    files = {image_id: dataset.image_files[image_id] for image_id in (*train, *val)}
    found = remembered(check, dataset.root, files, f"{dataset.levels} {dataset.max_pixels}", lambda: {
        image_id: _packed(hashes(_grey(dataset.root / file, dataset.levels, dataset.max_pixels)))
        for image_id, file in files.items()}, kind="hashes")
    first, second = (np.stack([_unpacked(found[image_id]) for image_id in ids]) for ids in (train, val))
    return sorted(((train[i], val[j], distance) for i, j, distance in closest(first, second)), key=lambda pair: pair[2])


def _grey(path: Path, levels: Levels | None, max_pixels: int | None) -> Image.Image:
    """The image in grey. A JPEG is decoded at an eighth of its size where that is enough."""
    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                orientation = exif_orientation(image)
                image.draft("L", (2 * _THUMB, 2 * _THUMB))
                return Image.fromarray(turn(np.asarray(image.convert("L")), orientation))
    except DAMAGE:
        pass   # read_image says what is wrong
    return Image.fromarray(read_image(path, levels, max_pixels)).convert("L")


def hashes(image: Image.Image) -> np.ndarray:
    """The bits (W, 2, SIDE, SIDE) bool of the whole image and of its windows: larger than the left, than the upper neighbour.
    None is set in an image of one colour, which is like no other."""
    grey = np.asarray(image.convert("L").resize((_THUMB, _THUMB), Image.Resampling.BOX), np.float32).reshape(-1)
    basis = _lighting()
    grey -= basis @ (basis.T @ grey)
    if grey.std() < _FLAT:
        return np.zeros((len(_WINDOWS), 2, SIDE, SIDE), bool)
    thumb = Image.fromarray(grey.reshape(_THUMB, _THUMB))
    return np.stack([_bits(thumb, (_THUMB * x, _THUMB * y, _THUMB * (x + share), _THUMB * (y + share)))
                     for x, y, share in _WINDOWS])


@cache
def _lighting() -> np.ndarray:
    """An orthonormal basis (pixels, 6) of the quadratic functions. They are taken off the image: photographs of surfaces under
    one lamp differ by little else, and would have the same bits."""
    y, x = np.mgrid[:_THUMB, :_THUMB].reshape(2, -1) / _THUMB - 0.5
    return np.linalg.qr(np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1))[0].astype(np.float32)


def _bits(thumb: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
    across, down = (np.asarray(thumb.resize(size, Image.Resampling.BOX, box=box))
                    for size in ((SIDE + 1, SIDE), (SIDE, SIDE + 1)))
    return np.stack([across[:, 1:] > across[:, :-1], down[1:] > down[:-1]])


def closest(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """The pairs (i, j, distance) of two sets of `hashes` whose distance is at most `SAME`."""
    seen = first.any((1, 2, 3, 4)).reshape(-1, 1) & second.any((1, 2, 3, 4))
    mirrored = np.stack([~second[:, :, 0, :, ::-1], second[:, :, 1, :, ::-1]], axis=2)
    others = [_signs(second), _signs(mirrored)]
    for start in range(0, len(first), _BLOCK):
        ours = _signs(first[start:start + _BLOCK])
        agreeing = np.full((len(ours), len(second)), -np.inf, np.float32)
        for theirs in others:
            for window in range(len(_WINDOWS)):
                np.maximum(agreeing, ours[:, 0] @ theirs[:, window].T, out=agreeing)
                np.maximum(agreeing, ours[:, window] @ theirs[:, 0].T, out=agreeing)
        distance = np.where(seen[start:start + _BLOCK], (1 - agreeing / _BITS) / 2, np.inf)
        yield from ((start + int(i), int(j), float(distance[i, j])) for i, j in np.argwhere(distance <= SAME))


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, np.float32(1), np.float32(-1)).reshape(*bits.shape[:2], _BITS)


def _packed(bits: np.ndarray) -> list[int]:
    """As whole numbers of 32 bits, for a JSON file."""
    return np.packbits(bits.reshape(-1)).view(np.uint32).tolist()


def _unpacked(numbers: Sequence[int]) -> np.ndarray:
    bits = np.unpackbits(np.array(numbers, np.uint32).view(np.uint8))
    return bits.reshape(len(_WINDOWS), 2, SIDE, SIDE).astype(bool)
