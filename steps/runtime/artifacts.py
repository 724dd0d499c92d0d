"""Readers and writers of the artifacts of the steps: packed maps (`ID.npy`), labels (`ID.png`), scores (`*.json`).

Every reader checks shape, dtype, range and finiteness, and its errors name the file and the command that repairs it. The
artifact of an image is a `File`: a path, or a member of a pack (`steps.runtime.store`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from steps.runtime.packs import DAMAGED, Member
from steps.runtime.store import Store
from wsss.data.images import decode_mask, write_mask
from wsss.errors import ArtifactError, WsssError
from wsss.files import replacing, write_bytes, write_text
from wsss.reading import parse_json, read_npy, read_npz

if TYPE_CHECKING:
    import torch

File = Path | Member
_MOST_SIDE = 2**20    # of an image or a grid
FG_ONLY = "fg_only"   # sub-folder of make_lpcam with the maps without the background term


def encode_array(array: np.ndarray) -> bytes:
    """Return the bytes of a plain `.npy`."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def write_array(path: Path, array: np.ndarray) -> Path:
    """Write a plain `.npy`, whole or not at all."""
    write_bytes(path, encode_array(array))
    return path


def read_array(path: File, step: str) -> np.ndarray:
    """Read a plain `.npy` of finite numbers, made by `step`.

    Raises ArtifactError if it is missing, damaged or not finite.
    """
    try:
        with path.open("rb") as file:
            array = read_npy(file)
    except (MemoryError, ArtifactError):
        raise
    except Exception as error:   # a damaged header raises almost anything
        raise ArtifactError(f"{path} cannot be read ({error}). {_repair(path, step)}", damaged=path) from error
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise ArtifactError(f"{path} holds numbers that are not finite. {_repair(path, step)}", damaged=path)
    return array


def _repair(path: File, step: str) -> str:
    if isinstance(path, Member):
        return f"Run {step} again: only this image is made"
    return f"Delete it and run {step} again: only missing files are made"


def encode_arrays(**arrays: np.ndarray) -> bytes:
    """Return the bytes of a compressed `.npz`."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    return content.getvalue()


def write_arrays(path: Path, **arrays: np.ndarray) -> Path:
    """Write a plain `.npz`, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    return path


def write_json(path: Path, value: Any) -> Path:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file written by a step.

    Raises ArtifactError if it is missing or damaged.
    """
    step = path.parent.name.split(".")[0]
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist. Run the step {step} first") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Move it away and run {step} again", damaged=path) from error


def check_keys(path: Path, keys: Sequence[str]) -> None:
    """Raise ArtifactError unless a JSON file is an object with `keys`."""
    value = read_json(path)
    if not isinstance(value, dict) or not set(keys) <= value.keys():
        raise ArtifactError(f"{path} does not hold {', '.join(keys)}. Delete it; the same command makes it again", damaged=path)


def read_arrays(path: File, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read an `.npz` written by a step, with at least the arrays `names`.

    Raises ArtifactError if it is missing or damaged, lacks an array, or a float array is not finite.
    """
    try:
        with path.open("rb") as file:
            arrays = read_npz(file)
        wrong = [f"no array {name!r}" for name in names if name not in arrays]
        wrong += [f"{name} is not finite" for name, array in arrays.items()
                  if array.dtype.kind == "f" and not np.isfinite(array).all()]
    except (MemoryError, ArtifactError):
        raise
    except Exception as error:   # a damaged archive raises almost anything
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        raise ArtifactError(f"{path} cannot be read ({'; '.join(wrong)}). Delete it; the same command makes it again",
                            damaged=path)
    return arrays


def quarantine(error: BaseException) -> Path | None:
    """Rename the damaged artifact that an error names, so that the next run makes only it again.

    Returns its new path, or that of a copy if it is a member of a pack. Returns None if the error names no artifact, the
    artifact is missing, or the operating system could not read it: then the file may be intact.
    """
    path, cause = getattr(error, "damaged", None), error.__cause__
    while cause is not None and getattr(cause, "errno", None) is None:
        cause = cause.__cause__
    if path is None or cause is not None:
        return None
    try:
        if isinstance(path, Member):
            target = path.damaged_name
            write_bytes(target, path.raw())
        else:
            target = path.with_name(path.name + DAMAGED)
            os.replace(path, target)
    except OSError:   # the file is missing or the disk is read-only
        return None
    return target


class Maps:
    """The maps of a finished step: one `ID.npy` per image, float16 (K, P), and facts in the index.

    P are the cells of one or several grids, one after the other, whatever their stride: feature grids of several scales, the
    patch grid of a transformer, the pixels of the image (`wsss.cams.maps`). The facts say how to read them:

        height, width   of the network's input
        classes         0-based, K of them
        grids           [[h, w], ...] of the stored maps
        pad, merge      arguments of `wsss.cams.maps.rebuild`, whose defaults are used where they are missing
        range           [least, greatest] stored value, by default [-1, 1]; [0, 1] after a ReLU; null: no limit
        epsilon, maxima added to each maximum, in units of the maps before they were divided by `maxima`; by default 0
        added           sub-folder -> facts of its maps that differ (`steps.step.added`)

    `kind` is "" for the main maps of the step, or the name of a sub-folder (`fg_only`).
    """

    def __init__(self, folder: Path, kind: str = ""):
        self.step, self.kind, self.folder = folder.name.split(".")[0], kind, folder / kind
        self._store = Store(folder)
        self.index = self._store.index

    def of_kind(self, kind: str) -> Maps:
        """The maps of another kind of the step."""
        other = copy(self)
        other.kind, other.folder = kind, self._store.folder / kind
        return other

    def __bool__(self) -> bool:
        """Whether there are maps of this kind."""
        return any(self._name(image_id) in line["files"] for image_id, line in self.index.items())

    def facts(self, image_id: str) -> dict:
        """The line of the index."""
        if image_id not in self.index:
            raise ArtifactError(f"{self.folder} has no maps of {image_id!r} ({len(self.index)} images are there). "
                                f"Run {self.step} again")
        line = self.index[image_id]
        facts = {**line, **line.get("added", {}).get(self.kind, {})}
        if not _describe_maps(facts):
            raise ArtifactError(f"the index of {self.folder} does not describe the maps of {image_id!r}. Run {self.step} again",
                                damaged=self._store.file(image_id, self._name(image_id)))
        return facts

    def classes(self, image_id: str) -> list[int]:
        return self.facts(image_id)["classes"]

    def packed(self, image_id: str) -> np.ndarray:
        """(K, P) float16 as stored. Raises ArtifactError if the file is missing or damaged, or its shape, dtype or values differ
        from the facts."""
        facts = self.facts(image_id)
        path = self._store.file(image_id, self._name(image_id))
        array, repair = read_array(path, self.step), _repair(path, self.step)
        expected = (len(facts["classes"]), sum(height * width for height, width in facts["grids"]))
        if array.shape != expected or array.dtype != np.float16:
            raise ArtifactError(f"{path} holds {array.dtype} {array.shape}, expected float16 {expected}. {repair}", damaged=path)
        least, greatest = facts.get("range", (-1, 1))
        if greatest is not None and (array > greatest).any():
            raise ArtifactError(f"{path} holds values above {greatest}. {repair}", damaged=path)
        if least is not None and (array < least).any():
            raise ArtifactError(f"{path} holds values below {least}. {repair}", damaged=path)
        return array

    def at(self, image_id: str, size: Literal["full", "strided"] | Sequence[int],
           device: torch.device | str = "cpu") -> torch.Tensor:
        """The maps (K, h, w) float32 at a size.

        `size`: "full", the official `high_res` in the size of the network's input; "strided", the official `cam` at stride 4; or
        (h, w): the full map, resized. Of both official maps each class is divided by its own maximum, so it is at most 1.
        Raises ArtifactError as `packed`.
        """
        import torch

        from wsss.cams.maps import at_size, rebuild

        facts = self.facts(image_id)
        packed = torch.from_numpy(self.packed(image_id)).to(device)
        how = {name: facts[name] for name in ("pad", "merge") if name in facts}
        if epsilon := facts.get("epsilon"):   # of the maps before they were divided by `maxima` to be stored
            how["eps"] = epsilon / torch.tensor(facts["maxima"], device=device)
        maps = rebuild(packed, facts["height"], facts["width"], facts["grids"], size if isinstance(size, str) else "full", **how)
        return maps if isinstance(size, str) else at_size(maps, size)

    def _name(self, image_id: str) -> str:
        return "/".join(filter(None, (self.kind, f"{image_id}.npy")))


def _describe_maps(facts: dict[str, Any]) -> bool:
    """Whether the facts of an image are as in `Maps`: the run may be another user's."""
    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    sizes = [[facts.get("height"), facts.get("width")], *(facts["grids"] if isinstance(facts.get("grids"), list) else [None])]
    span = facts.get("range", (-1, 1))
    return (all(isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side < _MOST_SIDE for side in size)
                for size in sizes)
            and isinstance(span, (list, tuple)) and len(span) == 2 and all(end is None or is_number(end) for end in span)
            and isinstance(facts["classes"], list) and isinstance(facts.get("merge", ""), str)
            and is_number(facts.get("pad", 0)) and is_number(facts.get("epsilon", 0))
            and isinstance(facts.get("maxima", []), list) and all(map(is_number, facts.get("maxima", []))))


class Labels:
    """The labels of a finished step: one `ID.png` per image, facts in the index. `kind` is as for `Maps`."""

    def __init__(self, folder: Path, n_classes: int, kind: str = ""):
        self.step, self.kind, self._n_classes = folder.name.split(".")[0], kind, n_classes
        self.store = Store(folder)
        self.index = self.store.index

    def __call__(self, image_id: str, size: Sequence[int] = ()) -> np.ndarray:
        """Read and check the label of an image (`read_label`). `size` (H, W) defaults to the recorded one."""
        size = size or [self.index[image_id].get(side, 0) for side in ("height", "width")]
        return read_label(self.store.file(image_id, self._name(image_id)), size, self._n_classes, self.step)

    def __contains__(self, image_id: str) -> bool:
        """Whether the image has a label of this kind."""
        return image_id in self.index and self._name(image_id) in self.index[image_id]["files"]

    def _name(self, image_id: str) -> str:
        return "/".join(filter(None, (self.kind, f"{image_id}.png")))


def write_label(path: Path, label: np.ndarray) -> Path:
    """Write an (H, W) uint8 label as a palette PNG."""
    write_mask(path, label)
    return path


def read_label(path: File, size: Sequence[int], n_classes: int, step: str) -> np.ndarray:
    """Read an (H, W) uint8 label made by `step`: 0 background, 1..n_classes, 255 ignore; `size` is the expected (H, W).

    Raises ArtifactError if it is missing, damaged, of another size, or contains another value.
    """
    repair = _repair(path, step)
    try:
        label = decode_mask(path.read_bytes(), path)
    except ArtifactError:
        raise
    except (WsssError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). {repair}", damaged=path) from error
    if label.shape != tuple(size):
        raise ArtifactError(f"{path} holds a label of {label.shape}, expected {tuple(size)}. {repair}", damaged=path)
    if ((label > n_classes) & (label != 255)).any():
        raise ArtifactError(f"{path} holds values beyond the {n_classes} classes. {repair}", damaged=path)
    return label
