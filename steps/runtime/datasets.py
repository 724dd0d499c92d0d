"""The kinds of data sets: the settings of each under `data.`, and how to open it. A new kind is a row in `KINDS`."""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steps.runtime.context import require
from wsss.data.archives import Progress
from wsss.data.coco import open_coco
from wsss.data.coco_layout import POLICIES
from wsss.data.coco_prepare import download_coco, prepare_coco
from wsss.data.corrections import find_corrections
from wsss.data.dataset import Dataset
from wsss.data.doubts import MAX_IMAGES, tell
from wsss.data.findings import Finding
from wsss.data.folder import open_folder
from wsss.data.folder_prepare import folder_findings
from wsss.data.saliency import find_saliency
from wsss.data.shapes import draw_saliency, make_shapes
from wsss.data.voc import open_voc
from wsss.data.voc_prepare import download_voc, prepare_voc
from wsss.data.wsol import WSOL, open_wsol, prepare_wsol
from wsss.errors import ConfigError, DataError
from wsss.files import user_path

log = logging.getLogger(__name__)

DRAWN = "drawn"        # data.saliency of the embedded data set: made of its masks
CACHE = "WSSS_CACHE"   # the environment variable with the cache folder


@dataclass
class DataSettings:
    """The settings of every kind of data set. The values are in `conf/data/`."""

    kind: str
    name: str                 # part of the default name of the run
    root: str                 # the folder of the data set
    image_size: int           # side of the training crops in pixels
    max_side: int | None      # shrink images with a longer side to it when reading; results keep the original size
    min_side: int | None      # enlarge images whose longer side is below it: a finer grid, for small objects

    corrections: str | None   # a folder of masks corrected by hand, ID.png, as action=import writes one
    saliency: str | None      # a folder of saliency maps, ID.png, that a refiner may read

    def __post_init__(self) -> None:
        require(self.kind in KINDS and KINDS[self.kind].settings is type(self), "data.kind", self.kind,
                "what the file of the group sets; choose the kind by data=NAME")
        require(self.image_size >= 32 and self.image_size % 4 == 0, "data.image_size", self.image_size,   # 4: as train_irn
                "a multiple of 4, at least 32")
        require(self.max_side is None or self.max_side >= 16, "data.max_side", self.max_side, "null or at least 16 pixels")
        require(self.min_side is None or 16 <= self.min_side <= (self.max_side or self.min_side), "data.min_side", self.min_side,
                f"null or from 16 pixels to data.max_side={self.max_side}")


@dataclass
class FolderData(DataSettings):
    """A folder of the user's own images."""

    val_fraction: float       # share of the ids held out as val if there is neither train.txt nor val.txt
    difficult: bool           # false: boxes of objects marked difficult are left out
    colours: str | None       # a table of the colours or numbers in the masks: a line NAME,RED,GREEN,BLUE or NAME,NUMBER a class
    range: list[float] | None   # the values that become black and white in images of one channel with more than 8 bits
    max_pixels: int | None    # the most pixels of an image; null: Pillow's limit

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.val_fraction < 1, "data.val_fraction", self.val_fraction, "a share in [0, 1)")
        require(self.range is None or len(self.range) == 2 and self.range[0] < self.range[1], "data.range", self.range,
                "null or [LOW,HIGH], the values of black and white")
        require(self.max_pixels is None or self.max_pixels >= 1, "data.max_pixels", self.max_pixels, "null or at least 1")


@dataclass
class ShapesData(DataSettings):
    """The embedded data set, generated on first use below `root`."""

    seed: int
    n_train: int
    n_val: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_train >= 1, "data.n_train", self.n_train, "at least 1 image")
        require(self.n_val >= 1, "data.n_val", self.n_val, "at least 1 image: thresholds are chosen on val")


@dataclass
class VocData(DataSettings):
    """PASCAL VOC 2012: `root` is the folder VOC2012, or contains VOCdevkit/VOC2012."""

    difficult: bool           # false: boxes of objects marked difficult are left out


@dataclass
class Coco14Data(DataSettings):
    """MS COCO 2014 in its official layout, prepared once."""

    masks: str                # official | clean: how to make masks from the annotations

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.masks in POLICIES, "data.masks", self.masks, f"one of {', '.join(POLICIES)}")


@dataclass
class WsolData(DataSettings):
    """CUB, OpenImages30k or ILSVRC in the layout of the evaluation paper: `root` has metadata/ and dataset/."""


def _folder(data: FolderData, check: bool | Path) -> Dataset:
    levels = (data.range[0], data.range[1]) if data.range else None
    return open_folder(user_path(data.root), name=data.name, max_side=data.max_side, val_fraction=data.val_fraction,
                       difficult=data.difficult, check=check, max_pixels=data.max_pixels, levels=levels,
                       colours=user_path(data.colours) if data.colours else None)


def _open_folder(data: FolderData, scratch: Path | None, check: bool | Path) -> Dataset:
    dataset = _folder(data, check)
    log.info("data set %s: %s", data.name, "; ".join(f"{part}: {text}" for part, text in dataset.read_from.items()))
    return dataset


def _prepare_folder(data: FolderData) -> list[Finding]:
    return folder_findings(_folder(data, True), _marker(data))


def _open_voc(data: VocData, scratch: Path | None, check: bool | Path) -> Dataset:
    return open_voc(user_path(data.root), name=data.name, max_side=data.max_side, difficult=data.difficult, check=check)


def _open_shapes(data: ShapesData, scratch: Path | None, check: bool | Path) -> Dataset:
    folder = user_path(data.root) / f"shapes-seed{data.seed}-train{data.n_train}-val{data.n_val}"
    if scratch and not folder.exists():
        folder = scratch / folder.name
    make_shapes(folder, seed=data.seed, n_train=data.n_train, n_val=data.n_val)
    return open_folder(folder, name=data.name, max_side=data.max_side, check=check)


def _open_coco14(data: Coco14Data, scratch: Path | None, check: bool | Path) -> Dataset:
    return open_coco(user_path(data.root), name=data.name, masks=data.masks, max_side=data.max_side, check=check)


def _open_wsol(data: WsolData, scratch: Path | None, check: bool | Path) -> Dataset:
    return open_wsol(user_path(data.root), data.kind, name=data.name, max_side=data.max_side, check=check)


@dataclass(frozen=True)
class Kind:
    """A kind of data set: its settings, how to open it (settings, scratch, check) and to prepare it (None: not needed).

    `download` (settings, progress) downloads its official archives; None: there are none.
    """

    settings: type[DataSettings]
    open: Callable[[Any, Path | None, bool | Path], Dataset]
    prepare: Callable[[Any], list[Finding]] | None = None
    download: Callable[[Any, Progress], list[Finding]] | None = None
    doubtful: bool = False   # masks and labels may contradict each other: the user or a tool drew them


KINDS = {
    "folder": Kind(FolderData, _open_folder, _prepare_folder, doubtful=True),
    "shapes": Kind(ShapesData, _open_shapes),
    "voc12": Kind(VocData, _open_voc, lambda data: prepare_voc(user_path(data.root)),
                  lambda data, progress: download_voc(user_path(data.root), progress), doubtful=True),
    "coco14": Kind(Coco14Data, _open_coco14, lambda data: prepare_coco(user_path(data.root), data.masks),
                   lambda data, progress: download_coco(user_path(data.root), progress)),
    **{kind: Kind(WsolData, _open_wsol, lambda data: prepare_wsol(user_path(data.root), data.kind)) for kind in WSOL},
}


def open_dataset(data: DataSettings, *, scratch: Path | None = None, check: bool = True, reread: bool = False) -> Dataset:
    """Open the data set that `data` describes; the embedded data set is generated if it does not exist yet.

    With `scratch`, a temporary folder, it is generated there and the root is not changed. With `check` all images are read,
    except those unchanged since a run of this user read them (`reading_wanted`); with `reread` these, too; without `check` none.
    What contradicts itself is told (`wsss.data.doubts.tell`), of the masks of up to 5,000 images or with `reread`.
    """
    if reread:
        with suppress(OSError):
            _marker(data).unlink()
    dataset = replace(KINDS[data.kind].open(data, scratch, check and _marker(data)), min_side=data.min_side)
    if check and KINDS[data.kind].doubtful:
        tell(dataset, _marker(data), pixels=reread or len(dataset.image_files) <= MAX_IMAGES)
    if data.corrections is not None:
        dataset = replace(dataset, corrections=find_corrections(user_path(data.corrections), dataset, check))
    if data.saliency is not None:
        folder = draw_saliency(dataset) if isinstance(data, ShapesData) and data.saliency == DRAWN else user_path(data.saliency)
        dataset = replace(dataset, saliency=find_saliency(folder, dataset))
    return dataset


def _marker(data: DataSettings) -> Path:
    """The file that records which files were read. It is in the user's cache: the folder of a data set may be read-only."""
    key = hashlib.blake2b(f"{data.kind} {user_path(data.root).resolve()}".encode(), digest_size=16).hexdigest()
    return user_path(os.environ.get(CACHE, "~/.cache/wsss")).absolute() / "checked" / key


def download_dataset(data: DataSettings, progress: Progress) -> list[Finding]:
    """Download and unpack the missing official archives of a data set.

    Raises
    ------
    ConfigError
        for a kind without archives.
    DataError, StorageError, BusyError
        see `wsss.data.download.obtain`.
    """
    fetch = KINDS[data.kind].download
    if fetch is None:
        with_archives = ", ".join(name for name, kind in KINDS.items() if kind.download)
        raise ConfigError(f"download=True is not possible: expected false for data={data.kind}: only {with_archives} "
                          "have official archives")
    return fetch(data, progress)


def prepare_dataset(data: DataSettings) -> list[Finding]:
    """Check the files of a data set and make once what is derived from them. Does nothing for a kind that needs none.

    Raises DataError if there is no such data set.
    """
    prepare = KINDS[data.kind].prepare
    return prepare(data) if prepare else []


def list_findings(dataset: Dataset) -> list[Finding]:
    """The size of each list of a data set, with the number of masks and, if there are any, of boxes."""
    return [Finding(f"list {name}", len(ids), note=f"{sum(image_id in dataset.mask_files for image_id in ids):,} with masks"
                    + _count_boxes(dataset, ids)) for name, ids in dataset.lists.items()]


def _count_boxes(dataset: Dataset, ids: Sequence[str]) -> str:
    if not (known := [image_id for image_id in ids if image_id in dataset.box_lists]):
        return ""
    try:
        return f", {len(known):,} with boxes ({sum(len(dataset.box_lists[image_id]) for image_id in known):,} boxes)"
    except DataError as error:   # only a step that scores boxes needs them
        return f", boxes that cannot be read: {error}"
