"""The objects of COCO 2014, read from its annotations; drawing them needs pycocotools."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.boxes import coco_box
from wsss.data.coco_json import read_instances
from wsss.data.coco_layout import CLASS_INDEX, PARTS, annotations_of
from wsss.data.dataset import Box
from wsss.data.rle import decode_rle
from wsss.errors import BackendError, DataError

_PARSED = 7.5  # memory to parse a JSON file, relative to its size: 7.2 measured on 58 MiB of real annotations
_LIMIT = 1e5  # maximum of polygon coordinates, in pixels
_LENGTH = 1e7  # of a polygon's sides in all: pycocotools needs 40 bytes for each pixel of it


@dataclass(frozen=True)
class CocoObjects:
    """Every annotation of an image except crowds is an object; objects may overlap. Crowds are left out, not ignored.

    A JSON file is parsed when its first image is requested, which takes `memory`.
    `part_of`: id -> train2014 or val2014. `digests`: of the JSON files, by name.
    """

    root: Path
    part_of: Mapping[str, str] = field(repr=False)
    digests: Mapping[str, str]
    _parts: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def memory(self) -> int:
        """Bytes to parse the larger JSON file."""
        return round(_PARSED * max(annotations_of(self.root, part).stat().st_size for part in PARTS.values()))

    def __contains__(self, image_id: str) -> bool:
        return image_id in self.part_of

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Masks (M, H, W) bool and classes (M,) int64, 0-based.

        Raises BackendError without pycocotools, DataError for a JSON file or a shape that cannot be read.
        """
        rle, (size, objects) = pycocotools_mask(), self.annotations(image_id)
        masks = np.array([draw(annotation, size, rle) for annotation in objects], bool).reshape(-1, *size)
        return masks, np.array([CLASS_INDEX[annotation["category_id"]] for annotation in objects], np.int64)

    def annotations(self, image_id: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
        """The size (H, W) of an image and its annotations except crowds. Raises DataError for a JSON file that cannot be read."""
        size, annotations = self._part(image_id)[image_id]
        return size, [annotation for annotation in annotations if not annotation.get("iscrowd")]

    def digest(self, image_id: str) -> str:
        """The digest of the whole JSON file, so that a plan does not parse it."""
        return self.digests[annotations_of(self.root, self.part_of[image_id]).name]

    def _part(self, image_id: str) -> dict[str, Any]:
        """id -> size (H, W) and annotations, for the images of the part of `image_id`."""
        name = self.part_of[image_id]
        if name not in self._parts:
            part = read_instances(annotations_of(self.root, name), name)
            self._parts[name] = {stem: (part.sizes[i], part.annotations[i]) for i, stem in part.stems.items()}
        return self._parts[name]


@dataclass(frozen=True, eq=False)
class CocoObjectBoxes(Mapping[str, tuple[Box, ...]]):
    """id -> the boxes of its objects, as in `Dataset.box_lists`. A JSON file is parsed when its first image is requested."""

    objects: CocoObjects

    def __getitem__(self, image_id: str) -> tuple[Box, ...]:
        """Raises KeyError for another image, DataError for a JSON file that cannot be read, or a box that is not in its image."""
        path = annotations_of(self.objects.root, self.objects.part_of[image_id])
        size, annotations = self.objects.annotations(image_id)
        return tuple(coco_box(path, CLASS_INDEX[annotation["category_id"]], annotation.get("bbox"), size, image_id)
                     for annotation in annotations if 0 not in (annotation.get("bbox") or ())[2:])   # a box without extent

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.objects.part_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.objects.part_of)

    def __len__(self) -> int:
        return len(self.objects.part_of)


def pycocotools_mask() -> Any:
    """The module `pycocotools.mask`. Raises BackendError without pycocotools."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise BackendError(f"pycocotools cannot be imported ({error}); drawing COCO's masks and objects needs it: run pip "
                           "install pycocotools") from error
    return mask


def draw(annotation: Mapping[str, Any], size: tuple[int, int], rle: Any) -> np.ndarray:
    """The mask (H, W) bool of an annotation of polygons or run lengths; `rle` is `pycocotools.mask`. DataError for others."""
    try:
        shape = annotation["segmentation"]
        if isinstance(shape, list):
            _check_polygons(shape)
            return rle.decode(rle.merge(rle.frPyObjects(shape, *size))).astype(bool) if shape else np.zeros(size, bool)
        _check_runs(shape, size)
        return decode_rle(shape)   # pycocotools trusts the run lengths
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"annotation {annotation['id']} of image {annotation['image_id']} cannot be drawn ({error}); expected "
                        "polygons of three corners or more, or run lengths of the image's size") from error


def _check_polygons(polygons: Sequence[Sequence[float]]) -> None:
    for polygon in polygons:
        numbers = np.asarray(polygon, np.float64)
        if numbers.ndim != 1 or numbers.size < 6 or numbers.size % 2 or not (np.abs(numbers) < _LIMIT).all() or \
                np.abs(np.diff(numbers.reshape(-1, 2), axis=0)).sum() > _LENGTH:
            raise DataError(f"a polygon is {str(polygon)[:60]}, expected x, y, x, y, ... of its corners in pixels")


def _check_runs(shape: Mapping[str, Any], size: tuple[int, int]) -> None:
    counts = shape["counts"]
    if tuple(shape["size"]) != size or (isinstance(counts, list) and sum(counts) != size[0] * size[1]):
        raise DataError(f"its run lengths are for {tuple(shape['size'])} pixels, the image is {size}")
