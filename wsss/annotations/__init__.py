"""The forms in which annotation tools read masks, one file each. To add a form, add a file; there is no other list.

A module of a form has

    a docstring    its first line says which tool reads it
    IMAGES         the folder of the images within the export; "" beside the annotations
    SHAPES         what it can hold: MASKS, POLYGONS or both; the first is the default
    write(folder, sheets, options)
                   writes the annotations of all `Sheet`s below `folder`, which exists and holds nothing else

Annotations name classes. A region that is not scored (mask value 255) has the name `UNSCORED`; background has none.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from wsss.palette import IGNORE

MASKS, POLYGONS = "masks", "polygons"
UNSCORED = "ignore region"   # a name that no reader of annotations leaves out


@dataclass(frozen=True)
class Sheet:
    """An image with its mask. `name`: of its files, without suffix; "/" separates folders. `image`: the file of the image within
    the folder of images. `mask`: (H, W) uint8, 0 background, i + 1 for class i, 255 not scored, in the original frame."""

    name: str
    image: str
    mask: np.ndarray

    def regions(self) -> Iterator[tuple[int, np.ndarray]]:
        """The value and the pixels (H, W) bool of every region but the background."""
        for value in np.unique(self.mask).tolist():
            if value:
                yield value, self.mask == value


@dataclass(frozen=True)
class Options:
    """`tolerance`: polygons instead of masks, at most so many pixels from the outline (`wsss.annotations.polygons`); None: masks.
    `url`: what stands before the image's file where a tool loads it from an address. `made_by`: the run, to be shown."""

    classes: Sequence[str]
    tolerance: float | None = None
    url: str = ""
    made_by: str = ""

    def name(self, value: int) -> str:
        """The name of a mask value."""
        return UNSCORED if value == IGNORE else self.classes[value - 1]

    def names(self, values: set[int]) -> dict[int, str]:
        """The mask values in the order of the classes, with their names: all classes, and 255 if it is among `values`."""
        return {**{i: name for i, name in enumerate(self.classes, start=1)}, **({IGNORE: UNSCORED} if IGNORE in values else {})}


def names() -> list[str]:
    """The names of all forms."""
    return [module.name for module in pkgutil.iter_modules(__path__) if hasattr(load(module.name), "write")]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
