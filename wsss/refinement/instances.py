"""Instances from semantic maps: pixels are grouped by the centroid that IRN's displacements lead to, with a walk per group.

Paper: Ahn, Cho & Kwak, CVPR 2019, section 4.2 and supplement; official file: irn (a2ece00) `step/make_ins_seg_labels.py`. As
there: only the displacement of the unmirrored image, bilinear steps that stop at the border, rounding only at the end; one
common group for all pixels whose centroid has a strong displacement; small fragments are kept with score 0. Differs because the
official code crashes for an image without a detection, and gives NaN, which wins every pixel, for all-zero maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from wsss.cams.maps import from_stride_4
from wsss.errors import ArgumentError
from wsss.refinement.walk import random_walk

AT_ONCE = 32  # maps in one random walk: limits the memory for tens of groups


@dataclass(frozen=True)
class Detections:
    """The instances detected on one image. They come from an argmax and do not overlap, so one label map holds all masks.

    score: (n,) float32 in [0, 1], 0 for small fragments. classes: (n,) int64, 0-based. label: (H, W) of the smallest unsigned
    type that holds n: i + 1 for detection i, 0 for none. n may be 0.
    """

    score: np.ndarray
    classes: np.ndarray
    label: np.ndarray

    def masks(self) -> np.ndarray:
        """(n, H, W) bool, as in the official files."""
        return self.label == np.arange(1, len(self.score) + 1)[:, None, None]


def nothing_detected(size: tuple[int, int]) -> Detections:
    """Empty detections for an image of (H, W) pixels."""
    return Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(size, np.uint8))


def refine_centroids(displacement: np.ndarray, iterations: int = 300) -> np.ndarray:
    """The end point of each pixel after following the displacements step by step (official `find_centroids_with_refinement`).

    displacement: (2, h, w) float32, (down, right) in pixels of this grid. In each of `iterations` steps (paper: any number above
    100) a pixel moves by the displacement at its real-valued position, bilinearly interpolated, and is clipped to the grid.
    Returns (2, h, w) int64, rows and columns, rounded half to even. A pixel that does not move in one step never moves again,
    so only moving pixels are updated: the same numbers in less time.

    Raises ArgumentError for another shape or for numbers that are not finite.
    """
    displacement = _checked(displacement)
    height, width = displacement.shape[1:]
    position = np.indices((height, width), dtype=np.float32).reshape(2, -1)
    limit, moving = np.array([[height - 1], [width - 1]], np.float32), np.arange(height * width)
    for _ in range(iterations):
        before = position[:, moving]
        after = np.clip(before + _interpolated(displacement, before), 0, limit)
        position[:, moving] = after
        moving = moving[(after != before).any(axis=0)]
        if not len(moving):
            break
    return np.rint(position).astype(np.int64).reshape(2, height, width)


def _interpolated(displacement: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(2, n) float32: the displacement at real-valued positions (2, n), summed in the official order."""
    low, high = np.floor(position).astype(np.int64), np.ceil(position).astype(np.int64)
    (y0, x0), (y1, x1), (fy, fx) = low, high, position - low.astype(np.float32)
    return (displacement[:, y1, x1] * fy * fx + displacement[:, y1, x0] * fy * (1 - fx)
            + displacement[:, y0, x1] * (1 - fy) * fx + displacement[:, y0, x0] * (1 - fy) * (1 - fx))


def group_pixels(centroids: np.ndarray, displacement: np.ndarray, threshold: float = 2.5) -> np.ndarray:
    """The group of each pixel, (h, w) int64 from 0 to K - 1 (official `cluster_centroids`).

    4-connected pixels with a displacement (2, h, w) shorter than `threshold` (pixels; supplement of the paper) form a centre;
    pixels whose `centroids` (2, h, w) are in the same centre form a group. Pixels whose centroid is in no centre form one common
    group, number 0 (as in the official code).
    """
    displacement = _checked(displacement)
    centres, _ = ndimage.label(np.sqrt(displacement[1] ** 2 + displacement[0] ** 2) < threshold)
    groups = np.unique(centres[centroids[0], centroids[1]], return_inverse=True)[1]
    return groups.reshape(displacement.shape[1:])


@torch.no_grad()
def walk_instances(maps: Tensor, groups: np.ndarray, edge: Tensor, frame: Sequence[int], size: Sequence[int], *, beta: float = 10,
                   exp_times: int = 8, radius: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The random walk of every class in every group, and the strongest of them at each pixel.

    maps: (C, h, w) float32, activation maps at stride 4; C may be 0. groups: (h, w) from 0 to K - 1. edge: (h, w) or (1, h, w) in
    [0, 1]. frame: (H, W) of the networks' input; size: (H', W') of the image. The rest as for `random_walk`.
    Returns the maximum (H', W') float32 over the maps after the walk, divided by its own maximum, and its owner (H', W') int64:
    class * K + group, -1 where no map is above 0.

    The official code keeps all C * K maps at full size; here it is `AT_ONCE` at a time, without all-zero maps.
    """
    n_groups, device = int(groups.max()) + 1, maps.device
    strongest, owner = torch.zeros(*size, device=device), torch.full(tuple(size), -1, device=device)
    group = torch.from_numpy(groups).to(device)
    present = [c * n_groups + k for c, seeds in enumerate(maps) for k in group[seeds != 0].unique().tolist()]
    for start in range(0, len(present), AT_ONCE):
        some = present[start:start + AT_ONCE]
        seeds = torch.stack([maps[pair // n_groups] * (group == pair % n_groups) for pair in some])
        walked = random_walk(seeds, edge, beta=beta, exp_times=exp_times, radius=radius)
        value, index = from_stride_4(walked, frame, size).max(dim=0)
        better = value > strongest   # a tie goes to the first, as in an argmax over all
        strongest = torch.where(better, value, strongest)
        owner = torch.where(better, torch.tensor(some, device=device)[index], owner)
    highest = strongest.max()
    return (strongest / highest if highest > 0 else strongest).cpu().numpy(), owner.cpu().numpy()


def detect_instances(strength: np.ndarray, owner: np.ndarray, classes: Sequence[int], n_groups: int, *, background: float = 0.25,
           min_area: float = 0.01) -> Detections:
    """Detect the instances (official argmax with a background map, then `detect_instance`).

    strength, owner: (H, W) of `walk_instances` for the classes (C,), 0-based, and `n_groups` groups. A pixel belongs to its
    owner if the strength is above `background`; the 4-connected components of an owner are instances. The score is the
    greatest strength inside, or 0 for a component that covers less than `min_area` of the image. Instances are in the official
    order: by class, by group, then by the first pixel.
    """
    clear, label = strength > np.float32(background), np.zeros(owner.shape, np.int64)
    owners: list[int] = []
    for each in np.unique(owner[clear]):
        parts, count = ndimage.label(clear & (owner == each))
        label[parts > 0] = parts[parts > 0] + len(owners)
        owners += [each] * count
    label = label.astype(np.min_scalar_type(len(owners)))
    score = np.zeros(len(owners) + 1, np.float32)
    np.maximum.at(score, label.reshape(-1), strength.reshape(-1))
    score[np.bincount(label.reshape(-1), minlength=len(score)) < min_area * label.size] = 0
    return Detections(score[1:], np.asarray(classes, np.int64)[np.array(owners, np.int64) // n_groups], label)


def _checked(displacement: np.ndarray) -> np.ndarray:
    displacement = np.asarray(displacement, np.float32)
    finite = bool(np.isfinite(displacement).all())
    if displacement.ndim != 3 or len(displacement) != 2 or not displacement.size or not finite:
        raise ArgumentError(f"displacement is {displacement.shape}{'' if finite else ' and not finite'}; expected finite numbers "
                            "(2, h, w), down and right, as IRN's displacement branch returns them")
    return displacement
