"""Average precision of detected instances: by PASCAL VOC's rule in NumPy, and by COCO's with the optional pycocotools.

Ground truth is masks (M, H, W) bool and classes (M,), 0-based. Pixels of no object, including VOC's void boundary, count in the
union of a detection that covers them, as in the official evaluation.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from wsss.errors import ArgumentError, BackendError
from wsss.refinement.instances import Detections


class InstancePrecision:
    """VOC's average precision at one IoU threshold: the area under the precision-recall curve.

    The rule is that of chainercv's `eval_instance_segmentation_voc` with `use_07_metric=False`, which IRN calls at 0.5
    (`step/eval_ins_seg.py`). In each image the detections of a class are matched, best score first, to the object of greatest
    overlap; a match that reaches the threshold is right unless the object was matched before. Then all images are ranked
    together. Equal scores keep the order of the images and of the detections within one (chainercv's sort is unstable).
    """

    def __init__(self, n_classes: int, iou: float = 0.5):
        self.iou = iou
        self.objects = np.zeros(n_classes, np.int64)    # of the ground truth, by class
        self._scores: list[list[float]] = [[] for _ in range(n_classes)]
        self._right: list[list[bool]] = [[] for _ in range(n_classes)]

    @property
    def detections(self) -> int:
        return sum(map(len, self._scores))

    def update(self, found: Detections, masks: np.ndarray, classes: Sequence[int] | np.ndarray) -> None:
        """Count one image. Raises ArgumentError if shapes or classes do not fit."""
        classes = checked_truth(found, masks, classes, len(self.objects))
        overlap = intersection_over_union(found, masks)
        self.objects += np.bincount(classes, minlength=len(self.objects))
        for index in np.unique(found.classes):
            mine, truth = np.flatnonzero(found.classes == index), np.flatnonzero(classes == index)
            mine, taken = mine[np.argsort(-found.score[mine], kind="stable")], set()
            for i in mine:
                chosen = truth[overlap[i, truth].argmax()] if len(truth) else None
                right = chosen is not None and overlap[i, chosen] >= self.iou
                self._right[index].append(right and chosen not in taken)
                taken |= {chosen} if right else set()
            self._scores[index] += found.score[mine].tolist()

    def average_precision(self) -> tuple[list[float | None], float | None]:
        """AP of each class in [0, 1], None for a class without an object, and their mean."""
        each = [precision_area(np.array(scores), np.array(right, bool), int(objects)) if objects else None
                for scores, right, objects in zip(self._scores, self._right, self.objects, strict=True)]
        known = [ap for ap in each if ap is not None]
        return each, float(np.mean(known)) if known else None


def intersection_over_union(found: Detections, masks: np.ndarray) -> np.ndarray:
    """(n, M) float64: the overlap of every detection with every mask (M, H, W) bool."""
    n = len(found.score)
    common = np.array([np.bincount(found.label[mask], minlength=n + 1)[1:] for mask in masks]).reshape(len(masks), n).T
    areas = np.bincount(found.label.reshape(-1), minlength=n + 1)[1:, None]
    return common / (areas + masks.sum(axis=(1, 2)) - common)


def precision_area(scores: np.ndarray, right: np.ndarray, objects: int) -> float:
    """The area under the precision-recall curve of detections (n,), each right or not, when there are `objects` objects.

    The precision at a recall is the greatest at this or any higher recall (PASCAL VOC since 2010). n may be 0.
    """
    hits = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float(np.sum(np.diff(hits / objects, prepend=0.0) * precision))


class CocoPrecision:
    """COCO's average precision, by pycocotools: 101 recalls, at most 100 detections per image, greedy matching to free objects.

    `InstancePrecision` differs in all three points. Crowds are not objects here and must be left out of the ground truth;
    detections on them count as wrong.

    Raises BackendError without pycocotools.
    """

    def __init__(self, n_classes: int):
        self._api = pycocotools()
        self._n_classes = n_classes
        self._images: list[dict[str, int]] = []
        self._true: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(self, found: Detections, masks: np.ndarray, classes: Sequence[int] | np.ndarray) -> None:
        """Count one image. Raises ArgumentError if shapes or classes do not fit."""
        classes = checked_truth(found, masks, classes, self._n_classes)
        number = len(self._images) + 1
        self._images.append({"id": number, "height": found.label.shape[0], "width": found.label.shape[1]})
        self._true += [self._annotation(number, index, mask) for index, mask in zip(classes, masks)]
        self._found += [{**self._annotation(number, index, found.label == i), "score": float(score)}
                        for i, (index, score) in enumerate(zip(found.classes, found.score), start=1)]

    def average_precision(self) -> dict[str, float | None]:
        """`ap50`, at an IoU of 0.5, and `ap`, the mean over 0.50, 0.55, ..., 0.95; both means over the classes with objects."""
        if not self._true:
            return {"ap50": None, "ap": None}
        with contextlib.redirect_stdout(io.StringIO()):   # it prints tables
            evaluation = self._api.cocoeval.COCOeval(self._indexed(self._true), self._indexed(self._found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {"ap50": float(evaluation.stats[1]), "ap": float(evaluation.stats[0])}

    def _annotation(self, image: int, index: int, mask: np.ndarray) -> dict[str, Any]:
        coded = self._api.mask.encode(np.asfortranarray(mask, np.uint8))
        return {"image_id": image, "category_id": int(index) + 1, "segmentation": coded, "area": int(mask.sum()), "iscrowd": 0}

    def _indexed(self, annotations: list[dict[str, Any]]) -> Any:
        coco = self._api.coco.COCO()
        coco.dataset = {"images": self._images, "categories": [{"id": i + 1} for i in range(self._n_classes)],
                        "annotations": [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]}
        coco.createIndex()
        return coco


def pycocotools() -> Any:
    """The package with its modules. Raises BackendError if it is not installed."""
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise BackendError(f"pycocotools cannot be imported ({error}); COCO's average precision needs it: run "
                           "pip install pycocotools, or set eval_ins_seg.coco_style=false") from error
    return pycocotools


def checked_truth(found: Detections, masks: np.ndarray, classes: Sequence[int] | np.ndarray, n_classes: int) -> np.ndarray:
    """The classes of the ground truth as (M,) int64. Raises ArgumentError if shapes or classes do not fit."""
    classes = np.asarray(classes, np.int64).reshape(-1)
    given = np.concatenate([classes, found.classes])
    if masks.shape != (len(classes), *found.label.shape) or masks.dtype != bool or ((given < 0) | (given >= n_classes)).any():
        raise ArgumentError(f"detections on {found.label.shape}, masks {masks.dtype} {masks.shape}, classes "
                            f"{np.unique(given).tolist()}: expected bool masks (M, H, W) of the same size, and classes from 0 to "
                            f"{n_classes - 1}")
    return classes
