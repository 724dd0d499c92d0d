"""The embedded data set: a folder of synthetic pictures (`wsss.data.drawing`), drawn from a seed on first use."""

import errno
import json
import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from wsss.data.dataset import Dataset
from wsss.data.drawing import CLASSES, VERSION, draw_picture
from wsss.data.images import encode_mask
from wsss.errors import DataError, StorageError
from wsss.reading import parse_json
from wsss.seeding import generator

_BLUR = 3   # pixels, standard deviation; of saliency maps

def make_shapes(root: str | Path, *, seed: int = 0, n_train: int = 300, n_val: int = 100) -> Path:
    """Draw the embedded data set into `root`, with the layout of `open_folder`, unless it exists; return `root`.

    A picture depends only on `seed` and its name. Several processes may call this at once: each draws into its own temporary
    folder next to `root`, and the first one renames it. Raises DataError if `root` has other contents or other parameters,
    StorageError if it cannot be written.
    """
    root = Path(root)
    if n_train < 1 or n_val < 0:
        raise DataError(f"shapes: n_train is {n_train}, n_val is {n_val}; expected at least 1 and at least 0")
    wanted = {"version": VERSION, "seed": seed, "n_train": n_train, "n_val": n_val}
    try:
        if not root.exists() or not any(root.iterdir()):
            _draw_folder(root, lambda temporary: _write_folder(temporary, wanted))
    except OSError as error:
        raise StorageError(f"cannot write the embedded data set to {root}: {error.strerror or error}; make room or make it "
                           "writable, or choose another folder with data.root=DIR") from error
    _check_marker(root, wanted)
    return root


def draw_saliency(dataset: Dataset) -> Path:
    """Draw saliency maps of the embedded data set into its folder `saliency`, unless it exists; return that folder.

    A map is the outline of all objects together, blurred by 3 pixels: it is made of the ground truth, so scores with it show that
    a method works and not how good it is. Raises StorageError if it cannot be written.
    """
    folder = dataset.root / "saliency"

    def write(temporary: Path) -> None:
        temporary.mkdir()
        for image_id in dataset.image_files:
            shown = Image.fromarray(np.where(dataset.mask(image_id) > 0, 255, 0).astype(np.uint8))
            shown.filter(ImageFilter.GaussianBlur(_BLUR)).save(temporary / f"{image_id}.png")
    try:
        if not folder.exists():
            _draw_folder(folder, write)
    except OSError as error:
        raise StorageError(f"cannot write the saliency maps of the embedded data set to {folder}: {error.strerror or error}; "
                           "make room or make it writable, or choose another folder with data.root=DIR") from error
    return folder


def _draw_folder(root, write):
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        os.rename(temporary, root)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # these two: another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_marker(root, wanted):
    try:
        found = parse_json((root / "shapes.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"{root} is not an embedded data set (no shapes.json in it); name another folder or remove it") from None
    if found != wanted:
        raise DataError(f"{root} holds the embedded data set of {found}, not of {wanted}; name another folder or remove it")


def _write_folder(root, parameters):
    for folder in ("images", "masks", "instances"):
        (root / folder).mkdir(parents=True)
    rows = ["name,classes"]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:   # two threads take two thirds of the time of one
        for part in ("train", "val"):
            ids = [f"{part}_{i:04d}" for i in range(parameters[f"n_{part}"])]
            rows += pool.map(lambda image_id: _write_picture(root, image_id, parameters["seed"]), ids)
            if ids:
                (root / f"{part}.txt").write_text("\n".join(ids) + "\n")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "shapes.json").write_text(json.dumps(parameters) + "\n")


def _write_picture(root, image_id, seed):
    """Draw one picture and return its line of labels.csv."""
    image, mask, objects = draw_picture(generator(seed, "shapes", image_id))
    Image.fromarray(image).save(root / "images" / f"{image_id}.jpg", quality=92)
    (root / "masks" / f"{image_id}.png").write_bytes(encode_mask(mask))
    (root / "instances" / f"{image_id}.png").write_bytes(encode_mask(objects))
    return f"{image_id}," + ";".join(list(CLASSES)[value - 1] for value in np.unique(mask) if value)
