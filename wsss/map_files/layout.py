"""What the arrays in a file of maps are: which classes, which grid, which range. No array is read here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsss.data.messages import did_you_mean, format_size
from wsss.errors import ConfigError, DataError
from wsss.reading import read_yaml
from wsss.text import safe_names

Token = int | str   # what a file calls a class: a number or a name
BACKGROUND = "background"
# The arrays that are taken from a file with several if no `key` is set, the finest first: names in official LPCAM and IRN
# (`high_res`, `cam`), CLIP-ES and WeCLIP (`attn_highres`, `highres`, `strided_cam`), WeCLIP's test (`msc_segs`, `segs`).
FINEST = ("high_res", "attn_highres", "highres", "msc_segs", "segs", "cam", "strided_cam")


@dataclass(frozen=True)
class ClassNames:
    """What files call the classes. `numbers`, `words`: number or name -> 0-based class; None: background or left out."""

    numbers: Mapping[int, int | None]
    words: Mapping[str, int | None]
    stated: bool = False                 # by a file, not by the data set

    def find(self, token: Token) -> int | None:
        """The class of a number or name; None: background or left out. Raises KeyError for an unknown one."""
        if isinstance(token, str) and (token in self.words or not token.isascii() or not token.isdigit()):
            return self.words[token]
        return self.numbers[int(token)]

    def __contains__(self, token: Token) -> bool:
        try:
            self.find(token)
        except KeyError:
            return False
        return True


def class_names(classes: Sequence[str], path: Path | None, where: str) -> ClassNames:
    """The names of the data set's `classes`, or those that a YAML file states: a list, one line a channel or number from 0, or
    `number or name in the files: class`. A class is its name in the data set, `background`, or null, which leaves it out.

    Raises ConfigError, beginning with `where`, for a file that cannot be read or names other classes.
    """
    index: dict[str | None, int | None] = {None: None, BACKGROUND: None, **{name: i for i, name in enumerate(classes)}}
    words = dict(zip([*safe_names(classes), *classes], [*range(len(classes))] * 2, strict=True))
    if path is None:
        return ClassNames(dict(enumerate(range(len(classes)))), words)
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read ({' '.join(str(error).split())[:200]}); expected a YAML file with a list of "
                          "class names, or lines NAME: CLASS") from error
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where} holds no classes; expected a list of class names, or lines NAME: CLASS")
    for token, name in content.items():
        if isinstance(name, (dict, list)) or name not in index or isinstance(token, bool) or not isinstance(token, (int, str)):
            raise ConfigError(f"{where} names the class {name!r} for {token!r}{did_you_mean(str(name), classes)}; expected a "
                              f"class of the data set ({', '.join([*classes[:8], '...'][:len(classes)])}), background, or null")
    numbers = {token: index[name] for token, name in content.items() if isinstance(token, int)}
    words = {token: index[name] for token, name in content.items() if isinstance(token, str)} or words
    return ClassNames(numbers, words, True)


@dataclass(frozen=True)
class Layout:
    """How the arrays of a file are read.

    key: the array to take from a file with several; None: by `FINEST`.
    grid: (h, w) of maps that are stored flat, patch by patch; None: they are not, or `patch` is set.
    patch: flat maps have a value for each patch of so many pixels of the image, the last of a row or column being incomplete.
    """

    names: ClassNames
    key: str | None = None
    grid: tuple[int, int] | None = None
    patch: int | None = None

    def flat_grid(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The grid (h, w) of flat maps of an image of `size` (H, W); None: maps are not flat."""
        return self.grid if self.patch is None else (math.ceil(size[0] / self.patch), math.ceil(size[1] / self.patch))


@dataclass(frozen=True)
class Picks:
    """Where the maps of an image are, in the order of its classes.

    arrays: the name of the array of each map. channels: in that array, the channel of each map; None: the array is the map.
    grid: (h, w) of the maps. flat: whether they are stored flat. all_classes: whether the channels are all classes.
    """

    arrays: tuple[Any, ...]
    channels: tuple[int, ...] | None
    grid: tuple[int, int]
    flat: bool = False
    all_classes: bool = False


@dataclass(frozen=True)
class Contents:
    """The arrays of the file or files of an image: name -> shape, and as far as there is one the array `keys` of their classes.
    `kind`: "classes" if the names are those of classes, "arrays" if the classes are in the arrays."""

    shapes: Mapping[Any, tuple[int, ...]]
    keys: tuple[Token, ...] | None = None
    kind: Literal["classes", "arrays"] = "arrays"


def pick(contents: Contents, layout: Layout, size: tuple[int, int], labels: Sequence[int], classes: Sequence[str]) -> Picks:
    """Where the maps of an image of `size` (H, W) with the classes `labels` are.

    Raises DataError if the file has no map of one of them, maps of others but not of all, or arrays of another shape.
    """
    flat = layout.flat_grid(size) is not None
    shapes = {name: squeezed(shape, flat) for name, shape in contents.shapes.items()}
    if contents.kind == "classes":
        order = _ordered(list(shapes), layout.names, labels, classes)
        grids = {_grid_of(shapes[name], layout, size, f"the map of {name!r}") for name in order}
        if len(grids) > 1:
            raise DataError(f"the maps have several sizes ({', '.join(map(format_size, sorted(grids)))}); expected one for an "
                            "image: resize them")
        (grid,) = grids or {(1, 1)}
        return Picks(tuple(order), None, grid, flat)
    name = _array(shapes, layout)
    shape = shapes[name]
    grid = _grid_of(shape, layout, size, "the array" if name is None else f"the array {name!r}")
    maps = shape[:-1] if flat else shape[:-2]
    if contents.keys is not None:
        if len(contents.keys) != (maps[0] if maps else 1):
            raise DataError(f"the array {name!r} has {maps[0] if maps else 1} maps, but keys has {len(contents.keys)}; expected "
                            "one for each: write the file again")
        order = _ordered(list(contents.keys), layout.names, labels, classes)
        return _picked(name, [contents.keys.index(token) for token in order], grid, flat, maps)
    return _by_number(name, maps, layout.names, labels, classes, grid, flat)


def squeezed(shape: tuple[int, ...], flat: bool) -> tuple[int, ...]:
    """A shape without the batch axes of size 1 before (K, h, w), or (K, n) of flat maps."""
    while len(shape) > 3 - flat and shape[0] == 1:
        shape = shape[1:]
    return shape


def _by_number(name: Any, maps: tuple[int, ...], names: ClassNames, labels: Sequence[int], classes: Sequence[str],
               grid: tuple[int, int], flat: bool) -> Picks:
    """The channels of an array without names: all classes, background and all classes, or those of the image in order."""
    count = maps[0] if maps else 1
    channels = 1 + max(names.numbers, default=-1) if names.stated else len(classes)
    if names.stated and count == channels or not names.stated and count in (channels, channels + 1) and count != len(labels):
        first = count - channels
        of_class = {index: number + first for number, index in names.numbers.items() if index is not None}
        if missing := [classes[index] for index in labels if index not in of_class]:
            raise DataError(f"the stated classes lack {', '.join(missing)}, which the image has; name the channel of each in "
                            "imported.classes")
        return _picked(name, [of_class[index] for index in labels], grid, flat, maps, all_classes=True)
    if count == len(labels):
        return _picked(name, list(range(count)), grid, flat, maps, all_classes=not names.stated and count == channels)
    raise DataError(f"it has {count} maps; expected {len(labels)}, those of the classes of the image in their order "
                    f"({', '.join(classes[index] for index in labels)}), or {channels}, those of all classes"
                    f"{'' if names.stated else f', or {channels + 1}, background first'}: state the classes of the channels by "
                    "imported.classes=FILE")


def _picked(name: Any, channels: list[int], grid: tuple[int, int], flat: bool, maps: tuple[int, ...],
            all_classes: bool = False) -> Picks:
    return Picks((name,) * len(channels), tuple(channels) if maps else None, grid, flat, all_classes)


def _array(shapes: Mapping[Any, tuple[int, ...]], layout: Layout) -> Any:
    """The name of the array to take."""
    if layout.key is not None:
        if layout.key not in shapes:
            raise DataError(f"it has no array {layout.key!r}{did_you_mean(layout.key, map(str, shapes))}; expected one of "
                            f"{', '.join(map(str, shapes))}: correct imported.key")
        return layout.key
    known = [name for name in FINEST if name in shapes] or list(shapes)
    if not known or len(known) > 1 and known[0] not in FINEST:
        raise DataError(f"it has the arrays {', '.join(map(str, shapes)) or 'none'}, whose names are no classes of the data "
                        "set; state the one with the maps by imported.key=NAME, or what the names are by imported.classes=FILE")
    return known[0]


def _ordered(tokens: list[Any], names: ClassNames, labels: Sequence[int], classes: Sequence[str]) -> list[Any]:
    """The token of each of the `labels`."""
    if unknown := [token for token in tokens if token not in names]:
        raise DataError(f"it has maps of {', '.join(map(str, unknown[:5]))}, which are no classes of the data set (numbers "
                        f"count from 0 to {len(classes) - 1}); state what they are by imported.classes=FILE")
    token_of = {index: token for token in tokens if (index := names.find(token)) is not None}
    found, wanted = set(token_of), set(labels)
    if missing := [classes[index] for index in labels if index not in found]:
        raise DataError(f"it lacks the maps of {', '.join(missing)}; its maps are of "
                        f"{', '.join(classes[index] for index in sorted(found)) or 'no class'}. Make them, or correct the labels")
    if found - wanted and len(found) < len(classes):
        raise DataError(f"it has maps of {', '.join(classes[index] for index in sorted(found - wanted))}, which the labels of "
                        "the image lack; expected its classes only, or all of the data set. Correct the labels or the file")
    return [token_of[index] for index in labels]


def _grid_of(shape: tuple[int, ...], layout: Layout, size: tuple[int, int], what: str) -> tuple[int, int]:
    """(h, w) of the maps of an array. Raises DataError if it has none."""
    grid = layout.flat_grid(size)
    if grid is not None:
        cells = grid[0] * grid[1]
        if len(shape) not in (1, 2) or shape[-1] not in (cells, cells + 1):   # and a class token before the patches
            raise DataError(f"{what} has the shape {shape}; expected {cells} values for each map, a grid {format_size(grid)}: "
                            "correct imported.grid or imported.patch")
        return grid
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(f"{what} has the shape {shape}; expected maps (K, height, width), or flat "
                        "ones with imported.grid or imported.patch stated")
    if shape[-2:] == (size[1], size[0]) and size[0] != size[1]:
        raise DataError(f"{what} is {format_size((shape[-2], shape[-1]))}, but its image is {format_size(size)}: height and "
                        "width are exchanged. Transpose it")
    return shape[-2], shape[-1]
