"""Straight paths between the pixels of a grid, and their composition from shorter paths (IRN's `PathIndex`).

The official code (irn a2ece00, `misc/indexing.py`) gathers every pixel of every path through index tensors: 2,134 reads per
pixel at radius 10. Here the extremum along a path is computed from the maps of extrema along shorter paths: 176 element-wise
operations on slices. This file handles positions only; values are in `affinity.py`.
"""

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

Window = tuple[slice, slice]  # of the last two axes
Direction = tuple[int, int]  # (dy, dx) from the source pixel of a pair to its destination
Pixels = frozenset[tuple[int, int]]  # (row, column) inside a path's bounding box


class Part(NamedTuple):
    """A part of a path that is itself a path; (0, 0) is a single pixel."""

    direction: Direction
    down: int  # offset of its bounding box in the box of the whole path
    right: int


@lru_cache
def path_pixels(direction: Direction) -> Pixels:
    """The pixels at a distance below 1 from the straight line from source to destination, both included."""
    dy, dx = direction
    left = min(dx, 0)
    columns = range(left, max(dx, 0) + 1)
    return frozenset((y, x - left) for y in range(dy + 1) for x in columns if (dy * x - dx * y) ** 2 < max(dy * dy + dx * dx, 1))


@lru_cache
def search_paths(radius: int) -> dict[Direction, tuple[Part, ...]]:
    """The paths from a pixel to all others nearer than `radius`, each with parts that cover exactly its pixels.

    Only to the right and down, as in the official `PathIndex`: the opposite directions are the same pairs. 34 for radius 5, 152
    for radius 10. The parts of a path come before it; they may overlap, which does not change a maximum.
    """
    reach = range(1 - radius, radius)
    directions = [(y, x) for y in range(radius) for x in reach if (y > 0 or x > 0) and y * y + x * x < radius * radius]
    directions.sort(key=lambda direction: (direction[0], abs(direction[1])))
    paths: dict[Direction, tuple[Part, ...]] = {}
    for dy, dx in directions:
        pixels, candidates = path_pixels((dy, dx)), {}
        for shorter in [*reversed(paths), (0, 0)]:
            for down in range(dy - shorter[0] + 1):
                for right in range(abs(dx) - abs(shorter[1]) + 1):
                    part = frozenset((y + down, x + right) for y, x in path_pixels(shorter))
                    if part <= pixels:
                        candidates[Part(shorter, down, right)] = part
        paths[dy, dx] = _cover(pixels, candidates)
    return paths


@lru_cache
def search_rows(radius: int) -> dict[int, list[int]]:
    """The dx of all directions of `search_paths` by their dy, ascending and without gaps."""
    rows: dict[int, list[int]] = {}
    for dy, dx in sorted(search_paths(radius)):
        rows.setdefault(dy, []).append(dx)
    return rows


def _cover(pixels: Pixels, candidates: dict[Part, Pixels]) -> tuple[Part, ...]:
    """Two parts that cover exactly these pixels if there are any, else a greedy cover by more."""
    for first, second in combinations(candidates, 2):
        if candidates[first] | candidates[second] == pixels:
            return first, second
    parts, rest = [], pixels
    while rest:
        parts.append(max(candidates, key=lambda part: len(candidates[part] & rest)))
        rest -= candidates[parts[-1]]
    return tuple(parts)


def sources(direction: Direction, height: int, width: int) -> Window:
    """The sources of the pairs of a direction inside a grid."""
    dy, dx = direction
    left = max(-dx, 0)
    return slice(0, max(height - dy, 0)), slice(left, left + max(width - abs(dx), 0))
