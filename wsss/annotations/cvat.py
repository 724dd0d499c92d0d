"""CVAT's "Segmentation mask 1.1": upload `annotations.zip` to a task whose images are those in `images/`.

The archive has `labelmap.txt`, `ImageSets/Segmentation/default.txt`, `SegmentationClass/NAME.png` in the colours of the table,
and `SegmentationObject/NAME.png`, in which each class of an image is one object. They are in the folder as well.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.annotations import MASKS, Options, Sheet
from wsss.annotations.colours import LIST, painted, write_labelmap
from wsss.files import write_text

IMAGES, SHAPES = "images", (MASKS,)
_PARTS = ("SegmentationClass", "SegmentationObject")


def write(folder: Path, sheets: Iterable[Sheet], options: Options) -> None:
    seen, listed = set(), []
    for sheet in sheets:
        objects = np.zeros_like(sheet.mask)
        for number, (value, region) in enumerate(sheet.regions(), start=1):
            seen.add(value)
            objects[region] = number
        for part, numbers in zip(_PARTS, (sheet.mask, objects)):
            path = folder / part / f"{sheet.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(painted(numbers)).save(path)   # RGB: not every reader looks up a palette
        listed.append(f"{sheet.name}\n")
    write_text(folder / LIST / "default.txt", "".join(listed))
    write_labelmap(folder, seen, options)
    with zipfile.ZipFile(folder / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for part in (*_PARTS, "ImageSets", "labelmap.txt")
                           for path in ((folder / part).rglob("*") if (folder / part).is_dir() else [folder / part])):
            archive.write(path, path.relative_to(folder))
