"""Shapes and textures for the figures of the embedded data set: signed distances (negative inside) and fields."""

import math

import numpy as np
from PIL import Image

# Distances, in the units of x and y.

def disc(x, y, cx=0.0, cy=0.0, rx=1.0, ry=None):
    ry = rx if ry is None else ry
    return (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * min(rx, ry)


def box(x, y, cx, cy, half_width, half_height, corner=0.0):
    dx, dy = abs(x - cx) - half_width + corner, abs(y - cy) - half_height + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def polygon(x, y, *points):
    """A convex polygon with corners in clockwise order on the screen."""
    distance = np.full_like(x, -np.inf)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        distance = np.maximum(distance, ((bx - ax) * (ay - y) - (by - ay) * (ax - x)) / math.hypot(bx - ax, by - ay))
    return distance


def union(*distances):
    return np.minimum.reduce(distances)


def rotate(x, y, angle):
    cos, sin = math.cos(angle), math.sin(angle)  # Python numbers: NumPy's would make the arrays float64
    return x * cos + y * sin, y * cos - x * sin


# Textures.

def noise(rng, shape, cell, stretch=1.0):
    """(H, W) smooth noise of standard deviation about 1: random values at a spacing of `cell` (x: times `stretch`), interpolated.
    """
    height, width = (max(2, int(side / c) + 2) for side, c in zip(shape, (cell, cell * stretch)))
    coarse = Image.fromarray(rng.standard_normal((height, width), dtype=np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC)) * 1.3


def around(rng, colour, spread=0.04):
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 1).astype(np.float32)


def tinted(colour, *fields):
    """Colour (3,) brightened by the sum of the fields (H, W) -> (H, W, 3)."""
    return np.asarray(colour, np.float32) * (1 + sum(fields)).astype(np.float32)[..., None]


def blend(light, dark, field):
    """Interpolate between two colours: `light` where the field (H, W) is 1, `dark` where it is -1 -> (H, W, 3)."""
    share = (0.5 + 0.5 * field).astype(np.float32)[..., None]
    return np.asarray(dark, np.float32) + share * (np.asarray(light, np.float32) - np.asarray(dark, np.float32))


def steep(field, slope=4.0):
    """The field with its zero crossings as soft steps, in -1..1."""
    return np.clip(slope * field, -1, 1)


def bricks(x, y, length, height, joint):
    """1 in the joints of a brick wall, else 0."""
    row = np.floor(y / height)
    return ((y % height < joint) | ((x + row % 2 * length / 2) % length < joint)).astype(np.float32)
