"""Outlines of masks as polygons without holes, which is all that most annotation tools have."""

from typing import cast

import numpy as np


def polygons(region: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """The outlines of the connected parts of `region` (H, W) bool, one polygon (N, 2) float64 each: x and y of its corners in
    pixels, where pixel (row, column) covers column to column + 1 and row to row + 1.

    With a tolerance of 0 the centres of exactly the pixels of the region are inside. Otherwise corners are left out
    (Ramer-Douglas-Peucker) as long as the outline moves by at most `tolerance` pixels; a ring that would vanish stays as it is.
    A hole is joined to its outline by a cut of no width, so that filling by the even-odd rule leaves it open.
    """
    from contourpy import FillType, contour_generator

    padded = np.pad(region, 1).astype(np.float64)
    rows, columns = (np.arange(side) - 0.5 for side in padded.shape)
    filled = contour_generator(columns, rows, padded, fill_type=FillType.OuterOffset).filled(0.5, 2)
    found = []
    for points, offsets in zip(*cast(tuple[list[np.ndarray], list[np.ndarray]], filled)):
        outer, *holes = (simplified(points[first:last - 1], tolerance) for first, last in zip(offsets[:-1], offsets[1:]))
        for hole in holes:
            outer = _with_hole(outer, hole)
        found.append(outer)
    return found


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed ring (N, 2) without the corners that are at most `tolerance` from the line between those that stay."""
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, len(ring)]] = True
    to_do = [(0, far), (far, len(ring))]
    while to_do:
        first, last = to_do.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1:last], closed[first], closed[last])
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            keep[middle] = True
            to_do += [(first, middle), (middle, last)]
    kept = ring[keep[:-1]]
    return kept if len(kept) > 2 else ring


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The distances (N,) of points (N, 2) from the line between two points."""
    along = end - start
    share = np.clip((points - start) @ along / max(float(along @ along), 1e-12), 0, 1)
    return np.hypot(*(points - start - share[:, None] * along).T)


def _with_hole(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring of two, joined between their nearest corners."""
    apart = ((outer[:, None] - hole[None]) ** 2).sum(axis=2)
    at, of = np.unravel_index(int(np.argmin(apart)), apart.shape)
    return np.concatenate([outer[:at + 1], hole[of:], hole[:of + 1], outer[at:]])
