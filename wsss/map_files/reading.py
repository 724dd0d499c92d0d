"""The maps in the files of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from PIL import Image

from wsss.data.headers import DAMAGE
from wsss.errors import DataError
from wsss.map_files.files import KEYS, MapFile, contents_of, headers, png_shape
from wsss.map_files.layout import Layout, Picks, pick, squeezed
from wsss.reading import read_npz

_TOLERANCE = 1e-3   # beyond the range, relative to its width; float16 rounds by half of it


class Activation(Enum):
    none = "none"
    relu = "relu"
    sigmoid = "sigmoid"
    softmax = "softmax"     # over all classes, and the background if there is one


@dataclass(frozen=True)
class Values:
    """What the numbers in a file are.

    activation: what is applied to them first, with scores of a network (logits). span: (least, greatest) of what it returns,
    which become 0 and 1; None: 0 and 1, or 0 and no limit after a ReLU.
    """

    activation: Activation = Activation.none
    span: tuple[float, float] | None = None

    def __call__(self, values: np.ndarray, channels: Sequence[int] | None) -> np.ndarray:
        """The maps (K, h, w) float32 of the `channels` of an array (C, h, w), not negative; None: of all.

        Raises DataError for NaN, infinity, and numbers outside of the range.
        """
        if np.asarray(values).dtype.kind not in "fiub":
            raise DataError(f"it holds {np.asarray(values).dtype}; expected numbers: compute these maps again")
        with np.errstate(over="ignore"):   # what is too large for float32 is infinite, so refused
            array: Any = np.asarray(values).astype(np.float32)
        if self.activation is not Activation.softmax and channels is not None:
            array = array[list(channels)]
        if not np.isfinite(array).all():
            raise DataError("it holds NaN or infinite numbers; expected finite ones: compute these maps again")
        if self.activation is Activation.softmax:
            array = np.exp(array - array.max(axis=0, keepdims=True))
            array = (array / array.sum(axis=0))[list(channels) if channels is not None else slice(None)]
        elif self.activation is Activation.sigmoid:
            array = 0.5 * (1 + np.tanh(array / 2))
        elif self.activation is Activation.relu:
            array = np.maximum(array, 0)
        least, greatest = self.span or (0.0, np.inf if self.activation is Activation.relu else 1.0)
        slack = _TOLERANCE * (greatest - least) if np.isfinite(greatest) else 0.0
        if array.size and (array.min() < least - slack or array.max() > greatest + slack):
            raise DataError(f"its numbers are from {array.min():.4g} to {array.max():.4g}; expected {least:g} to {greatest:g}: "
                            "state imported.range=[LEAST,GREATEST], or for scores of a network imported.activation")
        return np.clip(array, least, greatest) if self.span is None else np.clip((array - least) / (greatest - least), 0, 1)


def maps_of(arrays: Mapping[Any, np.ndarray], layout: Layout, values: Values, size: tuple[int, int], labels: Sequence[int],
            classes: Sequence[str]) -> np.ndarray:
    """The maps (K, h, w) float32, not negative, of an image of `size` (H, W), in the order of its classes `labels`, on their own
    grid.

    `arrays`: of `read_arrays`. Raises DataError, without the name of the file, if they are not those of this image.
    """
    shapes = {name: array.shape for name, array in arrays.items() if name != KEYS}
    return _maps(arrays, pick(contents_of(shapes, arrays.get(KEYS), layout.names), layout, size, labels, classes), values)


def check_headers(files: tuple[MapFile, ...], layout: Layout, size: tuple[int, int], labels: Sequence[int],
                  classes: Sequence[str]) -> bool:
    """Check what headers say without reading the maps. Returns whether they say it: not of a pickled dictionary.

    Raises DataError as `maps_of`.
    """
    contents = headers(files, layout.names)
    if contents is None:
        return False
    pick(contents, layout, size, labels, classes)
    return True


def read_arrays(files: tuple[MapFile, ...]) -> dict[Any, np.ndarray]:
    """The arrays in the files of an image by their name; None: the only one. PNGs are float32 in [0, 1]."""
    path = files[0].path
    if path.suffix == ".png":
        return {file.token: _read_png(file) for file in files}
    try:
        if path.suffix == ".npz":
            return dict(read_npz(path))
        return {None: np.lib.format.open_memmap(path, mode="r")}
    except MemoryError:
        raise
    except Exception as error:   # a damaged file raises almost anything; a pickled one ValueError
        if path.suffix == ".npz":
            raise DataError(f"it is damaged or no .npz file ({error}); write it again, or remove it") from error
        from wsss.official import read_dictionary  # waits for torch

        return {int(name) if isinstance(name, np.integer) else name: value for name, value in read_dictionary(path).items()
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiubSU"}


def _read_png(file: MapFile) -> np.ndarray:
    png_shape(file.path)   # checks its kind
    try:
        with Image.open(file.path, formats=["PNG"]) as image:
            return np.asarray(image).astype(np.float32) / {"1": 1, "L": 255}.get(image.mode, 65535)
    except DAMAGE as error:
        raise DataError(f"{file.path.name} is truncated ({error}); write it again, or remove it") from error


def _maps(arrays: Mapping[Any, np.ndarray], picks: Picks, values: Values) -> np.ndarray:
    if not picks.arrays:
        return np.zeros((0, *picks.grid), np.float32)
    if values.activation is Activation.softmax and not (picks.all_classes and picks.channels is not None):
        raise DataError("it holds the scores of some classes; expected those of all of them for "
                        "imported.activation=softmax: write all, or choose another activation")
    if picks.channels is None:
        array = np.stack([_on_grid(arrays[name], picks, False) for name in picks.arrays])
        return values(array, None)
    return values(_on_grid(arrays[picks.arrays[0]], picks, True), picks.channels)


def _on_grid(array: np.ndarray, picks: Picks, channels: bool) -> np.ndarray:
    """The map (h, w), or (C, h, w) of an array with `channels`; without the class token before flat maps."""
    array = array.reshape(squeezed(array.shape, picks.flat))
    if picks.flat:
        array = array[..., -picks.grid[0] * picks.grid[1]:]
    return array.reshape(-1, *picks.grid) if channels else array.reshape(picks.grid)
