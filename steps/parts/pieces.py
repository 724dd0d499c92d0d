"""What a step shows in the report (`shown`) and in tables (`tables`), as data: the report draws it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Line:
    """A line of a curve. `kind`: the kind of result, which gives the colour, the mark and, without `name`, the name."""

    x: Sequence[float]
    y: Sequence[float | None]                # None: not defined
    name: str = ""
    kind: str | None = None
    marks: Sequence[tuple[float, bool]] = ()   # (x, whether it is filled)
    control: bool = False                    # not a result: drawn in grey, dashed


@dataclass(frozen=True)
class Curve:
    """A figure with lines; figures of several steps with the same title are drawn as one.

    `section`: of the report: "training", "thresholds", "faithfulness" or "localisation" (x is in [0, 1] in the last three).
    `percent`: y is in [0, 1] and drawn in percent.
    """

    title: str
    xlabel: str
    ylabel: str
    lines: Sequence[Line]
    percent: bool = False
    section: str = "training"


class Kind(str):
    """A kind of result as a cell or heading of a `Table`: its title is shown."""


@dataclass(frozen=True)
class Table:
    """A table of text. `section`: of the report, as for `Curve`."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    section: str = "training"


@dataclass(frozen=True)
class Matrix:
    """Pixel counts (C + 1, C + 1) by truth (row) and prediction (column), background first. `predicted`: what the columns are."""

    title: str
    counts: np.ndarray
    predicted: str


@dataclass(frozen=True)
class Column:
    """A column of the image traces. `ids`: the images that may have a picture.

    `read(id)` returns an array, or None if the image has no picture; it may raise WsssError, then only this picture is missing.
    `draw`: "maps", (K, h, w) in [0, 1] for the K classes of the image in order; "map", one (h, w); "label", (H, W) uint8;
    "pictures", (K, H, W, 3) uint8, for the classes. `kind`: the kind of result that is shown, whose title is put before this one.
    """

    title: str
    draw: str
    ids: Collection[str]
    read: Callable[[str], np.ndarray | None]
    kind: str | None = None


@dataclass(frozen=True)
class Adjustable:
    """Maps whose threshold the reader of a report can move.

    `read(id, (h, w))` returns the maps (K, h, w), at most 1, of an image at a size, and their K classes (0-based, in order). It
    may raise WsssError, then only this image is missing. `settings`: the setting to type -> the value in use, or None for the
    value of that name in the result of the step (`run`). One is the background threshold; of two, the higher first, the pixels
    between them are ignored (255). `after`: what changes the masks after the threshold and is not drawn.
    """

    title: str                               # without one that of `kind`
    ids: Collection[str]
    read: Callable[[str, Sequence[int]], tuple[Any, Sequence[int]]]
    settings: Mapping[str, float | None]
    after: str = ""
    kind: str | None = None


@dataclass(frozen=True)
class Centre:
    """A prototype or cluster centre, and the image patches nearest to it, nearest first: (image id, centre (y, x) of the patch as
    fractions of the height and the width of the image)."""

    probability: float
    kept: bool
    patches: Sequence[tuple[str, tuple[float, float]]]


@dataclass(frozen=True)
class Sheet:
    """The centres of a class (0-based), by what they are centres of, for example "foreground"; the kept ones first."""

    index: int
    centres: Mapping[str, Sequence[Centre]]
