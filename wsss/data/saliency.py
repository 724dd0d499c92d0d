"""Saliency maps of a data set (`Dataset.saliency`): for each image a grey picture of what stands out in it, by another program.

`ID.png`, 8-bit grey in the size of the image, 0 background to 255, as of PoolNet, whose maps EDAM uses.
"""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.headers import DAMAGE, read_header
from wsss.data.messages import format_size, refuse
from wsss.errors import DataError
from wsss.map_files.files import ends_of
from wsss.reading import open_regular

_SUFFIX = ".png"


def find_saliency(folder: Path, dataset: Dataset) -> dict[str, str]:
    """id -> file, for `Dataset.saliency`, in the order of the data set. Files of other images are left out: such a folder often
    has more. The files are not read.

    Raises DataError if the folder cannot be read or has no map of any image.
    """
    try:
        names = {name for name in os.listdir(folder) if name.endswith(_SUFFIX)}
    except OSError as error:
        raise DataError(f"data.saliency={folder} cannot be read ({error.strerror or error}); expected a folder of saliency maps "
                        "ID.png: check its name, or leave it out") from error
    found = {image_id: str((folder / f"{image_id}{_SUFFIX}").absolute()) for image_id in dataset.image_files
             if f"{image_id}{_SUFFIX}" in names}
    if not found:
        example = next(iter(dataset.image_files), "ID")
        raise DataError(f"data.saliency={folder} has no map of any image of data set {dataset.name}; expected ID.png, such as "
                        f"{example}.png: name the folder that holds the maps themselves, or leave it out")
    return found


def check_saliency(dataset: Dataset, ids: Collection[str]) -> None:
    """Raise one DataError for all of `ids` whose map is missing, not 8-bit grey or not of the size of the image, by headers."""
    problems = []
    for image_id in ids:
        if image_id not in dataset.saliency:
            problems.append(f"no saliency map of {image_id!r}; add {image_id}{_SUFFIX}")
            continue
        path = Path(dataset.saliency[image_id])
        try:
            header = read_header(path, path)
        except DataError as error:
            problems.append(str(error))
            continue
        if (header.format, header.mode, header.bits) != ("PNG", "L", 8):
            problems.append(f"{path.name} is {header.format} {header.mode} with {header.bits} bits, expected an 8-bit grey PNG")
        elif header.size != (expected := dataset.size(image_id)):
            problems.append(f"{path.name} is {format_size(header.size)} but its image is {format_size(expected)} as shown; save "
                            "it in that size")
    refuse(f"saliency maps of data set {dataset.name} (data.saliency)", problems)


def read_saliency(dataset: Dataset, image_id: str, size: tuple[int, int]) -> np.ndarray:
    """The map of an image at a size (H, W), bilinear, as uint8. Raises DataError if it cannot be read."""
    path = Path(dataset.saliency[image_id])
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return np.array(image.convert("L").resize(size[::-1], Image.Resampling.BILINEAR))
    except DAMAGE as error:
        raise DataError(f"saliency map {path} is truncated or damaged ({error}); restore it") from error


def digest_of_saliency(dataset: Dataset) -> str:
    """The digest of all maps: id, size, first and last 4 KiB of each, as of images. Raises DataError if one cannot be read."""
    digest = hashlib.sha256()
    for image_id, file in dataset.saliency.items():
        digest.update(f"{image_id}\t".encode() + ends_of(Path(file)))
    return digest.hexdigest()
