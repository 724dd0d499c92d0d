"""Pictures of the embedded data set, drawn from a random generator: small ones with the problems that the papers address.

Eight classes in four pairs (`wsss.data.figures`). The two classes of a pair share a large body and differ in a small head; the
body has only a weak trace of the head's pattern, so a classifier relies on the head. One class of each pair has a habitat, a
background on which it mostly appears, so its map leaks onto the background. Clutter belongs to no class. Backgrounds and
clutter never have the colours of the bodies, so outlines can be recovered.
"""

import numpy as np

from wsss.data import figures
from wsss.data.figures import EXTENT, LOOKS, Layer
from wsss.data.forms import around, box, bricks, disc, noise, rotate, steep, tinted

VERSION = 3  # raised when the pictures change

# Difficulty. Probabilities per image or object; lengths as a fraction of the image's shorter side unless stated.
SIDE = (144, 192)  # pixels, both ends included, drawn for height and width separately
LONGER = 1.3  # factor of one of the two sides in images with several objects
OBJECTS = (0.5, 0.5)  # probabilities of 1 and 2 objects in an image
MATE = 0.4  # a second object is of the other class of the pair: higher makes the classifier rely on the heads
OBJECT_SIZE = (0.46, 0.56)  # half the length of a body
HABITAT = 0.7  # a class with a habitat appears there: higher makes maps leak more
HABITAT_ALONE = 0.3  # any other image has a random habitat as background: higher makes maps leak less
CLUTTER = (1, 3)  # number of pieces in an image, both ends included
MAX_OVERLAP = 0.1  # of the bounding boxes of two objects, relative to the smaller one
NOISE = (0.004, 0.012)  # standard deviation of the pixel noise, in 0..1

#: name -> (body, habitat or None); line i of classes.txt is mask value i.
CLASSES = {
    "tiger": (figures.beast, "meadow"), "leopard": (figures.beast, None), "koi": (figures.fish, "water"),
    "perch": (figures.fish, None), "rowan": (figures.tree, "snow"), "hawthorn": (figures.tree, None),
    "chapel": (figures.house, "paving"), "farmhouse": (figures.house, None),
}


# Backgrounds (H, W, 3).

def _background(kind, rng, shape):
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    coarse, phase, period = noise(rng, shape, 30), rng.uniform(0, 6), rng.uniform(9, 14)
    if kind == "snow":
        return tinted(around(rng, (0.86, 0.9, 0.95), 0.015), 0.02 * noise(rng, shape, 3), 0.03 * coarse)
    if kind == "water":
        ripples = np.sin(y * 6 / period + 2.5 * noise(rng, shape, 20, 2) + phase)
        return tinted(around(rng, (0.25, 0.5, 0.68), 0.03), 0.1 * ripples, 0.04 * coarse)
    if kind == "meadow":
        return tinted(around(rng, (0.6, 0.74, 0.36), 0.03), 0.08 * steep(noise(rng, shape, 4, 0.4), 1), 0.04 * coarse)
    if kind == "paving":
        joints = bricks(x + 3 * phase, y, 2 * period, period, 1.5)
        return tinted(around(rng, (0.55, 0.56, 0.62), 0.03), -0.2 * joints, 0.04 * coarse)
    if kind == "sand":
        ridges = np.sin(y * 6 / period + noise(rng, shape, 25, 2) + phase)
        return tinted(around(rng, (0.9, 0.83, 0.62), 0.02), 0.04 * ridges, 0.03 * noise(rng, shape, 2))
    if kind == "heather":
        return tinted(around(rng, (0.58, 0.46, 0.66), 0.03), 0.09 * steep(noise(rng, shape, 3), 1), 0.04 * coarse)
    if kind == "slate":
        return tinted(around(rng, (0.3, 0.33, 0.38), 0.02), 0.12 * steep(noise(rng, shape, 3, 6), 1), 0.05 * coarse)
    return tinted(around(rng, (0.76, 0.8, 0.76), 0.05), 0.04 * coarse, 0.01 * noise(rng, shape, 2))  # a plastered wall


HABITATS = tuple(habitat for _, habitat in CLASSES.values() if habitat)
ELSEWHERE = ("sand", "heather", "slate", "plaster")


# Pictures.

def _inside(layers):
    return np.any([distance < 0 for distance, _ in layers], axis=0)  # (H, W)


def _paint(canvas, layers):
    """Draw the layers onto `canvas` (H, W, 3), with an edge that is smooth over one pixel."""
    for distance, colour in layers:
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        canvas += cover * (np.asarray(colour, np.float32) - canvas)


def _window(cx, cy, reach, shape):
    """The part of the picture within `reach` of a point, as slices, and its x and y relative to the point."""
    rows = slice(max(0, int(cy - reach)), min(shape[0], int(cy + reach) + 2))
    columns = slice(max(0, int(cx - reach)), min(shape[1], int(cx + reach) + 2))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    return (rows, columns), x - np.float32(cx), y - np.float32(cy)


def _object(name, place, rng, shape) -> tuple[tuple[slice, slice], list[Layer]]:
    """An object of a class at a place (cx, cy, half its length): its window and its layers in the window."""
    cx, cy, size = place
    window, x, y = _window(cx, cy, 1.3 * size, shape)
    x, y = rotate(x, y, rng.normal(0, 0.12))
    x, y = x / (size if rng.random() < 0.5 else -size), y / (size * rng.uniform(0.9, 1.1))
    return window, [(distance * size, colour) for distance, colour in CLASSES[name][0](x, y, rng, LOOKS[name])]


def _places(names, rng, shape) -> list[tuple[float, float, float]]:
    """A random place (cx, cy, half the length) for each object; the size shrinks until the objects hardly overlap."""
    size = rng.uniform(*OBJECT_SIZE) * min(shape)
    while True:
        places = []
        for name in names:
            half = [size * side for side in EXTENT[CLASSES[name][0]]]
            ends = [(0.9 * low, max(0.9 * low, side - 0.9 * low)) for low, side in zip(half, shape[::-1])]
            places.append([rng.uniform(*end) for end in ends] + half)
        if all(_overlap(one, other) <= MAX_OVERLAP for i, one in enumerate(places) for other in places[:i]):
            return [(cx, cy, size) for cx, cy, _, _ in places]
        size *= 0.99


def _overlap(one, other) -> float:
    """The intersection of two boxes (cx, cy, half the width, half the height), relative to the smaller one."""
    sides = [min(one[2 + k] + other[2 + k] - abs(one[k] - other[k]), 2 * one[2 + k], 2 * other[2 + k]) for k in (0, 1)]
    return max(0.0, sides[0]) * max(0.0, sides[1]) / (4 * min(one[2] * one[3], other[2] * other[3]))


def _clutter(rng, shape) -> tuple[tuple[slice, slice], list[Layer]]:
    width, height = (rng.uniform(0.05, 0.14) * min(shape) for _ in range(2))
    window, x, y = _window(rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), 1.5 * max(width, height), shape)
    x, y = rotate(x, y, rng.uniform(0, np.pi))
    distance = (disc, box)[rng.integers(2)](x, y, 0, 0, width, height)
    stripes = rng.uniform(0, 0.1) * np.sin(x * rng.uniform(0.3, 1.2))
    colour = around(rng, rng.choice([(0.25, 0.25, 0.3), (0.35, 0.35, 0.6), (0.5, 0.3, 0.55), (0.8, 0.8, 0.85), (0.3, 0.55, 0.6)]))
    return window, [(distance, tinted(colour, stripes, 0.04 * noise(rng, x.shape, 3)))]


def _scene(classes, rng):
    """The background for the first of `classes`: mostly its habitat, if it has one."""
    habitat = CLASSES[classes[0]][1]
    if habitat and rng.random() < HABITAT:
        return habitat
    return rng.choice(HABITATS if rng.random() < HABITAT_ALONE else ELSEWHERE)


def _light(canvas, rng):
    """Apply uneven light, a tint and sensor noise -> (H, W, 3) uint8."""
    height, width, _ = canvas.shape
    slope = rng.normal(0, 0.06, 2)
    light = 1 + slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)
    canvas = canvas * (rng.uniform(0.85, 1.05) * light[..., None] * rng.normal(1, 0.02, 3)).astype(np.float32)
    canvas += np.float32(rng.uniform(*NOISE)) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def _names(rng) -> list[str]:
    """The classes of the objects of a picture."""
    names = [str(name) for name in rng.choice(list(CLASSES), size=1 + rng.choice(len(OBJECTS), p=OBJECTS))]
    if len(names) > 1 and rng.random() < MATE:
        names[1] = next(name for name in CLASSES if CLASSES[name][0] is CLASSES[names[0]][0] and name != names[0])
    return names


def _shape(n_objects, rng) -> tuple[int, int]:
    """A random (height, width), never equal."""
    sides = [int(side) for side in rng.integers(SIDE[0], SIDE[1] + 1, size=2)]
    if n_objects > 1:
        longer = rng.integers(2)
        sides[longer] = round(sides[longer] * LONGER)
    return sides[0], sides[1] - (sides[0] == sides[1])


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (H, W, 3) uint8, its mask (H, W) uint8 with values 0..8, and its objects (H, W) uint8, numbered from 1. They
    depend only on `rng`."""
    names = _names(rng)
    shape = _shape(len(names), rng)
    canvas = _background(_scene(names, rng), rng, shape).astype(np.float32)
    for _ in range(rng.integers(CLUTTER[0], CLUTTER[1] + 1)):
        window, layers = _clutter(rng, shape)
        _paint(canvas[window], layers)
    mask, objects = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for number, (name, place) in enumerate(zip(names, _places(names, rng, shape)), start=1):
        window, layers = _object(name, place, rng, shape)
        inside = _inside(layers)
        _paint(canvas[window], layers)
        mask[window][inside] = 1 + list(CLASSES).index(name)
        objects[window][inside] = number
    return _light(canvas, rng), mask, objects
