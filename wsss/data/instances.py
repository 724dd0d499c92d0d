"""Ground-truth objects from PNGs, as an `ObjectSource`."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from wsss.data.dataset import MaskSource
from wsss.data.images import image_size, read_mask, read_numbers
from wsss.data.messages import format_size, refuse
from wsss.errors import DataError
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

_IGNORE_16 = 65535   # of 16-bit numbers, as 255 of 8-bit ones


@dataclass(frozen=True)
class PngObjects:
    """Objects in palette or grey PNGs, VOC's `SegmentationObject` or a folder's `instances/`: an object number,
    0 and 255 none (of 16 bits: 0 and 65535).

    `files` and `class_files`: id -> file below `root`. The class of an object is the most frequent value of its pixels in the
    class mask, not counting 0 and 255.
    """

    root: Path
    files: Mapping[str, str]
    class_files: Mapping[str, str]
    n_classes: int
    class_masks: MaskSource | None = None   # None: the class files are PNGs of class numbers
    max_pixels: int | None = None           # of an object file, as of an image
    memory: ClassVar[int] = 0

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.files

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Masks (M, H, W) bool and classes (M,) int64, 0-based.

        Raises DataError, naming the file, for one that cannot be read or does not fit its class mask.
        """
        path, class_path = self.root / self.files[image_id], self.root / self.class_files[image_id]
        numbers = read_numbers(path, max_pixels=self.max_pixels)
        if numbers.ndim == 3:
            raise DataError(f"objects {path} are in colour; expected object numbers in a palette or grey PNG: save the numbers")
        values = read_mask(class_path) if self.class_masks is None else self.class_masks.read(image_id)
        unscored = IGNORE if numbers.dtype == np.uint8 else _IGNORE_16
        if numbers.shape != values.shape:
            raise DataError(f"objects {path} are {format_size(numbers.shape)} but the mask {class_path} is "
                            f"{format_size(values.shape)}; save both in the size of the image")
        masks, classes = [], []
        for number in np.unique(numbers[(numbers != 0) & (numbers != unscored)]):
            inside = numbers == number
            counts = np.bincount(values[inside], minlength=256)[1:IGNORE]
            if not counts.any() or counts.argmax() >= self.n_classes:
                raise DataError(f"object {number} of {path} has no class: the mask {class_path} is 0 (background), 255 (ignore) "
                                f"or beyond the {self.n_classes} classes there; correct one of the two")
            masks.append(inside)
            classes.append(int(counts.argmax()))
        return np.array(masks, bool).reshape(-1, *numbers.shape), np.array(classes, np.int64)

    def digest(self, image_id: str) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for path in (self.root / name for name in (self.files[image_id], self.class_files[image_id]) if name):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"cannot read the objects {path}: {error.strerror or error}; restore the file, or do without "
                                "eval_ins_seg") from error
            digest.update(len(content).to_bytes(8, "big") + content)
        if self.class_masks is not None and getattr(self.class_masks, "table", None):   # without a table the files say it all
            digest.update(self.class_masks.digest(image_id).encode())
        return digest.hexdigest()


def png_objects(root: Path, files: Mapping[str, str], class_files: Mapping[str, str], images: Mapping[str, str], n_classes: int,
                check: bool = True, class_masks: MaskSource | None = None,
                max_pixels: int | None = None) -> PngObjects | None:
    """The objects of the `images` (id -> file) that have an object file and a class mask; None if there are none.

    With `check`, raises DataError if a file cannot be read or differs in size from its image.
    """
    bare = [image_id for image_id in images if image_id in files and image_id not in class_files]
    if bare and class_files:
        log.warning("%s: the objects of %d images are ignored, because the images have no class mask, for example %s; add its "
                    "mask", root, len(bare), bare[0])
    files, problems = {image_id: files[image_id] for image_id in images if image_id in files and image_id in class_files}, []
    for image_id, file in files.items() if check else ():
        try:
            sizes = [image_size(root / name) for name in (file, images[image_id])]
        except DataError as error:
            problems.append(str(error))
            continue
        if sizes[0] != sizes[1]:
            problems.append(f"objects {file} are {format_size(sizes[0])} but {images[image_id]} is {format_size(sizes[1])} as "
                            "shown; save them in that size")
    refuse(f"objects of {root}", problems)
    return PngObjects(root, files, class_files, n_classes, class_masks, max_pixels) if files else None
