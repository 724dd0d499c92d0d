"""The crops of an image whose features `action=features` computes, and their boxes."""

import numpy as np

from wsss.metrics.boxes import component_boxes

FULL, BOX, FOUND = CROPS = ("full", "box", "found")   # the whole image, its ground-truth box, the box found by a map
Box = tuple[int, int, int, int]   # x0, y0, x1, y1: first and last pixel


def largest_box(saliency: np.ndarray, share: float) -> Box | None:
    """The box around the largest connected part of a map (H, W) above a share of its maximum (CAM paper, section 3.2), as
    eval_loc finds it; None if the map has no positive value."""
    boxes = component_boxes(saliency > share * saliency.max()).tolist()
    return tuple(boxes[0]) if boxes else None


def largest_of(boxes: np.ndarray) -> Box | None:
    """The largest of the boxes (M, 4) of an image, in whole pixels; None without any."""
    if not len(boxes):
        return None
    x0, y0, x1, y1 = boxes[((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax()]
    return int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1))


def cropped(image: np.ndarray, box: Box | None) -> np.ndarray:
    """The part of an image (H, W, 3) in a box, at least one pixel; all of it for None."""
    if box is None:
        return image
    x0, y0 = (min(max(0, first), side - 1) for first, side in zip(box[:2], image.shape[1::-1]))
    return np.ascontiguousarray(image[y0:max(box[3], y0) + 1, x0:max(box[2], x0) + 1])
