"""Scoring maps at 101 thresholds, and the disk space of maps."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.cams import official_cam
from benchmarks.harness import MIB, Case, greatest_difference
from benchmarks.setting import N_CLASSES, Run, drawn
from steps import make_cam
from steps.runtime.artifacts import Maps
from wsss.metrics.semantic import THRESHOLDS, ThresholdCounts


def official_counts(cam: np.ndarray, keys: list[int], truth: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> Tensor:
    """(T, C + 1, C + 1) confusion counts of one image: pad, arg-max and count at each threshold (`step/eval_cam.py`)."""
    counts = np.zeros((len(thresholds), N_CLASSES + 1, N_CLASSES + 1), np.int64)
    ids = np.pad(np.array(keys) + 1, (1, 0))
    for number, threshold in enumerate(thresholds):
        label = ids[np.pad(cam, ((1, 0), (0, 0), (0, 0)), constant_values=threshold).argmax(0)]
        counted = truth < 255
        pairs = (N_CLASSES + 1) * truth[counted].astype(int) + label[counted]
        counts[number] = np.bincount(pairs, minlength=(N_CLASSES + 1) ** 2).reshape(N_CLASSES + 1, N_CLASSES + 1)
    return torch.from_numpy(counts)


def _thresholds(quick: bool) -> Case:
    run = Run(drawn(1, (375, 500), per_image=2), depth="resnet18")
    image_id = run.dataset.lists["train"][0]
    maps, truth = Maps(run.run(make_cam)), run.dataset.mask(image_id)
    soft, keys = maps.at(image_id, "full"), maps.classes(image_id)

    def ours() -> Tensor:
        counts = ThresholdCounts(N_CLASSES)
        counts.update(soft, keys, truth)
        return torch.from_numpy(np.stack([counts.confusion(i).counts for i in range(len(THRESHOLDS))]))
    return Case("375x500, 2 classes, 101 thresholds", ours, lambda: official_counts(soft.numpy(), keys, truth),
                greatest_difference, "arg-max and confusion at each threshold; difference: pixels")


def _against_reading(quick: bool) -> Case:
    run = Run(drawn(2 if quick else 8, (375, 500)), depth="resnet18")
    ids, maps = run.dataset.lists["train"], Maps(run.run(make_cam))

    def read() -> None:
        for image_id in ids:
            maps.at(image_id, "full"), run.dataset.mask(image_id)

    def evaluate() -> None:
        counts = ThresholdCounts(N_CLASSES)
        for image_id in ids:
            counts.update(maps.at(image_id, "full"), maps.classes(image_id), run.dataset.mask(image_id))
    return Case("375x500, 101 thresholds", evaluate, read, against="reading masks and maps alone, these rebuilt at full size",
                form="float16 maps", per=len(ids))


def _disk(quick: bool) -> Case:
    run = Run(drawn(1, (375, 500), per_image=1), depth="resnet18")   # every depth has the same grid
    image_id = run.dataset.lists["train"][0]
    official = sum(tensor.contiguous().nbytes for tensor in official_cam(run, image_id))
    ours = (run.run(make_cam) / f"{image_id}.npy").stat().st_size
    return Case("375x500, 1 class", lambda: None, disk=(official / MIB, ours / MIB), against="both maps in float32, pickled",
                form="float32 -> float16")


BENCHMARKS = {"evaluation": _thresholds, "evaluation_reading": _against_reading, "disk_of_maps": _disk}
