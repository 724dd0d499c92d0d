"""The description of a data set. VOC, COCO, a user's folder and the embedded set are all a `Dataset`; steps see no difference.

Mask values: 0 background, i + 1 for class i (0-based), 255 ignore. There are two frames: the *original* frame of the files and
ground-truth masks, and the *working* frame of networks and stored maps, in which the long side of the image is between
`min_side` and `max_side`.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from wsss.data.ids import read_list
from wsss.data.images import Levels, image_size, mask_classes, read_image, read_mask, resize_image, scaled_size
from wsss.data.messages import did_you_mean, format_size
from wsss.errors import DataError
from wsss.palette import IGNORE

MAX_CLASSES = IGNORE - 1  # foreground, in masks
Box = tuple[int, float, float, float, float]   # class, 0-based; x0, y0, x1, y1: first and last pixel in the original frame
_END_BYTES = 4096  # of an image file, at each end, for its digest: header with orientation, and the last pixels


class ObjectSource(Protocol):
    """A source of the objects of a data set (`wsss.data.instances`): the ids with objects, the objects of an id, a digest of
    their files, and the bytes of memory that reading takes in addition to the masks."""

    @property
    def memory(self) -> int: ...

    def __contains__(self, image_id: str) -> bool: ...

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]: ...

    def digest(self, image_id: str) -> str: ...


class MaskSource(Protocol):
    """How the masks of a data set are made from its files where these are not PNGs of class numbers: the mask of an id
    (H, W) uint8, of a size and values that `Dataset.mask` checks, and a digest of everything that it depends on."""

    def read(self, image_id: str) -> np.ndarray: ...

    def digest(self, image_id: str) -> str: ...


@dataclass(frozen=True, eq=False)
class Dataset:
    """Ids, classes, image-level labels, files and lists. Paths are relative to `root`; files are read on demand."""

    name: str
    root: Path
    classes: tuple[str, ...]  # foreground; class i is mask value i + 1
    lists: Mapping[str, tuple[str, ...]] = field(repr=False)  # at least "train", "val" (may be empty) and "all"
    labels: Mapping[str, tuple[int, ...]] = field(repr=False)  # id -> classes present, 0-based, ascending
    image_files: Mapping[str, str] = field(repr=False)  # id -> file
    mask_files: Mapping[str, str] = field(repr=False, default_factory=dict)  # id -> file, or "" where none is needed
    unlabelled: frozenset[str] = field(repr=False, default=frozenset())  # ids whose classes are not known: theirs are ()
    max_side: int | None = None  # maximum of the long side of the working frame, in pixels; None: no limit
    min_side: int | None = None  # minimum of the long side
    objects: ObjectSource | None = field(repr=False, default=None)  # ground-truth objects, if there are any
    box_lists: Mapping[str, tuple[Box, ...]] = field(repr=False, default_factory=dict)  # for the ids with ground-truth boxes
    mask_source: MaskSource | None = field(repr=False, default=None)   # None: the files are PNGs of class numbers
    levels: Levels | None = None  # of images with more than 8 bits: the values that become black and white
    max_pixels: int | None = None  # of an image; None: Pillow's limit
    read_from: Mapping[str, str] = field(repr=False, default_factory=dict)  # part -> the files and their form, to show
    corrections: Mapping[str, str] = field(repr=False, default_factory=dict)  # id -> file of a mask corrected by hand
    saliency: Mapping[str, str] = field(repr=False, default_factory=dict)  # id -> file (`wsss.data.saliency`)
    _digests: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.classes or (self.mask_files and len(self.classes) > MAX_CLASSES):
            raise DataError(f"data set {self.name}: {len(self.classes)} classes; expected at least 1, and with masks, which are "
                            f"8-bit, at most {MAX_CLASSES}: correct the classes, or do without masks")
        if self.max_side is not None and self.max_side < 1:
            raise DataError(f"data set {self.name}: max_side is {self.max_side}; expected at least 1, or none")
        if self.min_side is not None and not 1 <= self.min_side <= (self.max_side or self.min_side):
            raise DataError(f"data set {self.name}: min_side is {self.min_side}; expected 1 to max_side={self.max_side}, or none")
        if missing := {"train", "val", "all"} - set(self.lists):
            raise DataError(f"data set {self.name}: no list {sorted(missing)}; expected train, val and all")
        for name, ids in self.lists.items():
            if incomplete := [i for i in ids if i not in self.image_files or i not in self.labels]:
                raise DataError(f"data set {self.name}: {len(incomplete)} ids of list {name} have no image or no label, "
                                f"for example {incomplete[0]!r}; expected both: add them, or remove these ids from the list")

    def image_path(self, image_id: str) -> Path:
        """The image file. Raises DataError for an unknown id."""
        if image_id not in self.image_files:
            raise DataError(f"data set {self.name} has no image with id {image_id!r} (root {self.root}); expected one of its "
                            f"{len(self.image_files)} ids: they are in its list 'all'")
        return Path(self.root, self.image_files[image_id])

    def mask_path(self, image_id: str) -> Path | None:
        """The ground-truth mask file, or None if there is none."""
        return Path(self.root, self.mask_files[image_id]) if self.mask_files.get(image_id) else None

    def has_masks(self, ids: Sequence[str]) -> bool:
        """Whether `ids` is not empty and every id has a ground-truth mask."""
        return len(ids) > 0 and all(image_id in self.mask_files for image_id in ids)

    def full_image(self, image_id: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB in the original frame."""
        return read_image(self.image_path(image_id), self.levels, self.max_pixels)

    def image(self, image_id: str) -> np.ndarray:
        """(h, w, 3) uint8 RGB in the working frame: resized by Pillow's bicubic filter so that the long side is at least
        `min_side` and at most `max_side`."""
        return self.in_working_frame(self.full_image(image_id))

    def in_working_frame(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB, which need not be of the data set, as `image` returns it."""
        return resize_image(image, self._working(image.shape[:2]))

    def size(self, image_id: str) -> tuple[int, int]:
        """(H, W) of the original frame, read from the file header."""
        return image_size(self.image_path(image_id))

    def working_size(self, image_id: str) -> tuple[int, int]:
        """(h, w) of the working frame."""
        return self._working(self.size(image_id))

    def _working(self, size: tuple[int, int]) -> tuple[int, int]:
        long_side = max(size)
        wanted = max(min(long_side, self.max_side or long_side), self.min_side or 1)
        return size if wanted == long_side else scaled_size(size, wanted / long_side)

    def mask(self, image_id: str) -> np.ndarray:
        """Ground truth (H, W) uint8 in the original frame: 0 background, 1..C class, 255 ignore.

        Raises DataError if there is none, if its size is not the image's, or if it holds other values.
        """
        if image_id not in self.mask_files:
            raise DataError(f"data set {self.name} has no mask for id {image_id!r}; add one, or leave out the evaluation steps")
        path = Path(self.root, self.mask_files[image_id])
        mask = read_mask(path) if self.mask_source is None else self.mask_source.read(image_id)
        if mask.shape != (expected := self.size(image_id)):
            raise DataError(f"mask {path} is {format_size(mask.shape)} but its image is {format_size(expected)} as shown; "
                            "save the mask in that size")
        mask_classes(mask, len(self.classes), path)
        return mask

    def correction(self, image_id: str) -> np.ndarray:
        """The mask that was corrected by hand, (H, W) uint8 in the original frame, as `mask`. Raises DataError as `mask`."""
        path = Path(self.corrections[image_id])
        mask = read_mask(path)
        if mask.shape != (expected := self.size(image_id)):
            raise DataError(f"corrected mask {path} is {format_size(mask.shape)} but its image is {format_size(expected)} as "
                            "shown; save it in that size, or remove it")
        mask_classes(mask, len(self.classes), path)
        return mask

    @cached_property
    def uncorrected(self) -> "Dataset":
        """The data set without corrected masks."""
        if not self.corrections:
            return self
        without = replace(self, corrections={})
        without._digests.update(self._digests)
        return without

    def has_instances(self, image_id: str) -> bool:
        """Whether the data set has ground-truth objects of an image, which may be an empty list."""
        return self.objects is not None and image_id in self.objects

    def instances(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The objects of an image: masks (M, H, W) bool in the original frame, and classes (M,) int64, 0-based. M may be 0.

        Raises DataError if they are not known, cannot be read, or are not of the image's size.
        """
        if self.objects is None or image_id not in self.objects:
            raise DataError(f"data set {self.name} has no ground-truth objects for id {image_id!r}; add them, or leave "
                            "out eval_ins_seg")
        masks, classes = self.objects.read(image_id)
        if masks.shape[1:] != (expected := self.size(image_id)):
            raise DataError(f"the objects of {image_id!r} in data set {self.name} are {format_size(masks.shape[1:])} but its "
                            f"image is {format_size(expected)} as shown; save them in that size")
        return masks, classes

    def has_boxes(self, ids: Sequence[str]) -> bool:
        """Whether `ids` is not empty and every id has ground-truth boxes, of which there may be none."""
        return len(ids) > 0 and all(image_id in self.box_lists for image_id in ids)

    def boxes(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """The ground-truth boxes of an image: (M, 4) float64, x0, y0, x1, y1, the first and the last pixel in the original frame
        counted from 0, and classes (M,) int64, 0-based. M may be 0.

        Raises DataError if they are not known.
        """
        if image_id not in self.box_lists:
            raise DataError(f"data set {self.name} has no ground-truth boxes for id {image_id!r}; add them, or leave "
                            "out eval_loc")
        found = self.box_lists[image_id]
        return (np.array([box[1:] for box in found], np.float64).reshape(-1, 4),
                np.array([box[0] for box in found], np.int64))

    def list_ids(self, name_or_path: str | Path) -> tuple[str, ...]:
        """The ids of a named list or of a text file with one id per line. Raises DataError if it is neither, and as `read_list`.
        """
        if str(name_or_path) in self.lists:
            ids = self.lists[str(name_or_path)]
            if not ids:
                raise DataError(f"list {name_or_path!r} of data set {self.name} is empty; name another: {self._list_names}")
            return ids
        if not Path(name_or_path).is_file():
            raise DataError(f"data set {self.name} has no list {str(name_or_path)!r} and there is no such file; expected one of "
                            f"{self._list_names} or a text file with one id per line"
                            + did_you_mean(str(name_or_path), self.lists))
        return read_list(Path(name_or_path), self.image_files)

    @property
    def _list_names(self) -> str:
        return ", ".join(name for name, ids in self.lists.items() if ids)

    def label_vector(self, image_id: str) -> np.ndarray:
        """(C,) float32, 1 for each class present: the image-level label."""
        vector = np.zeros(len(self.classes), np.float32)
        vector[list(self.labels[image_id])] = 1
        return vector

    def digest_of_image(self, image_id: str) -> str:
        """Hex digest of the size, start and end of an image file, which is not read completely."""
        return self._cached("image", image_id, lambda: _digest_ends(self.image_path(image_id)))

    def digest_of_images(self, ids: Sequence[str]) -> str:
        """Hex digest of the `digest_of_image` of the ids, in order."""
        return _digest(map(self.digest_of_image, ids))

    def digest_of_labels(self, ids: Sequence[str]) -> str:
        """Hex digest of the ids, in order, and their present classes. Reads no file."""
        return _digest(f"{image_id}\t{self.labels[image_id]}" for image_id in ids)

    def digest_of_masks(self, ids: Sequence[str]) -> str:
        """Hex digest of the ids and the bytes of their mask files; an id without a mask is included as such."""
        return _digest(f"{image_id}\t{self._mask_digest(image_id)}" for image_id in ids)

    def digest_of_correction(self, image_id: str) -> str:
        """Hex digest of the pixels' file of a corrected mask."""
        return self._cached("correction", image_id, lambda: digest_file(Path(self.corrections[image_id])))

    def digest_of_corrections(self, ids: Sequence[str]) -> str:
        """Hex digest of those of the ids that have a corrected mask, and of the masks."""
        return _digest(f"{image_id}\t{self.digest_of_correction(image_id)}" for image_id in ids if image_id in self.corrections)

    def digest_of_instances(self, ids: Sequence[str]) -> str:
        """Hex digest of everything that the objects of these ids depend on; an id without objects is included as such."""
        return _digest(f"{i}\t{self.objects.digest(i) if self.objects is not None and i in self.objects else 'none'}"
                       for i in ids)

    def digest_of_boxes(self, ids: Sequence[str]) -> str:
        """Hex digest of the boxes of these ids; an id without boxes is included as such."""
        return _digest(f"{image_id}\t{self.box_lists.get(image_id, 'none')}" for image_id in ids)

    def _mask_digest(self, image_id: str) -> str:
        if image_id not in self.mask_files:
            return "none"
        if self.mask_source is not None:
            return self._cached("mask", image_id, partial(self.mask_source.digest, image_id))
        return self._cached("mask", image_id, lambda: digest_file(Path(self.root, self.mask_files[image_id])))

    def _cached(self, kind: str, image_id: str, digest: Callable[[], str]) -> str:
        """Compute a digest once per `Dataset`, that is once per call of the pipeline."""
        if (kind, image_id) not in self._digests:
            self._digests[kind, image_id] = digest()
        return self._digests[kind, image_id]


def _digest_ends(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(_END_BYTES)
            file.seek(max(0, size - _END_BYTES))
            return _digest_bytes(head + file.read(_END_BYTES) + f"{size}".encode())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; restore the image, or remove its id") from error


def digest_file(path: Path) -> str:
    """Hex digest of a mask file. Raises DataError if it cannot be read."""
    try:
        return _digest_bytes(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read the mask {path}: {error.strerror or error}; restore it, or do without masks") from error


def _digest_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
