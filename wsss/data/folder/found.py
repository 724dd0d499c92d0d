"""What the annotations of a folder say: classes, labels, and shapes that masks are drawn from."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wsss.errors import DataError
from wsss.palette import IGNORE

_EDGES = 4096   # of a polygon that are drawn at once
_LIMIT = 1e7    # of a coordinate, in pixels
_MOST_SIDE = 2**20   # of an image, in pixels


@dataclass(frozen=True)
class Shape:
    """A region of a class: polygons, each (N, 2) x and y of its corners in pixels, or run lengths `runs` of COCO's order. One
    with a higher `order` covers others."""

    value: int   # in the mask: class + 1, or 255
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()
    runs: tuple[int, ...] | None = None
    order: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Drawing:
    """The shapes of an image of `size` (H, W)."""

    size: tuple[int, int]
    shapes: tuple[Shape, ...]

    def mask(self) -> np.ndarray:
        """(H, W) uint8: ignored regions first, then the shapes by their order and by area, so that a small object on a large one
        stays visible (as `render` of COCO's `clean` masks)."""
        regions = [(region(shape, self.size), shape) for shape in self.shapes]
        mask = np.zeros(self.size, np.uint8)
        for inside, shape in sorted(regions, key=lambda drawn: (drawn[1].value != IGNORE, drawn[1].order, -int(drawn[0].sum()))):
            mask[inside] = shape.value
        return mask


@dataclass(frozen=True)
class Found:
    """Labels of a folder: where they are from, the classes in the order of mask values, and the labels of the images named."""

    source: str
    classes: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    drawings: Mapping[str, Drawing] = field(default_factory=dict)   # id -> shapes, of images all of whose objects have one
    files: Mapping[str, str] = field(default_factory=dict)          # id -> the file of its drawing
    parts: Mapping[str, str] = field(default_factory=dict)          # id -> the list, train or val, that its file is named after


@dataclass(frozen=True)
class DrawnMasks:
    """Masks that are drawn from shapes, as the `MaskSource` of a data set."""

    drawings: Mapping[str, Drawing]

    def read(self, image_id: str) -> np.ndarray:
        return self.drawings[image_id].mask()

    def digest(self, image_id: str) -> str:
        drawing = self.drawings[image_id]
        orders = [shape.order for shape in drawing.shapes]   # apart, so that runs on data without any stay valid
        return hashlib.blake2b(f"{drawing}{orders if any(orders) else ''}".encode(), digest_size=16).hexdigest()


def region(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels whose centre is in a polygon, by the even-odd rule, or those of the run lengths."""
    if shape.runs is not None:
        values = np.arange(len(shape.runs)) % 2 == 1   # of columns, from background
        return np.repeat(values, shape.runs).reshape(size[::-1]).T
    inside = np.zeros(size, bool)
    for polygon in shape.polygons:
        inside |= _filled(np.array(polygon, np.float64), size)
    return inside


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """(H, W) as whole numbers above 0. Raises DataError for others."""
    size = int(height), int(width)
    if not 1 <= min(size) <= max(size) <= _MOST_SIDE:
        raise DataError(f"an image is {str(height)[:20]} high and {str(width)[:20]} wide; expected numbers of pixels above 0")
    return size


def corners_of(points: object) -> tuple[tuple[float, float], ...]:
    """The corners x and y of a polygon. Raises DataError for fewer than three, and for no numbers, or too large ones."""
    try:
        array = np.asarray(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"a polygon is {str(points)[:60]}; expected pairs of numbers: correct or remove it") from error
    if len(array) < 3 or not (np.abs(array) < _LIMIT).all():
        raise DataError(f"a polygon has {len(array)} corners; expected three or more, in pixels: correct or remove it")
    return tuple((x, y) for x, y in array.tolist())


def _filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, axis=0).T
    rows = np.arange(size[0])[:, None] + 0.5
    crossings = np.zeros((size[0], size[1] + 1), np.int32)
    for first in range(0, len(x), _EDGES):   # of a polygon with a million corners not all at once
        part = slice(first, first + _EDGES)
        row, edge = np.nonzero((y[part] <= rows) != (next_y[part] <= rows))   # the edges that the centre line of a row crosses
        edge += first
        share = (row + 0.5 - y[edge]) / (next_y[edge] - y[edge])
        at = np.ceil(x[edge] + share * (next_x[edge] - x[edge]) - 0.5)   # the first pixel whose centre is behind the crossing
        np.add.at(crossings, (row, np.clip(at, 0, size[1]).astype(int)), 1)
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def run_lengths(mask: np.ndarray) -> tuple[int, ...]:
    """COCO's run lengths of a mask (H, W) bool: column by column, beginning with background."""
    flat = mask.T.reshape(-1)
    bounds = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), flat.size]
    return (*([0] if flat[0] else []), *(int(count) for count in np.diff(bounds)))


def found_shapes(classes: Sequence[str], labels: Mapping[str, set[str]], shapes: Mapping[str, list[tuple[str, Shape | None]]],
                 sizes: Mapping[str, tuple[int, int]], origin: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `Found` from the names and shapes of each image: drawings of the images all of whose objects have a shape."""
    index = {name: i for i, name in enumerate(classes)}
    drawings = {}
    for image_id, drawn in shapes.items():
        if all(shape is not None for _, shape in drawn):
            drawings[image_id] = Drawing(sizes[image_id], tuple(replace(shape, value=shape.value or index[name] + 1)
                                                                for name, shape in drawn if shape is not None))
    if not any(drawing.shapes for drawing in drawings.values()):   # boxes or flags alone
        drawings = {}
    return {"labels": {image_id: tuple(sorted(index[name] for name in present)) for image_id, present in labels.items()},
            "drawings": drawings, "files": {image_id: origin[image_id] for image_id in drawings}}
