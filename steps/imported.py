"""Import maps from files instead of computing them, so that the later steps refine the maps of any method.

Reads a folder with the maps of each image in any of the forms of `wsss.map_files` (docs/imported_maps.md). Writes `ID.npy`,
float16 (K, P): the maps on the grid of the file, at most as large as the image; of dictionaries as in the official cam_mask and
lpcam_mask the maps at both official sizes, (H, W) and (ceil(H / 4), ceil(W / 4)), one after the other, as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.official import OfficialMaps, stored_maps
from steps.runtime.artifacts import encode_array
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Needs, Setup, StepSettings, facts
from wsss.data.messages import refuse
from wsss.errors import ConfigError, DataError, prefixed
from wsss.files import user_path
from wsss.map_files.files import MapFile, ends_of, find_files
from wsss.map_files.layout import ClassNames, Layout, class_names
from wsss.map_files.reading import Activation, Values, check_headers, maps_of, read_arrays

if TYPE_CHECKING:
    from wsss.data.dataset import Dataset

VERSION = 2
KIND = IMAGES
MAPS = {"": "imported maps"}
SHOWN = 3                  # missing files; and dictionaries that are read before any work, because they have no header
LARGEST = 1e38             # of the range: a float32
reader = OfficialMaps("").reader


@dataclass
class Settings(StepSettings):
    """`imported.`: the values are in `conf/recipe/`."""

    maps: str | None             # the folder
    split: str | None            # null: what the later steps read
    key: str | None              # the array with the maps, in files with several; null: by its name
    classes: str | None          # a YAML file with what the files call the classes; null: as the data set
    grid: list[int] | None       # (h, w) of maps that are stored flat
    patch: int | None            # or the side of a patch in pixels
    activation: Activation
    range: list[float] | None    # (least, greatest) number; null: (0, 1)
    normalise: bool              # divide each map by its maximum

    def __post_init__(self) -> None:
        self.require(self.grid is None or len(self.grid) == 2 and min(self.grid) > 0, "grid", "null or [HEIGHT,WIDTH], above 0")
        self.require(self.patch is None or self.patch >= 1 and self.grid is None, "patch", "null, or at least 1 and then no grid")
        self.require(self.range is None or len(self.range) == 2 and -LARGEST < self.range[0] < self.range[1] < LARGEST, "range",
                     f"null or [LEAST,GREATEST], the first below the second, both below {LARGEST:g}")
        self.require(self.normalise or self.range is not None or self.activation is not Activation.relu, "normalise",
                     "true, or a range, because there is no greatest value after activation=relu")

    @property
    def folder(self) -> Path:
        return user_path(self.maps or "")

    @property
    def values(self) -> Values:
        """What the numbers in the files are."""
        return Values(self.activation, (self.range[0], self.range[1]) if self.range else None)

    @property
    def plain(self) -> bool:
        """Whether nothing is stated, so that dictionaries of the official code are taken as they are."""
        return self.key is None and self.range is None and self.activation is Activation.none and self.normalise

    def names(self, classes: tuple[str, ...]) -> ClassNames:
        """What the files call the classes of the data set. Raises ConfigError for a file `classes` that cannot be used."""
        return class_names(classes, user_path(self.classes) if self.classes else None, f"{self.step}.classes={self.classes}")

    def layout(self, classes: tuple[str, ...]) -> Layout:
        return Layout(self.names(classes), self.key, (self.grid[0], self.grid[1]) if self.grid else None, self.patch)


def identity(setup: Setup) -> dict[str, Any]:
    """The files count, not the names of their folder and of the file with the classes."""
    own, settings, dataset = facts(setup)[setup.name], setup.settings, setup.dataset
    names, digest = settings.names(dataset.classes), None
    if settings.maps:
        digest = hashlib.sha256()
        for image_id, files in find_files(settings.folder, dataset.lists["all"], names).items():
            for file in files:
                what = "" if file.path.suffix == ".npy" else file.path.suffix if file.token is None else f"_{file.token}"
                digest.update(f"{image_id}{what}\t".encode() + ends_of(file.path))
    stated = {str(token): index for token, index in {**names.numbers, **names.words}.items()} if names.stated else None
    return {setup.name: {**own, "maps": digest and digest.hexdigest(), "classes": stated}}


def check(setup: Setup) -> None:
    """Read the headers of all files, and the first dictionaries, which have none."""
    settings, dataset = setup.settings, setup.dataset
    settings.require(settings.maps is not None, "maps", f"a folder with the maps of each image: {setup.name}.maps=DIR")
    layout = settings.layout(dataset.classes)
    ids = [image_id for image_id in setup.lists["ids"] if dataset.labels[image_id]]   # others have no maps
    found = find_files(settings.folder, ids, layout.names)
    if missing := [f"{image_id}.npy" for image_id in ids if image_id not in found]:
        raise ConfigError(f"{setup.name}.maps={settings.maps} lacks the files of {len(missing)} of the {len(ids)} images that "
                          f"are needed ({', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}). Add them, or "
                          "choose shorter lists for the steps that read the maps; docs/imported_maps.md has the names of files")
    problems, unseen = [], 0
    for image_id, files in found.items():
        try:
            with _naming(files):
                size = dataset.size(image_id)
                if not check_headers(files, layout, size, dataset.labels[image_id], dataset.classes) and unseen < SHOWN:
                    unseen += 1
                    _made(settings, layout, dataset, image_id, files)
        except DataError as error:
            problems.append(str(error))
    refuse(f"{setup.name}.maps={settings.maps}", problems)


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate = Estimate(setup)
    images = estimate.images("ids")
    pixels = images.classes * images.pixels
    return estimate.finish(images.total(2 * (1 + 1 / 16) * pixels + 128),
                           passing=estimate.on_host(6 * float(pixels.max(initial=0))), files=1)


def run(context: StepContext) -> dict[str, Any]:
    settings, dataset = context.settings, context.dataset
    layout = settings.layout(dataset.classes)
    found = find_files(settings.folder, context.my_ids, layout.names)

    def make(image_id: str) -> Made:
        files = found.get(image_id, ())
        with _naming(files):
            return _made(settings, layout, dataset, image_id, files)

    for_each_image(context, make)
    return {"imported_from": str(settings.folder.resolve())}


@contextmanager
def _naming(files: tuple[MapFile, ...]) -> Iterator[None]:
    """Errors begin with the file that they are about."""
    try:
        yield
    except DataError as error:
        path = str(files[0].path)
        if path in str(error):
            raise
        raise prefixed(error, path) from error


def _made(settings: Settings, layout: Layout, dataset: Dataset, image_id: str, files: tuple[MapFile, ...]) -> Made:
    """The maps of an image as they are stored. Raises DataError."""
    import torch

    from wsss.cams.maps import pack
    from wsss.official import has_official_sizes, official_maps

    labels, size = dataset.labels[image_id], dataset.working_size(image_id)
    arrays = read_arrays(files) if files else {}
    if settings.plain and has_official_sizes(arrays, size):
        return stored_maps(image_id, size, official_maps(arrays, files[0].path, size, labels))
    maps = torch.zeros(0, 1, 1)
    if labels:
        maps = torch.from_numpy(maps_of(arrays, layout, settings.values, dataset.size(image_id), labels, dataset.classes))
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, (min(maps.shape[1], size[0]), min(maps.shape[2], size[1])))
    packed = pack([maps])[0].numpy() if settings.normalise else maps.flatten(1).numpy().astype(np.float16)
    merge = {} if settings.normalise else {"merge": "resized"}
    return {f"{image_id}.npy": encode_array(packed)}, {"height": size[0], "width": size[1], "grids": [list(maps.shape[1:])],
                                                       "range": [0, 1], **merge}
