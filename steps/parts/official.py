"""The files of the official code (LPCAM, IRN) that a step can be imported from and exported to: its `OFFICIAL`. The step
`imported` reads the same maps.

Imported maps are stored as they are, at both official sizes: their grids are those of `high_res` and of `cam` (`Maps` in
`steps.runtime.artifacts`, merge "stored"). Imported labels have the same format as computed ones.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from steps.runtime.artifacts import Labels, Maps, encode_array, write_json
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.runtime.journal import Lines
from steps.runtime.schedule import WEIGHTS
from wsss.data.dataset import Dataset
from wsss.data.images import encode_mask, read_mask
from wsss.data.messages import format_size
from wsss.errors import DataError
from wsss.families import from_facts
from wsss.map_files.files import ends_of
from wsss.networks.facts import read_metadata
from wsss.palette import IGNORE

BACKGROUND = "background"   # sub-folder of AMN's maps of the background, which only the official files need
ONE_MAP = {"by": {}, "classes": [-1]}   # its facts in "added": one map, of no class
STRETCHED = "stretched"   # the `merge` of MCTformer's maps (`wsss.cams.maps.rebuild`), whose official files are of another form
_ENDS = 4096   # bytes at each end of a file that enter its digest


@dataclass(frozen=True)
class _Files(ABC):
    """A folder with one file for each image. `name`: as in run_sample.py; "": the files are directly in `parent`."""

    name: str
    suffix: ClassVar[str]

    def path(self, parent: Path, image_id: str) -> Path:
        """The file of an image; `parent` contains `cam_mask` and so on."""
        return parent / self.name / f"{image_id}.{self.suffix}"

    def ids(self, parent: Path, dataset: Dataset) -> tuple[str, ...]:
        """The ids of the data set that have a file, in the order of the data set."""
        folder = parent / self.name
        names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        return tuple(i for i in dataset.lists["all"] if self.path(parent, i).name in names)

    def digest(self, parent: Path, ids: Iterable[str]) -> str:
        """The digest of the files of `ids`: id, size, first and last 4 KiB of each, as for images. Raises DataError."""
        digest = hashlib.sha256()
        for image_id in ids:
            digest.update(f"{image_id}\t".encode() + ends_of(self.path(parent, image_id)))
        return digest.hexdigest()

    def convert(self, context: StepContext, source: Path) -> dict[str, Any]:
        """Make the step from the files below `source` instead of computing it."""
        for_each_image(context, lambda image_id: self._convert(context, source, image_id))
        return {"imported_from": str(source.resolve())}

    @abstractmethod
    def _convert(self, context: StepContext, source: Path, image_id: str) -> Made:
        """The files of one image and the facts for the index."""

    def why_not(self, folder: Path) -> str:
        """Why the finished step in `folder` has no official form; empty if it has."""
        return ""

    def name_in(self, folder: Path) -> str:
        """The name of the folder that the finished step in `folder` is exported to."""
        return self.name

    def bytes_needed(self, folder: Path) -> float:
        """Bytes of the exported files, as far as they are large."""
        return 0.0


@dataclass(frozen=True)
class OfficialMaps(_Files):
    """The dictionaries of class activation maps. `keys`: as the official LPCAM writes them, else as IRN does."""

    suffix: ClassVar[str] = "npy"
    lpcam: bool = False

    def reader(self, folder: Path, n_classes: int) -> Callable[[str], Any]:
        """Return a function that reads and checks the imported maps of an image."""
        return Maps(folder).packed

    def writer(self, folder: Path, n_classes: int) -> Callable[[Path, str], None]:
        """Return a function that writes the official file of an image to a path."""
        from wsss import official
        from wsss.official_mctformer import write_class_maps

        maps = Maps(folder)

        def write(path: Path, image_id: str) -> None:
            if maps.facts(image_id).get("merge") == STRETCHED and not self.lpcam:   # of MCTformer
                write_class_maps(path, maps.classes(image_id), maps.at(image_id, "full").numpy())
                return
            cam, high_res = (maps.at(image_id, size).numpy() for size in ("strided", "full"))
            classes = np.array(maps.classes(image_id), np.int64)
            official.write_maps(path, official.OfficialMaps(classes, cam, high_res), lpcam=self.lpcam)
        return write

    def bytes_needed(self, folder: Path) -> float:
        """The official maps are float32 at full size."""
        return sum(4 * len(line["classes"]) * line["height"] * line["width"] * (1 + 1 / 16) for line in Lines(folder).values())

    def _convert(self, context: StepContext, source: Path, image_id: str) -> Made:
        return self._stored(context, source, image_id)

    def _stored(self, context: StepContext, source: Path, image_id: str, background: bool = False) -> Made:
        from wsss.official import official_maps, read_dictionary
        from wsss.official_mctformer import class_maps, is_class_maps

        size, classes = context.dataset.working_size(image_id), context.dataset.labels[image_id]
        path = self.path(source, image_id)
        found = read_dictionary(path)
        if is_class_maps(found):
            return stored_class_maps(image_id, size, class_maps(found, path, size, classes))
        return stored_maps(image_id, size, official_maps(found, path, size, classes, background), background)


def stored_class_maps(image_id: str, size: tuple[int, int], maps: np.ndarray) -> Made:
    """What is stored of the maps (K, H, W) of MCTformer: they are at full size alone."""
    packed = maps.reshape(len(maps), -1).astype(np.float16)
    return {f"{image_id}.npy": encode_array(packed)}, {
        "height": size[0], "width": size[1], "grids": [list(size)], "merge": STRETCHED, "range": [0, 1], "scales": [1.0]}


def stored_maps(image_id: str, size: tuple[int, int], maps: Any, background: bool = False) -> Made:
    """What is stored of both maps (`wsss.official.OfficialMaps`) of an image whose networks' input has the `size` (H, W); the
    first map is that of the `background`, if there is one."""
    from wsss.cams.maps import SCALES

    both = maps.high_res, maps.cam   # (K, h, w) each
    packed = np.concatenate([array.reshape(len(array), -1) for array in both], axis=1).astype(np.float16)
    facts = {"height": size[0], "width": size[1], "grids": [list(array.shape[1:]) for array in both], "merge": "stored",
             "range": [None, 1],         # official maps are only divided by their maximum
             "scales": list(SCALES)}     # at which make_lpcam continues from imported CAMs
    files = {f"{image_id}.npy": encode_array(packed[background:])}
    if background:
        files[f"{BACKGROUND}/{image_id}.npy"] = encode_array(packed[:1])
        facts |= {"added": {BACKGROUND: ONE_MAP}}
    return files, facts


@dataclass(frozen=True)
class OfficialAMN(OfficialMaps):
    """The dictionaries of AMN's maps, which have the background before the classes."""

    def why_not(self, folder: Path) -> str:
        wanted = Maps(folder)
        if all(f"{BACKGROUND}/{image_id}.npy" in line["files"] for image_id, line in wanted.index.items()):
            return ""
        return f"has no maps of the background. Run it with {wanted.step}.save_background=true"

    def writer(self, folder: Path, n_classes: int) -> Callable[[Path, str], None]:
        from wsss import official

        maps = Maps(folder)
        background = maps.of_kind(BACKGROUND)

        def write(path: Path, image_id: str) -> None:
            cam, high_res = (np.concatenate([each.at(image_id, size).numpy() for each in (background, maps)])
                             for size in ("strided", "full"))
            official.write_maps(path, official.OfficialMaps(np.array(maps.classes(image_id), np.int64), cam, high_res))
        return write

    def _convert(self, context: StepContext, source: Path, image_id: str) -> Made:
        return self._stored(context, source, image_id, background=True)


@dataclass(frozen=True)
class OfficialLabels(_Files):
    """PNG labels. `original`: in the size of the image, else in that of the network input.

    `common`: files that an imported step has, name -> JSON content.
    """

    suffix: ClassVar[str] = "png"
    original: bool = False
    common: dict[str, Any] = field(default_factory=dict)

    def reader(self, folder: Path, n_classes: int) -> Callable[[str], Any]:
        """Return a function that reads and checks the label of an image."""
        return Labels(folder, n_classes)

    def writer(self, folder: Path, n_classes: int) -> Callable[[Path, str], None]:
        """Return a function that writes the official file of an image to a path."""
        from wsss.official import write_label

        read = Labels(folder, n_classes)
        return lambda path, image_id: write_label(path, read(image_id))

    def convert(self, context: StepContext, source: Path) -> dict[str, Any]:
        for name, content in self.common.items():
            write_json(context.folder / name, content)
        return super().convert(context, source)

    def _convert(self, context: StepContext, source: Path, image_id: str) -> Made:
        dataset, path = context.dataset, self.path(source, image_id)
        size = dataset.size(image_id) if self.original else dataset.working_size(image_id)
        label = read_mask(path)
        if label.shape != size:
            raise DataError(f"{path} is {format_size(label.shape)}, but its image is {format_size(size)}. Use the labels that "
                            "were made from this image")
        if ((label > len(dataset.classes)) & (label != IGNORE)).any():
            raise DataError(f"{path} holds values beyond the {len(dataset.classes)} classes of the data set. Use labels of this "
                            "data set")
        return {f"{image_id}.png": encode_mask(label)}, {"height": size[0], "width": size[1]}


RESNET50 = {"method": "resnet", "depth": "resnet50", "norm": "frozen_batch"}   # facts of official backbones
RESNET38 = {"method": "resnet38", "norm": "frozen_batch"}


@dataclass(frozen=True)
class OfficialNetwork:
    """The weights file of a training; the setting `weights` of the step reads it. `layout`: its names in
    `wsss.official_networks`. `backbone`: the facts of its backbone. A classifier may have an official code, and so a file, of its
    own (`ClassifierMethod.official_file`)."""

    name: str
    layout: str
    backbone: Mapping[str, str] = field(default_factory=lambda: RESNET50)

    def name_in(self, folder: Path) -> str:
        """The name of the file that the finished step in `folder` is exported as."""
        return (method.official_file if (method := _own_code(folder)) else "") or self.name

    def why_not(self, folder: Path) -> str:
        """Why the finished step in `folder` has no official form; empty if it has."""
        facts = read_metadata(folder / WEIGHTS)
        if method := _own_code(folder):
            return method.no_official(facts["backbone"])
        if facts.get("backbone") != self.backbone:
            name = self.backbone.get("depth", self.backbone["method"])
            return f"has the backbone {facts.get('backbone')}, the official network a {name} with batch norm"
        return ""

    def bytes_needed(self, folder: Path) -> float:
        """Bytes of the exported file, as far as it is large."""
        return 0.0

    def write(self, target: Path, folder: Path) -> None:
        """Write the official file of the finished step in `folder` into the folder `target`."""
        from wsss import official_networks as official
        from wsss.networks.weights import read_tensors

        state = read_tensors(folder / WEIGHTS)
        if method := _own_code(folder):
            official.write_state(target / self.name_in(folder), method.official(state))
            return
        official.write_network(target / self.name, state, getattr(official, self.layout))
        if official.SECOND in state:   # of ReCAM
            official.write_second(target / self.name, state[official.SECOND])


def _own_code(folder: Path) -> Any:
    """The classifier in the weights file of a finished step, if it has an official code of its own; else None."""
    facts = read_metadata(folder / WEIGHTS).get("classifier")
    method = from_facts("classifier", facts) if facts else None
    return method if method is not None and method.official_file else None
