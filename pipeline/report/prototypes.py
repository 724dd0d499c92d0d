"""The prototype sheets: the patches of the nearest features of each foreground and background centre of a class."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from pipeline.report import thumbnails
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.prototypes import FILE
from steps.runtime.artifacts import read_arrays
from wsss.errors import WsssError

STRIDE = 16          # pixels per cell of the feature grid
WINDOW = 48          # pixels of a patch in the network's input image
SIDE = 44            # pixels of a patch in the page
MOST_ROWS = 12       # per class, for foreground and background centres each
MOST_PATCHES = 2400  # in the page


@dataclass
class Prototype:
    """A centre: its class probability, whether it is a prototype, and its patches in one picture."""

    probability: float
    kept: bool
    count: int
    picture: str | None = None


@dataclass
class Sheet:
    """The centres of a class, kept ones first; `hidden`: numbers of (foreground, background) centres left out."""

    index: int
    foreground: list[Prototype]
    background: list[Prototype]
    hidden: tuple[int, int]


def sheets(run: RecordedRun) -> list[Sheet]:
    """The sheets of all classes; empty without make_lpcam or if its prototypes have no nearest features."""
    place = run.place("make_lpcam")
    if place is None or not (place / FILE).exists():
        return []
    arrays = read_arrays(place / FILE, ("class_index", "is_background", "kept"))
    if not {"near_id", "near_cell", "probability"} <= arrays.keys():
        return []
    rows: dict[tuple[int, bool], np.ndarray] = {}
    for index in range(len(run.dataset.classes)):
        for background in (False, True):
            mine = np.flatnonzero((arrays["class_index"] == index) & (arrays["is_background"] == background))
            rows[index, background] = mine[np.lexsort((-arrays["probability"][mine], ~arrays["kept"][mine]))]
    shown = [int(row) for mine in rows.values() for row in mine[:MOST_ROWS]]
    each = int(np.clip(MOST_PATCHES // max(len(shown), 1), 1, 6))
    crops = _crops(run, [(row, str(image_id), tuple(cell)) for row in shown for image_id, cell in
                         zip(arrays["near_id"][row][:each], arrays["near_cell"][row][:each].tolist()) if image_id])

    def prototype(row: int) -> Prototype:
        return Prototype(float(arrays["probability"][row]), bool(arrays["kept"][row]), len(crops[row]),
                         thumbnails.patches(crops[row], SIDE) if crops[row] else None)
    return [Sheet(index, *([prototype(row) for row in rows[index, background][:MOST_ROWS]] for background in (False, True)),
                  hidden=tuple(max(0, len(rows[index, background]) - MOST_ROWS) for background in (False, True)))
            for index in range(len(run.dataset.classes))]


def _crops(run: RecordedRun, wanted: list[tuple[int, str, tuple[int, int]]]) -> dict[int, list[np.ndarray]]:
    """The patches of every row, nearest first. Each image is read once; patches of missing images are left out."""
    by_image = defaultdict(list)
    for number, (_, image_id, cell) in enumerate(wanted):
        by_image[image_id].append((number, cell))
    found: dict[int, np.ndarray] = {}
    for image_id, cells in by_image.items():
        try:
            image = run.dataset.image(image_id)
        except WsssError:
            continue
        padded = np.pad(image, ((WINDOW, WINDOW), (WINDOW, WINDOW), (0, 0)), mode="edge")
        for number, (row, column) in cells:
            top, left = (STRIDE * cell + STRIDE // 2 - WINDOW // 2 + WINDOW for cell in (row, column))
            found[number] = padded[top:top + WINDOW, left:left + WINDOW]
    crops: dict[int, list[np.ndarray]] = defaultdict(list)
    for number, (row, _, _) in enumerate(wanted):
        if number in found:
            crops[row].append(found[number])
    return crops
