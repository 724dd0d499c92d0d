"""The figures of the embedded data set: a large body that the two classes of a pair share, and a small class-specific head.

Each class has a pattern. On the head it is strong and has class-specific colours; on the body it is only a weak trace. A figure
is a list of layers from back to front: (distance (H, W), negative inside; colour (3,) or (H, W, 3)). Half the length of a body
is 1; y points down.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsss.data.forms import around, blend, box, bricks, disc, noise, polygon, steep, tinted, union

TRACE = 0.065  # standard deviation of the pattern's brightness on the body: higher makes the body reveal the class

Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Look:
    """The differences of a class from the other one of its pair."""

    pattern: Callable   # (x, y, rng) -> (H, W) in -1..1
    light: tuple        # colour of the head where the pattern is 1
    dark: tuple         # colour of the head where the pattern is -1


# Patterns, in the units of a body.

def _stripes(x, y, rng):
    return steep(np.sin(22 * x + 1.5 * np.sin(7 * y) + rng.uniform(0, 6)) + 0.2, 3)


def _spots(x, y, rng):
    u, v = x + 0.04 * np.sin(9 * y), y + 0.04 * np.sin(11 * x)
    return steep(0.35 - np.sin(19 * u + 3 * np.sin(3 * v)) * np.sin(19 * v), 4)


def _patches(x, y, rng):
    return steep(noise(rng, x.shape, 0.16 * _scale(x)) + 0.2, 3)


def _bars(x, y, rng):
    return steep(np.sin(15 * x + 0.6 * np.sin(5 * y)), 3)


def _berries(x, y, rng):
    return steep(np.sin(24 * x + 2 * np.sin(5 * y)) * np.sin(24 * y + 2 * np.sin(4 * x)) - 0.35, 4)


def _blossom(x, y, rng):
    return steep(noise(rng, x.shape, 0.07 * _scale(x)) + 0.3, 3)


def _rays(x, y, rng):
    return steep(np.cos(8 * np.arctan2(y + 0.42, x - 0.1)) * np.cos(14 * np.hypot(x - 0.1, y + 0.42)), 4)


def _beams(x, y, rng):
    return steep(np.minimum(abs(np.sin(7 * (x + y))), abs(np.sin(7 * (x - y)))) - 0.3, 6)


def _scale(x):
    """The number of pixels in half the length of a body."""
    return 1 / max(1e-3, abs(float(x[0, 1] - x[0, 0])) + abs(float(x[1, 0] - x[0, 0])))


LOOKS = {
    "tiger": Look(_stripes, (0.95, 0.6, 0.2), (0.08, 0.05, 0.04)),
    "leopard": Look(_spots, (0.93, 0.78, 0.5), (0.12, 0.07, 0.04)),
    "koi": Look(_patches, (0.96, 0.93, 0.9), (0.88, 0.16, 0.08)),
    "perch": Look(_bars, (0.62, 0.68, 0.3), (0.12, 0.2, 0.12)),
    "rowan": Look(_berries, (0.92, 0.25, 0.1), (0.1, 0.25, 0.1)),
    "hawthorn": Look(_blossom, (0.97, 0.93, 0.95), (0.85, 0.55, 0.65)),
    "chapel": Look(_rays, (0.3, 0.45, 0.85), (0.95, 0.8, 0.25)),
    "farmhouse": Look(_beams, (0.95, 0.92, 0.85), (0.25, 0.14, 0.08)),
}


def _trace(pattern):
    """The trace of a pattern on the body, of equal strength for every class."""
    return TRACE / max(1e-3, float(pattern.std())) * (pattern - pattern.mean())


# Bodies.

def beast(x, y, rng, look):
    """A big cat from the side; the head is class-specific."""
    coat = around(rng, rng.choice([(0.8, 0.52, 0.25), (0.74, 0.46, 0.22), (0.84, 0.57, 0.32)]), 0.025)
    pattern = look.pattern(x, y, rng.spawn(1)[0])   # a separate generator, so that both classes of a pair get the same body
    fur = tinted(coat, 0.06 * noise(rng, x.shape, 2, 2.5), _trace(pattern), -0.15 * y)
    trunk = union(disc(x, y, -0.15, 0, 0.7, 0.4), box(x, y, 0.35, -0.12, 0.25, 0.2, 0.15))
    legs = union(*(box(x, y, leg, 0.42, 0.11, 0.3, 0.08) for leg in (-0.66, -0.4, 0.12, 0.38)))
    tail = polygon(x, y, (-0.75, -0.2), (-0.66, 0.0), (-1.0, 0.42), (-1.08, 0.38))
    head = disc(x, y, 0.67, -0.27, 0.27, 0.25)
    ears = union(disc(x, y, 0.51, -0.49, 0.09), disc(x, y, 0.83, -0.49, 0.09))
    eyes = union(disc(x, y, 0.57, -0.3, 0.045), disc(x, y, 0.77, -0.3, 0.045), disc(x, y, 0.67, -0.14, 0.06))
    face = blend(look.light, look.dark, pattern)
    return [(union(legs, tail), fur * 0.93), (trunk, fur), (ears, np.asarray(look.dark)), (head, face), (eyes, np.full(3, 0.04))]


def fish(x, y, rng, look):
    """A fish from the side; the head is class-specific."""
    skin = around(rng, rng.choice([(0.74, 0.42, 0.44), (0.7, 0.38, 0.46), (0.78, 0.48, 0.46)]), 0.025)
    scales = steep(np.sin(26 * x + 3 * np.sin(13 * y)) * np.sin(26 * y), 2)
    pattern = look.pattern(x, y, rng.spawn(1)[0])
    side = tinted(skin, 0.06 * scales, _trace(pattern), -0.15 * y)
    tail = union(polygon(x, y, (-0.5, 0.0), (-1.0, 0.5), (-0.88, 0.0), (-1.0, -0.5)),
                 polygon(x, y, (-0.5, 0.0), (-1.0, 0.5), (-1.0, 0.1)))
    fins = union(tail, polygon(x, y, (-0.3, -0.3), (-0.1, -0.7), (0.35, -0.35)),
                 polygon(x, y, (-0.1, 0.35), (0.25, 0.38), (-0.05, 0.66)))
    body = disc(x, y, 0.1, 0, 0.86, 0.46)
    head = np.maximum(body, 0.52 - x)
    return [(fins, tinted(skin * 0.85, 0.08 * np.sin(30 * y))), (body, side), (head, blend(look.light, look.dark, pattern)),
            (disc(x, y, 0.68, -0.1, 0.06), np.full(3, 0.03))]


LOBES = ((-0.42, -0.1, 0.42), (0.42, -0.1, 0.42), (0, -0.45, 0.48), (-0.3, -0.45, 0.36), (0.3, -0.45, 0.36), (0, 0, 0.4))


def tree(x, y, rng, look):
    """A broad-leaved tree; the bunch of berries or blossom is class-specific."""
    green = around(rng, rng.choice([(0.16, 0.38, 0.2), (0.2, 0.42, 0.18), (0.14, 0.34, 0.24)]), 0.02)
    pattern = look.pattern(x, y, rng.spawn(1)[0])
    leaves = steep(noise(rng, x.shape, 3), 1)
    crown = union(*(disc(x, y, cx + rng.normal(0, 0.04), cy + rng.normal(0, 0.04), radius) for cx, cy, radius in LOBES))
    trunk = union(box(x, y, 0, 0.6, 0.13, 0.4, 0.03), polygon(x, y, (-0.12, 0.8), (0.12, 0.8), (0.24, 1.0), (-0.24, 1.0)))
    ragged = 0.035 * np.sin(7 * np.arctan2(y + 0.3, x - 0.3))
    bunch = np.hypot(x - rng.uniform(0.2, 0.35), y + rng.uniform(0.2, 0.45)) - 0.25 - ragged
    return [(trunk, tinted(around(rng, (0.36, 0.25, 0.17), 0.02), 0.1 * np.sin(40 * x))),
            (crown, tinted(green, 0.12 * leaves, _trace(pattern), -0.2 * y)), (bunch, blend(look.light, look.dark, pattern))]


def house(x, y, rng, look):
    """A brick house; the gable is class-specific."""
    clay = around(rng, rng.choice([(0.52, 0.25, 0.21), (0.47, 0.22, 0.2), (0.56, 0.3, 0.25)]), 0.02)
    pattern = look.pattern(x, y, rng.spawn(1)[0])
    wall = tinted(clay, 0.22 * bricks(x, y, 0.2, 0.1, 0.02), _trace(pattern), 0.04 * noise(rng, x.shape, 3))
    gable = polygon(x, y, (0.1, -0.85), (0.65, -0.22), (-0.45, -0.22))
    roof = polygon(x, y, (-0.7, -0.62), (0.7, -0.62), (0.95, -0.2), (-0.95, -0.2))
    windows = union(*(box(x, y, cx, 0.2, 0.1, 0.14) for cx in (-0.6, 0.6)))
    return [(box(x, y, 0, 0.24, 0.85, 0.46), wall), (roof, tinted(clay * 0.7, 0.15 * np.sin(60 * y))),
            (gable, blend(look.light, look.dark, pattern)), (windows, np.full(3, 0.12)),
            (box(x, y, 0, 0.44, 0.14, 0.26), clay * 0.45)]


EXTENT = {beast: (1.0, 0.7), fish: (0.98, 0.6), tree: (0.82, 0.97), house: (0.9, 0.78)}   # half the width and height of each
