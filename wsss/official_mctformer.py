"""Files of the official MCTformer code (xulianuwa/MCTformer, 9606597): dictionaries of maps, the parameters of its networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsss.errors import DataError, WeightsError
from wsss.official import write_dictionary

_NET = "backbone.net."


def is_class_maps(found: Mapping[Any, Any]) -> bool:
    """Whether a dictionary (`wsss.official.read_dictionary`) is one of maps by class (engine.py, generate_attention_maps_ms)."""
    return all(isinstance(key, (int, np.integer)) for key in found)


def class_maps(found: Mapping[Any, Any], path: Path | str, size: tuple[int, int], classes: Sequence[int]) -> np.ndarray:
    """The maps (K, H, W) float32 in [0, 1] in a dictionary class, from 0 -> (H, W), of an image of `size` (H, W) in the order of
    its `classes`. Raises DataError, naming the file, for other classes, shapes or values."""
    if set(map(int, found)) != set(classes):
        raise DataError(f"{path} holds maps of the classes {sorted(map(int, found))} (0-based), the labels of the image are "
                        f"{list(classes)}. Use maps of this data set, or correct the labels")
    maps = np.zeros((len(classes), *size), np.float32)
    for place, index in enumerate(classes):
        array = found[index]
        if not isinstance(array, np.ndarray) or array.shape != size or array.dtype.kind != "f":
            raise DataError(f"{path}: the map of class {index} is {getattr(array, 'dtype', type(array).__name__)} "
                            f"{getattr(array, 'shape', '')}, expected real numbers {size} for an image {size[0]} high and "
                            f"{size[1]} wide. Use the maps of this image")
        maps[place] = array
    if not np.isfinite(maps).all() or maps.min(initial=0) < -1e-3 or maps.max(initial=0) > 1 + 1e-3:
        raise DataError(f"{path} holds numbers that are not finite or outside of 0 to 1, the range of MCTformer's maps. Recreate "
                        "it, or leave it out")
    return maps.clip(0, 1)


def write_class_maps(path: Path | str, classes: Sequence[int], maps: np.ndarray) -> None:
    """Write maps (K, H, W) float32 as the dictionary class, from 0 -> (H, W), completely or not at all."""
    write_dictionary(path, {int(index): np.ascontiguousarray(each) for index, each in zip(classes, maps, strict=True)})


def is_mctformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is of MCTformer: a vision transformer with several class tokens."""
    names = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {"cls_token", "pos_embed"} <= names.keys() and names["cls_token"].ndim == 3 and names["cls_token"].shape[1] > 1


def own_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state dict of the official network (`models.py`) by the names of `wsss.classifiers.class_tokens`, of V2 if its head is a
    convolution. The head of V1, which is not used there, is dropped; what is not used here, the ViT's own class token and its
    position, is 0.

    Raises WeightsError if a number is not finite.
    """
    found = {name.removeprefix("module."): value for name, value in tensors.items()}
    for name, value in found.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{where}: {name} holds numbers that are not finite. Use a checkpoint of a finite training")
    tokens, positions = found.pop("cls_token"), found.pop("pos_embed")
    count = tokens.shape[1]
    state = {"tokens": tokens, "positions": positions[:, :count],
             f"{_NET}cls_token": torch.zeros_like(tokens[:, :1]),
             f"{_NET}pos_embed": torch.cat([torch.zeros_like(tokens[:, :1]), positions[:, count:]], dim=1)}
    head = {name: found.pop(name) for name in ("head.weight", "head.bias") if name in found}
    if "head.weight" in head and head["head.weight"].ndim == 4:
        state |= {name.replace("head.", "cells."): value for name, value in head.items()}
    return state | {f"{_NET}{name}": value for name, value in found.items()}


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of our state dicts by the names of the official network, which loads it with `strict=True`. The head of V1, which has
    no use, is 0."""
    own = {name.removeprefix(_NET): value for name, value in state.items() if name.startswith(_NET)}
    tokens = state["tokens"]
    own |= {"cls_token": tokens, "pos_embed": torch.cat([state["positions"], own["pos_embed"][:, 1:]], dim=1)}
    head = {f"head.{name}": state[f"cells.{name}"] for name in ("weight", "bias") if f"cells.{name}" in state}
    return own | (head or {"head.weight": torch.zeros_like(tokens[0]), "head.bias": torch.zeros_like(tokens[0, :, 0])})
