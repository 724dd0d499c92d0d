"""Scores of segmentations and of image labels, accumulated image by image.

Integer counts are accumulated, which can be added over shards; any score is computed from them. The definitions are those of
the official evaluation (IRN and LPCAM `step/eval_cam.py`, `step/eval_sem_seg.py`, chainercv's confusion).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsss.errors import ArgumentError, DataError
from wsss.palette import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLDS = tuple(i / 100 for i in range(101))
MEASURES = {"miou": "mIoU", "fp": "FP", "fn": "FN", "precision": "precision", "recall": "recall"}   # headings of `Scores`


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix. Undefined values are None and left out of means; all are, if the truth has no class.

    gt_j, pred_j, tp_j are the pixels of class j and union_j = gt_j + pred_j - tp_j. `fp` and `fn` as in LPCAM, table 1.
    """

    miou: float | None  #: mean of `iou`, with the background
    iou: list[float | None]  #: tp / union, background first
    fp: float | None  #: mean over the foreground classes of 1 - gt / union
    fn: float | None  #: mean over the foreground classes of 1 - pred / union
    precision: float | None  #: mean over the foreground classes of tp / pred
    recall: float | None  #: mean over the foreground classes of tp / gt

    def as_dict(self) -> dict[str, float | None | list[float | None]]:
        """The scores as a JSON-serialisable dictionary."""
        return asdict(self)


class Confusion:
    """Confusion matrix of `n_classes` classes and the background.

    Attributes:
        counts: (C + 1, C + 1) int64, pixels by ground truth (row) and prediction (column); 0 is the background.
    """

    def __init__(self, n_classes: int, counts: np.ndarray | None = None):
        self.n_classes = _checked_n_classes(n_classes)
        self.counts = _checked_counts(counts, (n_classes + 1, n_classes + 1))

    def update(self, prediction: np.ndarray, ground_truth: np.ndarray, prediction_ignore: str = "error") -> None:
        """Count one image, or several of one shape.

        Args:
            prediction: integers, 0 background, 1..C class, 255 see below.
            ground_truth: the same shape; pixels of 255 are not counted.
            prediction_ignore: how a predicted 255 counts: "error" refuses it, "background" counts it as background (official
                eval_sem_seg for VOC), "ignore" leaves the pixel out.

        Raises:
            DataError: a label is not in 0..C or 255. ArgumentError: the shapes differ or the policy is unknown.
        """
        if prediction_ignore not in ("error", "background", "ignore"):
            raise ArgumentError(f"prediction_ignore is {prediction_ignore!r}, expected 'error', 'background' or 'ignore'")
        predicted, true = _labels(prediction, "prediction"), _labels(ground_truth, "ground_truth")
        if predicted.shape != true.shape:
            raise ArgumentError(f"prediction has shape {predicted.shape}, ground_truth {true.shape}, expected the same")
        table = np.bincount((true.astype(np.int32) * 256 + predicted).ravel(), minlength=256 * 256).reshape(256, 256)
        _check_labels(table.sum(axis=1), self.n_classes, "ground_truth")
        _check_labels(table.sum(axis=0), self.n_classes, "prediction")
        if prediction_ignore == "error" and table[:, IGNORE].any():
            raise DataError(
                f"prediction holds 255 (ignore) in {table[:, IGNORE].sum()} pixels, expected 0 to {self.n_classes}; "
                "set prediction_ignore to 'background' or 'ignore' to choose how they count"
            )
        if prediction_ignore == "background":
            table[:, 0] += table[:, IGNORE]
        self.counts += table[: self.n_classes + 1, : self.n_classes + 1]

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.n_classes, self.counts + _checked_counts(other.counts, self.counts.shape))

    @property
    def present(self) -> np.ndarray:
        """Which labels (C + 1,) the ground truth has."""
        return self.counts.sum(axis=1) > 0

    def scores(self, only_present: bool = False) -> Scores:
        """The scores of all labels: one that no image has but is predicted has 0, as in chainercv. With `only_present` of
        the labels that the ground truth has (deeplab-pytorch, 4219467: libs/utils/metric.py)."""
        counts = self.counts * (self.present | (not only_present))   # without the columns of other labels
        gt, pred, tp = self.counts.sum(axis=1), counts.sum(axis=0), self.counts.diagonal()
        union = gt + pred - tp
        iou = _ratio(tp, union)
        if not self.present[1:].any():   # background alone: no score says anything of a class
            return Scores(None, [None] * len(iou), None, None, None, None)
        return Scores(miou=_mean(iou), iou=[_number(value) for value in iou],
                      fp=_mean(1 - _ratio(gt, union)[1:]), fn=_mean(1 - _ratio(pred, union)[1:]),
                      precision=_mean(_ratio(tp, pred)[1:]), recall=_mean(_ratio(tp, gt)[1:]))

    def among_predfg_bg(self) -> float | None:
        """Share of the pixels predicted as a class that are background (official eval_cam)."""
        return _number(_ratio(self.counts[0, 1:].sum(), self.counts[:, 1:].sum()))


class ThresholdCounts:
    """Confusion of activation maps at every background threshold, in one pass.

    A pixel belongs to the class of the greatest map if that exceeds the threshold, else to the background. This is the
    official rule, an argmax with a constant background map of the threshold in front: a tie with the threshold is
    background, a tie between classes goes to the first of them. The greatest class does not depend on the threshold,
    so it is enough to count for each pixel how many thresholds it exceeds.

    Args:
        n_classes: C, without the background.
        thresholds: (T,) increasing, in [0, 1], compared in float32 as in the official code.
        counts: initial counts, for example stored ones; default zeros.

    Attributes:
        counts: (C + 1, C + 1, T + 1) int64, pixels by ground truth, greatest class (0: the image has no map) and number
            of thresholds below the greatest map.
    """

    def __init__(self, n_classes: int, thresholds: Sequence[float] = THRESHOLDS, counts: np.ndarray | None = None):
        import torch

        self.n_classes = _checked_n_classes(n_classes)
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self._values = torch.tensor(self.thresholds, dtype=torch.float32)  # (T,)
        gaps = self._values.diff()
        if not self.thresholds or not 0 <= self.thresholds[0] <= self.thresholds[-1] <= 1 or not (gaps >= 1e-5).all():
            raise ArgumentError(f"thresholds is {self.thresholds}, expected increasing numbers from 0 to 1, at least 1e-5 apart")
        # [0, 1] is divided into cells with at most one threshold each; a power of two, so that a value's cell is exact.
        self._n_cells = 2 ** math.ceil(-math.log2(min([0.5, *gaps.tolist()])))
        starts = torch.arange(self._n_cells + 1) / self._n_cells
        self._below = torch.bucketize(starts, self._values, out_int32=True)  # (cells,), thresholds below the cell
        self._next = torch.cat([self._values, torch.tensor([math.inf])])[self._below]  # (cells,), the next threshold
        self.counts = _checked_counts(counts, (n_classes + 1, n_classes + 1, len(self.thresholds) + 1))

    def update(self, maps: Tensor | np.ndarray, classes: Sequence[int], ground_truth: np.ndarray) -> None:
        """Count one image.

        Args:
            maps: (K, H, W) float32 in [0, 1], on any device; K may be 0: all background.
            classes: (K,) 0-based; a tie goes to the first.
            ground_truth: (H, W) integers, 0 background, 1..C class, 255 not counted.

        Raises:
            DataError: a label is not in 0..C or 255. ArgumentError: shapes do not fit, a class is unknown or repeated,
                or a map is not finite.
        """
        import torch

        maps, true = torch.as_tensor(maps), _labels(ground_truth, "ground_truth")
        classes = [int(c) for c in classes]
        if maps.ndim != 3 or maps.shape != (len(classes), *true.shape):
            found = f"maps {tuple(maps.shape)}, {len(classes)} classes, ground_truth {true.shape}"
            raise ArgumentError(f"{found}: expected (K, H, W), K and (H, W)")
        if len(set(classes)) != len(classes) or not set(classes) <= set(range(self.n_classes)):
            raise ArgumentError(f"classes is {classes}, expected different numbers from 0 to {self.n_classes - 1}")
        slots = [c + 1 for c in classes] or [0]
        best, index = _greatest(maps.float() if classes else torch.zeros(1, *true.shape))  # (H * W,) each
        width = len(self.thresholds) + 1
        row = torch.from_numpy(true).to(best.device).flatten().int()
        place = (row * len(slots) + index) * width + self._passed(best)
        table = torch.bincount(place, minlength=256 * len(slots) * width).view(256, len(slots), width).cpu().numpy()
        _check_labels(table.sum(axis=(1, 2)), self.n_classes, "ground_truth")
        self.counts[:, slots] += table[: self.n_classes + 1]

    def _passed(self, values: Tensor) -> Tensor:
        """The number of thresholds below each value, int32."""
        below, following = self._below.to(values.device), self._next.to(values.device)
        cell = values.clamp(0, 1).mul_(self._n_cells).int()
        return below.index_select(0, cell).add_(values > following.index_select(0, cell))

    def __add__(self, other: ThresholdCounts) -> ThresholdCounts:
        if self.thresholds != other.thresholds:
            raise ArgumentError(f"the counts to add were made at different thresholds: {len(self.thresholds)} and "
                                f"{len(other.thresholds)} of them; expected the same ones on both sides")
        return ThresholdCounts(self.n_classes, self.thresholds, self.counts + _checked_counts(other.counts, self.counts.shape))

    def confusion(self, i: int) -> Confusion:
        """The confusion matrix at threshold number `i`, equal to that of the thresholded maps."""
        counts = np.zeros(self.counts.shape[:2], dtype=np.int64)
        counts[:, 1:] = self.counts[:, 1:, range(len(self.thresholds) + 1)[i] + 1 :].sum(axis=2)
        counts[:, 0] = self.counts.sum(axis=(1, 2)) - counts.sum(axis=1)
        return Confusion(self.n_classes, counts)

    def scores(self, i: int) -> Scores:
        """The scores at threshold number `i`."""
        return self.confusion(i).scores()

    def nearest(self, threshold: float) -> int:
        """The index of the threshold nearest to `threshold`; the lower one of two."""
        return min(range(len(self.thresholds)), key=lambda i: abs(self.thresholds[i] - threshold))

    def miou_curve(self) -> list[float | None]:
        """The mIoU at each threshold, (T,)."""
        return [self.scores(i).miou for i in range(len(self.thresholds))]

    def best(self) -> tuple[float, Scores]:
        """(threshold, scores) of the greatest mIoU, at the lowest such threshold. Raises DataError if no pixel was counted."""
        if not self.counts.any():
            raise DataError("no pixel was counted, so there is no best threshold; expected masks that are not 255 everywhere: "
                            "check the masks of the list")
        miou = self.miou_curve()
        best = max(range(len(miou)), key=lambda i: miou[i] or 0.0)
        return self.thresholds[best], self.scores(best)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> tuple[list[float | None], float | None]:
    """Average precision of each class, None for a class without a positive image, and their mean (mAP).

    AP = sum_n (R_n - R_(n-1)) P_n over the distinct scores in descending order, as in scikit-learn, without interpolation.

    Args:
        scores: (N, C), finite, greater means more likely. labels: (N, C) of 0 and 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape or not np.isfinite(scores).all() or not np.isin(labels, (0, 1)).all():
        raise ArgumentError(
            f"scores {scores.shape}, labels {labels.shape}: expected two (N, C), finite scores, labels of 0 and 1"
        )
    each = [_average_precision(s, y.astype(bool)) for s, y in zip(scores.T, labels.T, strict=True)]
    return [_number(ap) for ap in each], _mean(np.array(each))


def _average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # whether a score is the last of its equals
    found = np.cumsum(positive[order])[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / positive.sum())


def _greatest(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(H * W,) greatest value and int32 index of the first map with it; much faster than max(dim=0) on a CPU."""
    import torch

    best, index = maps[0].flatten(), torch.zeros(maps[0].numel(), dtype=torch.int32, device=maps.device)
    for k, challenger in enumerate(maps[1:].flatten(1), start=1):
        index = torch.maximum(index, (challenger > best).int().mul_(k))   # k increases, so the greater index is the later map
        best = torch.maximum(best, challenger)  # keeps a NaN
    if not best.sum().isfinite():
        raise ArgumentError("maps hold NaN or infinite values, expected finite ones; wsss.cams.maps.rebuild never returns such")
    return best, index


def _labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Copy labels to a uint8 array. Raises ArgumentError or DataError for values that do not fit."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "ui":
        raise ArgumentError(f"{name} is {labels.dtype}, expected integers (uint8)")
    if labels.dtype != np.uint8 and labels.size and (labels.min() < 0 or labels.max() > IGNORE):
        raise DataError(f"{name} holds labels from {labels.min()} to {labels.max()}, expected 0 to 255")
    return labels.astype(np.uint8)


def _check_labels(pixels: np.ndarray, n_classes: int, name: str) -> None:
    """Raise DataError for invalid labels; `pixels` (256,) is the number of pixels of each label."""
    wrong = np.flatnonzero(pixels[n_classes + 1 : IGNORE]) + n_classes + 1
    if len(wrong):
        raise DataError(
            f"{name} holds the labels {wrong[:5].tolist()} in {pixels[wrong].sum()} pixels, expected 0 (background), "
            f"1 to {n_classes} and 255 (ignore); check the class list, and that the file holds class numbers, not colours")


def _checked_n_classes(n_classes: int) -> int:
    if not 1 <= n_classes < IGNORE:
        raise ArgumentError(f"n_classes is {n_classes}, expected 1 to {IGNORE - 1}, without the background")
    return n_classes


def _checked_counts(counts: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if counts is None:
        return np.zeros(shape, dtype=np.int64)
    if counts.shape != shape or counts.dtype.kind not in "ui" or counts.min() < 0:
        raise ArgumentError(f"counts is {counts.dtype} {counts.shape}, expected {shape} whole numbers that are not negative")
    return counts.astype(np.int64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64, NaN where `whole` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.float64(part) / whole, np.nan)


def _mean(values: np.ndarray) -> float | None:
    return _number(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else None


def _number(value: float | np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)
