"""Import results from files of the official code instead of computing them: maps, confident labels, pseudo masks.

Imported maps of `make_cam` and `make_lpcam` have two sizes only: `ID.npy` is the official `high_res`, `strided/ID.npy` the
official `cam`, both float16. They are marked in the index, and `Maps` (`steps.runtime.artifacts`) reads both.
Imported labels have the same format as computed ones.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steps.parts.thresholds import THRESHOLD
from steps.runtime.artifacts import STRIDED, Labels, Maps, encode_array, write_json
from steps.runtime.context import StepContext
from steps.runtime.inference import for_each_image
from wsss.data.dataset import Dataset
from wsss.data.images import encode_mask, read_mask
from wsss.data.messages import format_size
from wsss.errors import DataError
from wsss.palette import IGNORE

MAPS = {"make_cam": "cam_mask", "make_lpcam": "lpcam_mask"}                     # official folder names (run_sample.py)
LABELS = {"cam_to_ir_label": "ir_label", "make_sem_seg_labels": "sem_seg"}
FOLDERS = {**MAPS, **LABELS}
_ENDS = 4096   # bytes at each end of a file that enter its digest


def official_file(folder: Path, step: str, image_id: str) -> Path:
    """The official file of an image; `folder` contains `cam_mask` and so on."""
    return folder / FOLDERS[step] / f"{image_id}.{'npy' if step in MAPS else 'png'}"


@dataclass(frozen=True)
class Import:
    """A step that converts the official files in `source`; it replaces the module of the step."""

    step: str
    source: Path

    def ids(self, dataset: Dataset) -> tuple[str, ...]:
        """The ids of the data set that have a file, in the order of the data set."""
        folder = self.source / FOLDERS[self.step]
        names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return tuple(i for i in dataset.lists["all"] if official_file(self.source, self.step, i).name in names)

    def digest(self, ids: Iterable[str]) -> str:
        """The digest of the files of `ids`: id, size, first and last 4 KiB of each, as for images. Raises DataError."""
        digest = hashlib.sha256()
        for image_id in ids:
            path = official_file(self.source, self.step, image_id)
            try:
                with open(path, "rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    digest.update(f"{image_id}\t{size}\n".encode())
                    for start in (0, max(0, size - _ENDS)):
                        file.seek(start)
                        digest.update(file.read(_ENDS))
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror or error}; check its permissions, or remove it from "
                                "import_from") from error
        return digest.hexdigest()

    def run(self, context: StepContext) -> dict[str, Any]:
        make = self._maps if self.step in MAPS else self._label
        if self.step == "make_sem_seg_labels":
            write_json(context.folder / THRESHOLD, {"threshold": None, "source": "imported pseudo masks"})
        for_each_image(context, lambda image_id: make(context, image_id))
        return {"imported_from": str(self.source.resolve())}

    def reader(self, folder: Path, n_classes: int) -> Callable[[str], Any]:
        """Return a function that reads and checks the imported file of an image."""
        return Maps(folder).check_imported if self.step in MAPS else Labels(folder, n_classes)

    def _maps(self, context: StepContext, image_id: str) -> tuple[dict[str, bytes], dict[str, Any]]:
        from wsss.cams.maps import SCALES
        from wsss.official import read_maps

        height, width = context.dataset.working_size(image_id)
        maps = read_maps(official_file(self.source, self.step, image_id), (height, width), context.dataset.labels[image_id])
        contents = {f"{kind}{image_id}.npy": encode_array(array.astype(np.float16))
                    for kind, array in (("", maps.high_res), (f"{STRIDED}/", maps.cam))}
        # the scales at which make_lpcam continues from imported CAMs
        return contents, {"height": height, "width": width, "scales": list(SCALES), "imported": True}

    def _label(self, context: StepContext, image_id: str) -> tuple[dict[str, bytes], dict[str, Any]]:
        dataset, path = context.dataset, official_file(self.source, self.step, image_id)
        size = dataset.working_size(image_id) if self.step == "cam_to_ir_label" else dataset.size(image_id)
        label = read_mask(path)
        if label.shape != size:
            raise DataError(f"{path} is {format_size(label.shape)}, but its image is {format_size(size)}. Use the labels that "
                            "were made from this image")
        if ((label > len(dataset.classes)) & (label != IGNORE)).any():
            raise DataError(f"{path} holds values beyond the {len(dataset.classes)} classes of the data set. Use labels of this "
                            "data set")
        return {f"{image_id}.png": encode_mask(label)}, {"height": size[0], "width": size[1]}


