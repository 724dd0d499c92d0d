"""Synthetic pictures of the size of VOC's photographs, noise of all scales with objects on it, and data sets of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.images import read_mask, write_mask

SIZES = ((375, 500), (500, 375), (333, 500), (500, 333), (400, 500), (500, 442), (281, 500))   # the most frequent of VOC 2012


def picture(mask: np.ndarray, seed: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a picture of a mask (H, W), with a colour and a grain for each value."""
    draws = np.random.default_rng(seed)
    height, width = mask.shape
    image = np.zeros((height, width, 3), np.float32)
    for value in np.unique(mask):
        colour = np.random.default_rng(int(value)).uniform(60, 196, 3) + draws.normal(0, 20, 3)
        grain = sum(_noise(draws, height, width, cells) * strength for cells, strength in ((4, 30), (12, 14), (40, 7), (110, 4)))
        image = np.where((mask == value)[..., None], colour + grain, image)
    image += draws.normal(0, 2, image.shape)      # sensor noise
    return np.clip(image, 0, 255).astype(np.uint8)


def drawn_mask(height: int, width: int, classes: Sequence[int], seed: int) -> np.ndarray:
    """(H, W) uint8: a blob of value class + 1 for each 0-based class, with a border of 255, on background 0."""
    draws = np.random.default_rng([seed, 1])
    y, x = np.mgrid[:height, :width].astype(np.float32)
    mask = np.zeros((height, width), np.uint8)
    for index in classes:
        cy, cx = draws.uniform(0.25, 0.75, 2) * (height, width)
        ry, rx = draws.uniform(0.12, 0.35, 2) * (height, width)
        distance = np.hypot((y - cy) / ry, (x - cx) / rx) + _noise(draws, height, width, 7)[..., 0] * 0.15
        mask[distance < 1.03] = 255
        mask[distance < 1] = index + 1
    return mask


def _noise(draws: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """(H, W, 3) smooth noise with about `cells` cells per side."""
    coarse = torch.from_numpy(draws.normal(size=(1, 3, cells, cells)).astype(np.float32))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(-3, 3)[0].permute(1, 2, 0).numpy()


def draw_dataset(root: Path, n: int, n_classes: int = 20, sizes: Sequence[tuple[int, int]] = SIZES,
                 masks: Sequence[Path] = (), per_image: int | None = None,
                 folders: tuple[str, str] = ("images", "masks")) -> Dataset:
    """A data set of `n` pictures in `folders` under `root`, with one or two classes each, or `per_image`; all are in "train".

    With `masks` (palette PNGs) the pictures have the shapes, sizes and classes of the masks.
    """
    pictures, drawn = folders
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
    labels = {}
    for number in range(n):
        image_id = f"{number:06d}"
        if masks:
            mask = read_mask(masks[number % len(masks)])
        else:
            draws = np.random.default_rng(number)
            present = draws.choice(n_classes, per_image or 1 + (draws.random() < 0.5), replace=False)
            mask = drawn_mask(*sizes[number % len(sizes)], present.tolist(), number)
        labels[image_id] = tuple(int(value) - 1 for value in np.unique(mask) if 0 < value < 255)
        write_mask(root / drawn / f"{image_id}.png", mask)
        Image.fromarray(picture(mask, number)).save(root / pictures / f"{image_id}.jpg", quality=92)
    ids = tuple(labels)
    return Dataset(name="drawn", root=root, classes=tuple(f"class{i}" for i in range(n_classes)),
                   lists={"train": ids, "val": (), "all": ids}, labels=labels,
                   image_files={image_id: f"{pictures}/{image_id}.jpg" for image_id in ids},
                   mask_files={image_id: f"{drawn}/{image_id}.png" for image_id in ids})
