"""Pictures of the embedded data set, drawn from a random generator: small ones that have the problems the papers are about.

Eight classes in four pairs. The two classes of a pair share the look of a large body; only a small mark tells them apart, so a
classifier looks at the mark and the map misses the body. One class of each pair has a habitat, a background on which it is mostly
seen, so its map leaks onto the background. Clutter belongs to no class. Objects are drawn from signed distances (negative inside,
in pixels), which gives smooth edges and exact masks.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

VERSION = 1  # raised when the pictures change

# What decides how hard it is. Probabilities per image or object; lengths as a fraction of the image's shorter side unless stated.
SIDE = (100, 168)  # pixels, both ends included, drawn for height and width separately
OBJECTS = (0.5, 0.35, 0.15)  # of 1, 2, 3 objects in an image
OBJECT_SIZE = (0.36, 0.5)  # half the length of a body
MARK_SIZE = 0.33  # radius of the mark relative to half the length of its body: smaller makes maps cover less
HABITAT = 0.7  # a class that has a habitat is seen there: higher makes maps leak more
HABITAT_ALONE = 0.3  # any other image shows some habitat nevertheless: higher makes maps leak less
UNMARKED = 0.05  # a body without mark, which is no object: higher makes the body tell less
CLUTTER = (1, 3)  # pieces in an image, both ends included
MAX_OVERLAP = 0.15  # of an object may be hidden by what is drawn later
NOISE = (0.01, 0.03)  # standard deviation of the pixel noise, in 0..1

#: name -> (body, habitat or None); line i of classes.txt is mask value i.
CLASSES = {
    "fox": ("beast", "snow"), "panda": ("beast", None), "taxi": ("vehicle", "road"), "ambulance": ("vehicle", None),
    "koi": ("fish", "pond"), "tetra": ("fish", None), "sunflower": ("plant", "field"), "rose": ("plant", None),
}

Layer = tuple[np.ndarray, np.ndarray]  # distance (H, W), negative inside; colour (3,) or (H, W, 3) in 0..1


# Distances, in the units of x and y.

def _disc(x, y, cx=0.0, cy=0.0, rx=1.0, ry=None):
    ry = rx if ry is None else ry
    return (np.hypot((x - cx) / rx, (y - cy) / ry) - 1) * min(rx, ry)


def _box(x, y, cx, cy, half_width, half_height, corner=0.0):
    dx, dy = abs(x - cx) - half_width + corner, abs(y - cy) - half_height + corner
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner


def _polygon(x, y, *points):
    """A convex polygon, its corners clockwise on the screen."""
    distance = np.full_like(x, -np.inf)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        distance = np.maximum(distance, ((bx - ax) * (ay - y) - (by - ay) * (ax - x)) / math.hypot(bx - ax, by - ay))
    return distance


def _star(x, y, points, depth):
    return np.hypot(x, y) - 1 + depth * (0.5 - 0.5 * np.cos(points * np.arctan2(y, x)))


# Textures.

def _noise(rng, shape, cell, stretch=1.0):
    """(H, W) smooth noise of standard deviation about 1: random values a `cell` apart (times `stretch` across), interpolated."""
    height, width = (max(2, int(side / c) + 2) for side, c in zip(shape, (cell, cell * stretch)))
    coarse = Image.fromarray(rng.standard_normal((height, width), dtype=np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC)) * 1.3


def _around(rng, colour, spread=0.06):
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 1).astype(np.float32)


def _tinted(colour, *fields):
    """Colour (3,) brightened by the sum of the fields (H, W) -> (H, W, 3)."""
    return np.asarray(colour, np.float32) * (1 + sum(fields)).astype(np.float32)[..., None]


# Bodies: layers from the back to the front, and where the mark sits. Half the length of a body is 1; y points down.

def _beast(x, y, rng):
    coat = _around(rng, rng.choice([(0.45, 0.31, 0.2), (0.55, 0.4, 0.26), (0.35, 0.26, 0.2)]))
    distance = np.minimum(_disc(x, y, -0.1, 0, 0.68, 0.34), _disc(x, y, 0.45, -0.12, 0.3, 0.22))
    for leg in (-0.6, -0.4, 0.2, 0.4):
        distance = np.minimum(distance, _box(x, y, leg, 0.4, 0.075, 0.3, 0.05))
    distance = np.minimum(distance, _polygon(x, y, (-0.7, -0.15), (-0.6, 0.05), (-1.0, 0.35)))
    return [(distance, _tinted(coat, 0.2 * _noise(rng, x.shape, 2, 2.5), -0.3 * y))], (0.68, -0.3)


def _vehicle(x, y, rng):
    paint = _around(rng, rng.choice([(0.65, 0.2, 0.2), (0.2, 0.35, 0.6), (0.65, 0.65, 0.68), (0.25, 0.45, 0.35)]))
    layers = [(_box(x, y, 0, 0, 0.95, 0.4, 0.15), _tinted(paint, -0.25 * (y > 0.28), 0.03 * _noise(rng, x.shape, 3)))]
    glass = _around(rng, (0.6, 0.72, 0.8))
    layers += [(_box(x, y, cx, -0.16, 0.15, 0.13, 0.04), _tinted(glass, 0.4 * (x - cx))) for cx in (-0.7, -0.33, 0.04)]
    for cx in (-0.55, 0.5):
        layers += [(_disc(x, y, cx, 0.4, 0.2), np.full(3, 0.12)), (_disc(x, y, cx, 0.4, 0.09), np.full(3, 0.6))]
    return layers, (0.58, -0.08)


def _fish(x, y, rng):
    skin = _around(rng, rng.choice([(0.5, 0.58, 0.6), (0.42, 0.52, 0.5), (0.58, 0.55, 0.5)]))
    scales = np.sin(16 * x + 3 * np.sin(11 * y)) * np.sin(18 * y)
    tail, back = ((-0.5, 0), (-1.0, 0.4), (-1.0, -0.4)), ((-0.2, -0.3), (-0.05, -0.62), (0.3, -0.3))
    fins = np.minimum(_polygon(x, y, *tail), _polygon(x, y, *back))
    body = _disc(x, y, 0.1, 0, 0.85, 0.38)
    return [(fins, _tinted(skin * 0.75, 0.2 * np.sin(30 * y))), (body, _tinted(skin, 0.22 * scales, -0.3 * y))], (0.64, 0.0)


def _plant(x, y, rng):
    green = _around(rng, rng.choice([(0.2, 0.42, 0.18), (0.28, 0.48, 0.2), (0.16, 0.36, 0.22)]), 0.04)
    layers = [(_box(x, y, 0, 0.75, 0.07, 0.35), _around(rng, (0.4, 0.3, 0.2)))]
    for k in rng.permutation(9):
        angle = int(k) * math.tau / 9 + rng.normal(0, 0.1)
        along, across = _rotate(x - 0.5 * math.cos(angle), y - 0.1 - 0.42 * math.sin(angle), angle)
        vein = 0.2 * np.cos(25 * across + 8 * abs(along))
        layers.append((_disc(along, across, 0, 0, 0.38, 0.2), _tinted(green * rng.uniform(0.75, 1.2), vein)))
    layers.append((_disc(x, y, 0, 0.1, 0.4), _tinted(green, 0.3 * _noise(rng, x.shape, 3))))
    return layers, (rng.uniform(-0.2, 0.2), -0.22)


BODIES: dict[str, Callable] = {"beast": _beast, "vehicle": _vehicle, "fish": _fish, "plant": _plant}


# Marks: layers around (0, 0), about 1 in radius.

def _fox(x, y):
    ears = np.minimum(_polygon(x, y, (-0.9, -1.2), (-0.1, -0.5), (-0.9, 0)), _polygon(x, y, (0.9, -1.2), (0.9, 0), (0.1, -0.5)))
    face = _polygon(x, y, (-0.95, -0.55), (0.95, -0.55), (0, 1.1))
    snout = _polygon(x, y, (-0.45, 0.2), (0.45, 0.2), (0, 1))
    return [(ears, (0.9, 0.45, 0.1)), (face, (0.95, 0.5, 0.12)), (snout, (0.97, 0.95, 0.9)),
            (_disc(x, y, 0, 0.9, 0.2), (0.1, 0.08, 0.08))]


def _panda(x, y):
    ears = np.minimum(_disc(x, y, -0.72, -0.72, 0.35), _disc(x, y, 0.72, -0.72, 0.35))
    eyes = np.minimum(_disc(x, y, -0.4, -0.1, 0.2, 0.27), _disc(x, y, 0.4, -0.1, 0.2, 0.27))
    return [(ears, (0.06, 0.06, 0.08)), (_disc(x, y), (0.95, 0.95, 0.93)), (eyes, (0.06, 0.06, 0.08)),
            (_disc(x, y, 0, 0.4, 0.18), (0.06, 0.06, 0.08))]


def _taxi(x, y):
    checks = np.where(np.sin(5 * x + 1) * np.sin(5 * y + 1) > 0, 0.08, 0.95)[..., None] * np.array((1, 0.82, 0.1))
    return [(_box(x, y, 0, 0, 1, 0.9, 0.1), checks)]


def _ambulance(x, y):
    cross = np.minimum(_box(x, y, 0, 0, 0.7, 0.23), _box(x, y, 0, 0, 0.23, 0.7))
    return [(_box(x, y, 0, 0, 1, 0.95, 0.1), (0.95, 0.95, 0.95)), (cross, (0.85, 0.08, 0.1))]


def _koi(x, y):
    return [(_disc(x, y, 0, 0, 0.95, 0.9), (0.96, 0.94, 0.9)), (_disc(x, y, -0.1, -0.1, 0.55), (0.92, 0.25, 0.08)),
            (_disc(x, y, 0.65, 0.15, 0.13), (0.05, 0.05, 0.05))]


def _tetra(x, y):
    bands = np.where((np.sin(6 * y) > 0)[..., None], (0.1, 0.85, 0.95), (0.85, 0.15, 0.6))
    return [(_disc(x, y, 0, 0, 0.95, 0.9), bands), (_disc(x, y, 0.5, -0.2, 0.16), (0.05, 0.05, 0.05))]


def _sunflower(x, y):
    return [(_star(x, y, 12, 0.35), (0.97, 0.8, 0.1)), (_disc(x, y, 0, 0, 0.5), (0.35, 0.2, 0.08)),
            (_disc(x, y, 0, 0, 0.25), (0.2, 0.1, 0.05))]


def _rose(x, y):
    whorls = (0.75 + 0.25 * np.cos(12 * np.hypot(x, y) + np.arctan2(y, x)))[..., None] * np.array((0.9, 0.1, 0.35))
    return [(_star(x, y, 5, 0.15), whorls)]


MARKS: dict[str, Callable] = {"fox": _fox, "panda": _panda, "taxi": _taxi, "ambulance": _ambulance, "koi": _koi, "tetra": _tetra,
                              "sunflower": _sunflower, "rose": _rose}


# Backgrounds (H, W, 3).

def _background(kind, rng, shape):
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    fine, coarse = _noise(rng, shape, 2), _noise(rng, shape, 25)
    phase, period = rng.uniform(0, 6), rng.uniform(7, 11)
    if kind == "snow":
        return _tinted(_around(rng, (0.86, 0.9, 0.96), 0.02), 0.03 * fine, 0.06 * coarse)
    if kind == "road":
        lane = (abs(y - shape[0] * rng.uniform(0.3, 0.9)) < 3) & (np.sin(x / period + phase) > 0)
        return np.maximum(_tinted(_around(rng, (0.32, 0.32, 0.34), 0.02), 0.15 * fine, 0.1 * coarse), 0.9 * lane[..., None])
    if kind == "pond":
        ripples = np.sin(y * 6 / period + 2.5 * _noise(rng, shape, 15, 2) + phase)
        return _tinted(_around(rng, (0.2, 0.42, 0.55), 0.04), 0.2 * ripples, 0.1 * coarse)
    if kind == "field":
        rows = np.sin(_rotate(x, y, phase)[0] * 6 / period)
        return _tinted(_around(rng, (0.68, 0.58, 0.28), 0.04), 0.2 * rows, 0.12 * fine)
    if kind == "meadow":
        return _tinted(_around(rng, (0.4, 0.56, 0.26), 0.06), 0.2 * _noise(rng, shape, 4, 0.4), 0.15 * coarse)
    if kind == "bricks":
        row = np.floor(y / period)
        joint = (y % period < 1.5) | ((x + row % 2 * period) % (2 * period) < 1.5)
        return _tinted(_around(rng, (0.6, 0.36, 0.28), 0.06), 0.25 * joint, 0.08 * fine, 0.1 * coarse)
    if kind == "planks":
        return _tinted(_around(rng, (0.58, 0.44, 0.32), 0.06), 0.12 * _noise(rng, shape, 2, 15), -0.4 * (y % (2 * period) < 1.5))
    return _tinted(rng.uniform(0.3, 0.8, 3).astype(np.float32), 0.2 * coarse, 0.04 * fine)  # a plain wall


HABITATS = tuple(habitat for _, habitat in CLASSES.values() if habitat)
ELSEWHERE = ("meadow", "bricks", "planks", "wall")


# Pictures.

def _inside(layers):
    return np.any([distance < 0 for distance, _ in layers], axis=0)  # (H, W)


def _paint(canvas, layers):
    """Draws the layers onto `canvas` (H, W, 3), with one pixel of smooth edge."""
    for distance, colour in layers:
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        canvas += cover * (np.asarray(colour, np.float32) - canvas)


def _object(body, mark, rng, shape) -> list[Layer]:
    """A body somewhere in the picture; with the mark of the class `mark`, unless that is None."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    size = rng.uniform(*OBJECT_SIZE) * min(shape)
    x, y = x - rng.uniform(0.85 * size, shape[1] - 0.85 * size), y - rng.uniform(0.5 * size, shape[0] - 0.5 * size)
    x, y = _rotate(x, y, rng.normal(0, 0.2))
    x, y = x / (size if rng.random() < 0.5 else -size), y / (size * rng.uniform(0.85, 1.15))
    layers, (mark_x, mark_y) = BODIES[body](x, y, rng)
    layers = [(distance * size, colour) for distance, colour in layers]
    if mark:
        radius, tone = MARK_SIZE * rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.1)
        layers += [(distance * radius * size, np.asarray(colour) * tone)
                   for distance, colour in MARKS[mark]((x - mark_x) / radius, (y - mark_y) / radius)]
    return layers


def _clutter(rng, shape) -> list[Layer]:
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    x, y = _rotate(x - rng.uniform(0, shape[1]), y - rng.uniform(0, shape[0]), rng.uniform(0, np.pi))
    width, height = (rng.uniform(0.04, 0.16) * min(shape) for _ in range(2))
    distance = (_disc, _box)[rng.integers(2)](x, y, 0, 0, width, height)
    stripes = rng.uniform(0, 0.3) * np.sin(x * rng.uniform(0.3, 1.2))
    return [(distance, _tinted(rng.uniform(0.2, 0.75, 3).astype(np.float32), stripes, 0.1 * _noise(rng, shape, 3)))]


def _rotate(x, y, angle):
    cos, sin = math.cos(angle), math.sin(angle)  # Python numbers: NumPy's would make the arrays float64
    return x * cos + y * sin, y * cos - x * sin


def _scene(classes, rng):
    """Where the first of `classes` is seen: mostly its habitat, if it has one."""
    habitat = CLASSES[classes[0]][1]
    if habitat and rng.random() < HABITAT:
        return habitat
    return rng.choice(HABITATS if rng.random() < HABITAT_ALONE else ELSEWHERE)


def _light(canvas, rng):
    """Uneven light, a tint and the camera's noise -> (H, W, 3) uint8."""
    height, width, _ = canvas.shape
    slope = rng.normal(0, 0.12, 2)
    light = 1 + slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)
    canvas = canvas * (rng.uniform(0.8, 1.1) * light[..., None] * rng.normal(1, 0.03, 3))
    canvas += rng.uniform(*NOISE) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One picture (H, W, 3) uint8, its mask (H, W) uint8, values 0..8, and its objects (H, W) uint8, numbered from 1, from `rng`
    alone."""
    height, width = (int(side) for side in rng.integers(SIDE[0], SIDE[1] + 1, size=2))
    shape = (height, width - 1 if width == height else width)
    classes = rng.choice(list(CLASSES), size=1 + rng.choice(len(OBJECTS), p=OBJECTS))
    canvas = _background(_scene(classes, rng), rng, shape).astype(np.float32)
    for _ in range(rng.integers(CLUTTER[0], CLUTTER[1] + 1)):
        _paint(canvas, _clutter(rng, shape))
    if rng.random() < UNMARKED:
        _paint(canvas, _object(rng.choice(list(BODIES)), None, rng, shape))
    mask, objects, drawn = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), []  # drawn: the inside of each object so far
    for name in classes:
        for _ in range(10):  # tries to find room for it
            layers = _object(CLASSES[name][0], name, rng, shape)
            inside = _inside(layers)
            if all((inside & other).sum() <= MAX_OVERLAP * other.sum() for other in drawn):
                _paint(canvas, layers)
                mask[inside] = 1 + list(CLASSES).index(name)
                drawn.append(inside)
                objects[inside] = len(drawn)
                break
    return _light(canvas, rng), mask, objects
