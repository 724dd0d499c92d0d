"""The prototype sheets: the patches of the nearest features of each centre of a class."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from pipeline.order import titles
from pipeline.report import thumbnails
from pipeline.report.pieces import Pieces
from steps.parts.pieces import Centre, Sheet
from wsss.data.dataset import Dataset
from wsss.errors import WsssError

WINDOW = 48          # pixels of a patch in the network's input image
SIDE = 44            # pixels of a patch in the page
MOST_ROWS = 12       # per class, for centres of each kind
MOST_PATCHES = 2400  # in the page


@dataclass
class Picture:
    """A centre: its class probability, whether it is a prototype, and its patches in one picture."""

    probability: float
    kept: bool
    count: int
    picture: str | None


@dataclass
class DrawnSheet:
    """The first centres of a class, by what they are centres of.

    `group`: the title of the results of the step; empty if all sheets are of one step. `hidden`: the numbers of centres left
    out.
    """

    group: str
    index: int
    centres: dict[str, list[Picture]]
    hidden: dict[str, int]


def draw(dataset: Dataset, found: Pieces) -> list[DrawnSheet]:
    """The sheets among the pieces with their patches, which are at most `MOST_PATCHES`."""
    sheets = [(step, piece) for step, piece in found if isinstance(piece, Sheet)]
    several, names = len({step for step, _ in sheets}) > 1, titles()
    shown = [centre for _, sheet in sheets for centres in sheet.centres.values() for centre in centres[:MOST_ROWS]]
    each = int(np.clip(MOST_PATCHES // max(len(shown), 1), 1, 6))
    crops = _crops(dataset, [(number, *patch) for number, centre in enumerate(shown) for patch in centre.patches[:each]])
    numbers = iter(range(len(shown)))

    def picture(centre: Centre) -> Picture:
        mine = crops[next(numbers)]
        return Picture(centre.probability, centre.kept, len(mine), thumbnails.patches(mine, SIDE) if mine else None)
    return [DrawnSheet(names.get(step, step) if several else "", sheet.index,
                       {name: [picture(centre) for centre in centres[:MOST_ROWS]] for name, centres in sheet.centres.items()},
                       {name: max(0, len(centres) - MOST_ROWS) for name, centres in sheet.centres.items()})
            for step, sheet in sheets]


def _crops(dataset: Dataset, wanted: list[tuple[int, str, tuple[float, float]]]) -> dict[int, list[np.ndarray]]:
    """The patches of every centre, nearest first. Each image is read once; patches of missing images are left out."""
    by_image = defaultdict(list)
    for number, (_, image_id, place) in enumerate(wanted):
        by_image[image_id].append((number, place))
    found: dict[int, np.ndarray] = {}
    for image_id, places in by_image.items():
        try:
            image = dataset.image(image_id)
        except WsssError:
            continue
        padded = np.pad(image, ((WINDOW, WINDOW), (WINDOW, WINDOW), (0, 0)), mode="edge")
        for number, place in places:
            top, left = (round(part * side) - WINDOW // 2 + WINDOW for part, side in zip(place, image.shape))
            found[number] = padded[top:top + WINDOW, left:left + WINDOW]
    crops: dict[int, list[np.ndarray]] = defaultdict(list)
    for number, (centre, _, _) in enumerate(wanted):
        if number in found:
            crops[centre].append(found[number])
    return crops
