"""Readers and writers of what the steps leave behind: packed maps (`ID.npy`), labels (`ID.png`), scores (`*.json`).

Every reader checks shape, dtype, range and finiteness, and names the file and the command that repairs it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steps.journal import read_journals
from wsss.data.images import read_mask, write_mask
from wsss.errors import ArtifactError, WsssError
from wsss.files import replacing, write_text
from wsss.maps import grids, rebuild

FG_ONLY = "fg_only"   # sub-folder of make_lpcam with the maps without the context term


def write_array(path: Path, array: np.ndarray) -> Path:
    """Write a plain `.npy`, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    return path


def write_arrays(path: Path, **arrays: np.ndarray) -> Path:
    """Write a plain `.npz`, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return path


def write_json(path: Path, value: Any) -> Path:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises
    ------
    ArtifactError
        when it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist. Run the step {path.parent.name} first") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}). Move it away and run {path.parent.name} again") from error


class Maps:
    """The packed maps of a finished step (make_cam, make_lpcam): one `ID.npy` an image, facts in the index.

    `kind` is "" for the maps of the step itself or a sub-folder's name (`fg_only`).
    """

    def __init__(self, folder: Path, kind: str = ""):
        self.step = folder.name.split(".")[0]
        self.folder = folder / kind
        self.index = read_journals(folder)

    def facts(self, image_id: str) -> dict:
        """The line of the index: height, width, classes (0-based), scales."""
        if image_id not in self.index:
            raise ArtifactError(f"{self.folder} has no maps of {image_id!r} ({len(self.index)} images are there). "
                                f"Run {self.step} again")
        return self.index[image_id]

    def packed(self, image_id: str) -> np.ndarray:
        """(K, P) float16, checked: in [0, 1], negative only for LPCAM with prototypes that did not come out of a ReLU."""
        facts, path = self.facts(image_id), self.folder / f"{image_id}.npy"
        length = sum(h * w for h, w in grids(facts["height"], facts["width"], facts["scales"]))
        expected = (len(facts["classes"]), length)
        try:
            packed = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}). {self._repair()}") from error
        if packed.shape != expected or packed.dtype != np.float16:
            raise ArtifactError(f"{path} holds {packed.dtype} {packed.shape}, expected float16 {expected}. {self._repair()}")
        if packed.size and not (np.isfinite(packed).all() and np.abs(packed).max() <= 1):
            raise ArtifactError(f"{path} holds values outside [-1, 1]. {self._repair()}")
        return packed

    def map(self, image_id: str, resolution: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """(K, h, w) float32 in [0, 1]: the official `cam` ("strided") or `high_res` ("full") map."""
        facts = self.facts(image_id)
        packed = torch.from_numpy(self.packed(image_id)).to(device)
        return rebuild(packed, facts["height"], facts["width"], facts["scales"], resolution=resolution)

    def classes(self, image_id: str) -> list[int]:
        return self.facts(image_id)["classes"]

    def _repair(self) -> str:
        return f"Delete it and run {self.step} again: only missing files are made"


def write_label(path: Path, label: np.ndarray) -> Path:
    """Write an (H, W) uint8 label as a palette PNG."""
    write_mask(path, label)
    return path


def read_label(path: Path, size: Sequence[int], n_classes: int) -> np.ndarray:
    """Read an (H, W) uint8 label of ours: 0 background, 1..n_classes, 255 unsure; `size` is the expected (H, W).

    Raises
    ------
    ArtifactError
        when it is missing, damaged, of another size, or holds another value.
    """
    repair = f"Delete it and run {path.parent.name.split('.')[0]} again: only missing files are made"
    try:
        label = read_mask(path)
    except (WsssError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). {repair}") from error
    if label.shape != tuple(size):
        raise ArtifactError(f"{path} is {label.shape}, expected {tuple(size)}. {repair}")
    if ((label > n_classes) & (label != 255)).any():
        raise ArtifactError(f"{path} holds values beyond the {n_classes} classes. {repair}")
    return label
