"""The boxes of an activation map.

A box is x0, y0, x1, y1: its first and last column and row, counted from 0. The rules are those of the evaluation of Choe et al.,
CVPR 2020 (wsolevaluation, `evaluation.py`), of the CAM paper (Zhou et al., CVPR 2016), and of its released program
(`bboxgenerator/dt_box.cpp`). OpenCV is not used; `contour_boxes` gives the rectangles of its contours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DT_THRESHOLDS = (20, 100, 110)         # of the grey map: zhoubolei/CAM, py_generate_bbox.py, bbox_threshold
_EIGHT = np.ones((3, 3), int)          # pixels that touch at a corner are connected, as in OpenCV; those of holes are not


def score_map(values: np.ndarray) -> np.ndarray:
    """A map (H, W) as scores in [0, 1], float32: minus its minimum, divided by its maximum; a constant map is 0 everywhere
    (wsolevaluation `inference.py`, normalize_scoremap)."""
    values = np.asarray(values, np.float32)
    values = values - values.min()
    greatest = values.max()
    return values / greatest if greatest > 0 else values


def thresholds_at(interval: float) -> np.ndarray:
    """The thresholds 0, interval, 2 interval, ... below 1 (T,), float64: shares of the maximum."""
    return np.arange(0, 1, interval)


@dataclass(frozen=True)
class Found:
    """The boxes of a map at T thresholds: those of threshold t are `boxes[at[t]]`, (M, 4) int64, the main one first, M >= 1."""

    boxes: Sequence[np.ndarray]
    at: np.ndarray      # (T,) int64


Rule = Callable[[np.ndarray], np.ndarray]   # of a mask (H, W) bool: its boxes (M, 4) int64, the main one first


def contour_boxes(mask: np.ndarray) -> np.ndarray:
    """The bounding boxes of all contours of a mask (H, W) bool, as `cv2.findContours` with RETR_TREE finds them.

    A contour is the outer border of an 8-connected component, or the border of a hole, which runs on the pixels around it. The
    first box is that of the contour with the largest `cv2.contourArea`, which is never that of a hole: a component has at least
    the area of its holes. The others are in no defined order.

    Returns:
        (M, 4) int64; M is 0 for an empty mask.
    """
    from scipy import ndimage

    (y0, x0), part = _cropped(mask)
    labels, number = ndimage.label(part, _EIGHT)
    boxes, holes = _boxes_of(labels), number > 0 and _euler(part) < number
    if number > 1:
        first = _largest(labels, boxes, holes)
        boxes = np.concatenate([boxes[first:first + 1], np.delete(boxes, first, 0)])
    if holes:
        around = _boxes_of(_gaps(part))[1:] - 1 + np.array([-1, -1, 1, 1])   # without the padding, and on the pixels around
        boxes = np.concatenate([boxes, around])
    return boxes + np.array([x0, y0, x0, y0])


def component_boxes(mask: np.ndarray) -> np.ndarray:
    """The bounding boxes (M, 4) int64 of the 8-connected components of a mask (H, W) bool, the one with most pixels first (CAM
    paper, section 3.2: the box that covers the largest connected component)."""
    from scipy import ndimage

    (y0, x0), part = _cropped(mask)
    labels, _ = ndimage.label(part, _EIGHT)
    boxes = _boxes_of(labels) + np.array([x0, y0, x0, y0])
    return boxes[np.argsort(-np.bincount(labels.ravel())[1:], kind="stable")]


def boxes_above(score: np.ndarray, thresholds: np.ndarray, rule: Rule, grey: bool) -> Found:
    """The boxes of the parts of a map that are above shares of its maximum.

    Args:
        score: (H, W) in [0, 1].
        thresholds: (T,) shares, ascending.
        rule: `contour_boxes` or `component_boxes`.
        grey: as wsolevaluation, in 256 levels: `uint8(255 score) > int(threshold * maximum)`; else `score > threshold * maximum`.

    Returns:
        The boxes; a part that is empty has the box 0, 0, 0, 0, as in wsolevaluation.
    """
    if grey:
        score = (score * 255).astype(np.uint8)
        limits = (thresholds * score.max()).astype(int)
    else:
        limits = thresholds * score.max()
    above = score.size - np.searchsorted(np.sort(score, axis=None), limits, side="right")   # (T,) pixels: equal, the same part
    _, first, at = np.unique(above, return_index=True, return_inverse=True)
    found = [rule(score > limits[t]) for t in first]
    return Found([boxes if len(boxes) else np.zeros((1, 4), np.int64) for boxes in found], at)


def dt_boxes(score: np.ndarray) -> Found:
    """The loose and the tight box of a map (H, W) in [0, 1] by the program released with the CAM paper (`dt_box.cpp`, `dt.c`).

    The grey map is cut at three levels (`DT_THRESHOLDS`), and each part to the pixels whose distance from its outside is above
    10/255 of the greatest. The boxes of all contours, at least 5 pixels away from the right and lower side, are ranked by area,
    and a box is left out if it shares more than half of the area with a larger one. The first one is the loose box; the second
    one is the tight box, and the same as the first if there is no other, where the official script fails.

    Differs from a build with OpenCV before 3.2, whose contours ignore the outermost pixels. Like the program, it does not compare
    the box that follows a removed one. Equal areas keep the order of the contours, which is not defined.
    """
    from scipy import ndimage

    grey, (height, width), boxes = (score * 255).astype(np.uint8), score.shape, []
    for limit in DT_THRESHOLDS:
        mask = grey > limit
        if mask.any() and not mask.all():
            distance = ndimage.distance_transform_edt(mask)
            mask = np.floor(distance * (255 / distance.max()) + 0.5) > 10
        for x0, y0, x1, y1 in contour_boxes(mask).tolist():
            x, y = min(x0, max(0, width - 5)), min(y0, max(0, height - 5))
            boxes.append((x, y, x + min(x1 - x0 + 1, max(0, width - x0 - 5)), y + min(y1 - y0 + 1, max(0, height - y0 - 5))))
    boxes.sort(key=lambda box: -_area(box))
    for i in range(len(boxes)):
        j = i + 1
        while j < len(boxes):
            if _overlap(boxes[i], boxes[j]) > int(max(_area(boxes[i]), _area(boxes[j])) / 2):
                del boxes[j]
            j += 1
    found = np.array([*boxes[:1], *(boxes[1:2] or boxes[:1])] or [(0, 0, 0, 0)] * 2, np.int64)
    return Found([found], np.zeros(1, np.int64))


def clipped(found: Found, size: Sequence[int]) -> Found:
    """The boxes as wsolevaluation has them, in a frame of `size` (H, W): the last column and row are one too far, and at most
    W - 1 and H - 1. The box of an empty part stays 0, 0, 0, 0."""
    most = np.array([size[1] - 1, size[0] - 1])

    def one(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], np.minimum(boxes[:, 2:] + boxes.any(1, keepdims=True), most)], 1)
    return Found([one(boxes) for boxes in found.boxes], found.at)


def scaled(boxes: np.ndarray, size: Sequence[int], frame: Sequence[int]) -> np.ndarray:
    """Boxes (M, 4) of an image of `size` (H, W) in a frame (H', W'), (M, 4) int64: multiplied and truncated (wsolevaluation
    `evaluation.py`, resize_bbox)."""
    height, width = size
    return (boxes * np.array([frame[1], frame[0]] * 2, np.float64) / np.array([width, height] * 2)).astype(np.int64)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The intersection over union (N, M) of boxes (N, 4) and (M, 4); the last column and row belong to a box."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.maximum(0, high - low + 1).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def _boxes_of(labels: np.ndarray) -> np.ndarray:
    """The bounding boxes (M, 4) int64 of the labels 1..M."""
    from scipy import ndimage

    slices = ndimage.find_objects(labels)
    return np.array([(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in slices], np.int64).reshape(-1, 4)


def _cropped(mask: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """The upper left corner (y, x) and the content of the bounding box of a mask: the fewer pixels, the faster."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return (0, 0), mask[:1, :1]
    return (int(rows[0]), int(columns[0])), mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _euler(mask: np.ndarray) -> int:
    """The number of 8-connected components minus that of their holes, from the squares of four pixels (Gray 1971)."""
    padded = np.pad(mask, 1).view(np.uint8)
    rows = padded[1:] + padded[:-1]
    squares = rows[:, 1:] + rows[:, :-1]
    diagonal = (squares == 2) & (rows[:, 1:] == 1) & (padded[1:, 1:] != padded[1:, :-1])
    return (int((squares == 1).sum()) - int((squares == 3).sum()) - 2 * int(diagonal.sum())) // 4


def _gaps(mask: np.ndarray) -> np.ndarray:
    """The 4-connected parts of what is not in a mask, in a frame that is a pixel wider on each side: 1 is outside, others are
    holes."""
    from scipy import ndimage

    return ndimage.label(np.pad(~mask, 1, constant_values=True))[0]


def _largest(labels: np.ndarray, boxes: np.ndarray, holes: bool) -> int:
    """The index of the component with the largest contour. Components are tried from the largest box down, until no box can hold
    a larger contour; of equal ones the last, which OpenCV lists first. `holes`: whether some component has a hole."""
    limits = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    best, largest = -1.0, 0
    for index in np.lexsort((-np.arange(len(boxes)), -limits)):
        if limits[index] < best:
            break
        x0, y0, x1, y1 = boxes[index]
        area = _contour_area(labels[y0:y1 + 1, x0:x1 + 1] == index + 1, holes) if limits[index] else 0.0
        if area > best or area == best and index > largest:
            best, largest = area, int(index)
    return largest


def _contour_area(component: np.ndarray, holes: bool) -> float:
    """`cv2.contourArea` of the outer border of a component (h, w) bool: the polygon through the centres of its border pixels,
    with its holes. Of the squares between four centres it covers those with four, and half of those with three pixels."""
    filled = ((_gaps(component) != 1)[1:-1, 1:-1] if holes else component).view(np.uint8)
    rows = filled[1:] + filled[:-1]
    squares = rows[:, 1:] + rows[:, :-1]
    return float((squares == 4).sum() + (squares == 3).sum() / 2)


def _area(box: Sequence[int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Sequence[int], b: Sequence[int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
