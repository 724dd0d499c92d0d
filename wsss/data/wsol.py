"""CUB, OpenImages30k and ILSVRC in the layout of the evaluation paper of weakly supervised localisation (Choe et al., "Evaluating
Weakly Supervised Object Localization Methods Right", CVPR 2020; clovaai/wsolevaluation: data_loaders.py, evaluation.py).

Every image has one class. CUB and ILSVRC have boxes of its objects, OpenImages30k has masks of them.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsss.data.checked import reading_wanted
from wsss.data.dataset import Box, Dataset, digest_file
from wsss.data.findings import Finding
from wsss.data.ids import check_id, read_lines
from wsss.data.images import check_image, image_size, read_image, resize_mask
from wsss.data.messages import contents, format_size, refuse
from wsss.errors import DataError
from wsss.files import are_plain_names
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

_DIGITS = 16   # of a number

#: Name of a data set in a configuration -> that of its folders.
WSOL = {"cub": "CUB", "openimages": "OpenImages", "ilsvrc": "ILSVRC"}
SPLITS = ("train", "val", "test")   # train-weaksup, train-fullsup and test of the paper
PROXY = "train_proxy"               # a part of train, on which the paper searches hyper-parameters
#: Images of the official lists, and classes (README of the official code, "Dataset statistics"; ILSVRC's train: ILSVRC 2012).
OFFICIAL = {"cub": {"train": 5_994, "val": 1_000, "test": 5_794, "classes": 200},
            "openimages": {"train": 29_819, "val": 2_500, "test": 5_000, "classes": 100},
            "ilsvrc": {"train": 1_281_167, "val": 10_000, "test": 50_000, "classes": 1_000}}

LAYOUT = """  {root}/
    metadata/{folder}/train/   image_ids.txt: lines PATH; class_labels.txt: PATH,CLASS counted from 0; optional: image_sizes.txt:
                          PATH,WIDTH,HEIGHT; image_ids_proxy.txt: a part of the ids
    metadata/{folder}/val/     likewise, and localization.txt: PATH,X0,Y0,X1,Y1 for each box, or PATH,MASK,IGNORE for each object
    metadata/{folder}/test/    likewise
    dataset/{folder}/          the images and masks, each at its PATH"""


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Masks that are made of files, one for each object of the image's class and one of what is not scored, as the `MaskSource`
    of a data set. Paths are relative to `root`."""

    root: Path
    images: Mapping[str, str]                      # id -> file
    labels: Mapping[str, tuple[int, ...]]
    objects: Mapping[str, tuple[str, ...]]         # id -> files
    ignored: Mapping[str, str]                     # id -> file

    def read(self, image_id: str) -> np.ndarray:
        """(H, W) uint8: the class where an object is, else 255 where the ignore mask is, else 0.

        The official code (`evaluation.get_mask`) resizes the files to 224 px first; here they get the size of the image, by the
        nearest pixel.
        """
        size = image_size(self.root / self.images[image_id])
        shown = np.any([self._drawn(file, size) for file in self.objects[image_id]], axis=0)
        mask = np.where(shown, self.labels[image_id][0] + 1, 0).astype(np.uint8)
        if image_id in self.ignored:
            mask[self._drawn(self.ignored[image_id], size) & ~shown] = IGNORE
        return mask

    def digest(self, image_id: str) -> str:
        files = [*self.objects[image_id], *filter(None, [self.ignored.get(image_id)])]
        return ",".join(digest_file(self.root / file) for file in files)

    def _drawn(self, file: str, size: tuple[int, int]) -> np.ndarray:
        """Where a black and white picture is not black: (H, W) bool in the size of the image."""
        drawn = (read_image(self.root / file).max(axis=2) > 0).astype(np.uint8)
        return resize_mask(drawn, size).astype(bool)


def open_wsol(root: str | Path, kind: str, *, name: str | None = None, max_side: int | None = None,
              check: bool | Path = True) -> Dataset:
    """Open `cub`, `openimages` or `ilsvrc` in `root`, with the layout `LAYOUT`.

    An id is the PATH of an image without its suffix, with "__" for "/". Lists: train, val (train-fullsup of the paper), test and
    "all"; train_proxy if there is one; a list without a folder is empty. Lines of images that are in no list are ignored. The
    name of a class is that of the folder of its images if each class has one, else its number.

    The boxes are of the class of the image, and as in the official files: counted from 0, up to and including the width and
    height. Boxes and masks must cover all of a list or none of it. `check` reads the head and tail of every image and mask; with
    a marker file only if something changed since it was written (`reading_wanted`). EXIF orientation is applied, unlike in the
    official code; a warning counts the images that are turned.

    Raises DataError, listing up to 10 problems, for another layout, and for what is missing, duplicated, damaged or of another
    size.
    """
    folder, splits = _read_splits(Path(root), kind)
    paths = {image_id: path for split in splits.values() for path, image_id in split.ids.items()}
    labels = {image_id: (label,) for split in splits.values() for image_id, label in split.labels.items()}
    lists = {split: tuple(splits[split].ids.values()) if split in splits else () for split in SPLITS} | {"all": tuple(paths)}
    if "train" in splits and (proxy := splits["train"].folder / "image_ids_proxy.txt").exists():
        lists[PROXY] = tuple(i for i, _ in _rows(proxy, splits["train"].ids, 0))
    objects, ignore, boxes = _read_locations(kind, splits)
    pictures = {file: file for file in (*(file for files in objects.values() for file in files), *ignore.values())}
    _refuse_missing(folder, [*paths.values(), *pictures])
    with reading_wanted(check, folder, paths, pictures) as reads:
        if reads:
            _check_files(folder, splits, pictures)
    return Dataset(name=name or kind, root=folder, classes=_class_names(splits), lists=lists, labels=labels, image_files=paths,
                   mask_files={image_id: files[0] for image_id, files in objects.items()},
                   mask_source=ObjectMasks(folder, paths, labels, objects, ignore), max_side=max_side, box_lists=boxes)


def prepare_wsol(root: str | Path, kind: str) -> list[Finding]:
    """The numbers of images and classes beside the official ones. Raises as `open_wsol`, but reads no image."""
    dataset = open_wsol(root, kind, check=False)
    counts = {f"images of {name}": (len(dataset.lists[name]), OFFICIAL[kind][name]) for name in SPLITS}
    counts["classes"] = len(dataset.classes), OFFICIAL[kind]["classes"]
    return [Finding(what, found, expected, "" if found == expected else "not the whole official set")
            for what, (found, expected) in counts.items()]


# The lists.

@dataclass(frozen=True)
class _Split:
    """A folder of metadata/."""

    folder: Path
    ids: dict[str, str]                 # PATH -> id, in order
    labels: dict[str, int]              # id -> class, 0-based
    sizes: dict[str, tuple[int, ...]]   # id -> width, height; empty without image_sizes.txt


def _read_splits(root: Path, kind: str) -> tuple[Path, dict[str, _Split]]:
    """The folder of the images, and the lists that there are."""
    if kind not in WSOL:
        raise DataError(f"{kind!r} is no data set of the evaluation of localisation; expected one of {', '.join(WSOL)}")
    folder, metadata = root / "dataset" / WSOL[kind], root / "metadata" / WSOL[kind]
    present = [name for name in SPLITS if (metadata / name).is_dir()]
    if not present or not folder.is_dir():
        found = f"{root} holds {contents(root)}; " if root.is_dir() else ""
        raise DataError(f"{folder if present else metadata / SPLITS[0]} does not exist; {found}expected this layout:\n"
                        + LAYOUT.format(root=root, folder=WSOL[kind]))
    splits = {name: _read_split(metadata / name, OFFICIAL[kind]["classes"]) for name in present}
    seen: dict[str, str] = {}   # id -> list
    for name, split in splits.items():
        for path, image_id in split.ids.items():
            if image_id in seen:
                raise DataError(f"{path} has the id {image_id!r} of an image of list {seen[image_id]}, and is in list {name} of "
                                f"{metadata}; expected each image in one list: thresholds chosen on val would be chosen on what "
                                "is trained on or scored")
        seen |= dict.fromkeys(split.ids.values(), name)
    return folder, splits


def _read_split(folder: Path, n_classes: int) -> _Split:
    path, ids, problems = folder / "image_ids.txt", {}, []
    for line in filter(None, read_lines(path)):
        image_id = check_id(os.path.splitext(line)[0].replace("/", "__"))
        if line in ids:
            problems.append(f"{line} is listed twice; keep one line")
        ids[line] = image_id
    if not are_plain_names(ids) or len(set(ids.values())) < len(ids):
        problems.append("two paths have the same id (without suffix, '__' for '/'), or one leads out of its folder; rename them")
    if not ids:
        problems.append("it is empty; expected the PATH of an image on each line: restore it, or remove the folder of the list")
    refuse(f"list {path}", problems)
    labels = {image_id: value for image_id, (value,) in _numbers(folder / "class_labels.txt", ids, 1)}
    if wrong := [image_id for image_id, value in labels.items() if not value < n_classes]:
        raise DataError(f"{folder / 'class_labels.txt'} has class {labels[wrong[0]]} for {wrong[0]!r}; expected 0 to "
                        f"{n_classes - 1}: correct the line")
    _refuse_partial(folder / "class_labels.txt", ids, labels)
    sizes = folder / "image_sizes.txt"
    return _Split(folder, ids, labels, dict(_numbers(sizes, ids, 2)) if sizes.exists() else {})


def _rows(path: Path, ids: Mapping[str, str], columns: int) -> Iterator[tuple[str, list[str]]]:
    """The id and the further columns of each line that begins with the PATH of one of the `ids`."""
    for number, line in enumerate(read_lines(path), start=1):
        first, *values = line.rsplit(",", columns) if columns else [line]
        if line and len(values) != columns:
            raise DataError(f"{path}, line {number}, {line!r}, has {len(values) + 1} columns; expected {columns + 1}, the first "
                            "the PATH of an image: correct the line")
        if first in ids:
            yield ids[first], values


def _numbers(path: Path, ids: Mapping[str, str], columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for image_id, values in _rows(path, ids, columns):
        try:
            numbers = tuple(map(int, values)) if max(map(len, values)) < _DIGITS else (-1,)
        except ValueError:
            numbers = (-1,)
        if min(numbers) < 0:
            raise DataError(f"{path} has {','.join(values)} for {image_id!r}; expected whole numbers from 0: correct the line")
        yield image_id, numbers


def _refuse_partial(path: Path, ids: Mapping[str, str], known: Collection[str]) -> None:
    if missing := [line for line, image_id in ids.items() if image_id not in known]:
        raise DataError(f"{path} lacks {len(missing)} of the {len(ids)} images of image_ids.txt, for example {missing[0]}; "
                        "expected a line for each: restore the file, or remove the images from image_ids.txt")


def _class_names(splits: Mapping[str, _Split]) -> tuple[str, ...]:
    """The names of the folders of the first list that there is, without a number in front, if each class has one of its own."""
    first = next(iter(splits.values()))
    number = 1 + max(label for split in splits.values() for label in split.labels.values())
    folders: dict[int, set[str]] = defaultdict(set)
    for path, image_id in first.ids.items():
        folders[first.labels[image_id]].add(re.sub(r"^\d+\.", "", os.path.basename(os.path.dirname(path))))
    names = [name for label in range(number) for name in folders[label]]
    named = all(names) and len(set(names)) == len(names) == number and all(folders.values())
    return tuple(names) if named else tuple(map(str, range(number)))


# Boxes, masks and files.

def _read_locations(kind: str, splits: Mapping[str, _Split]) -> tuple[dict, dict, dict]:
    """id -> masks of objects, id -> ignore mask, id -> boxes, of the lists with a localization.txt."""
    objects: dict[str, tuple[str, ...]] = {}
    ignore: dict[str, str] = {}
    boxes: dict[str, tuple[Box, ...]] = {}
    for split in splits.values():
        if not (path := split.folder / "localization.txt").exists():
            continue
        if kind == "openimages":
            for image_id, (mask, ignored) in _rows(path, split.ids, 2):
                objects[image_id] = (*objects.get(image_id, ()), mask)
                if ignored:   # in one of the lines of an image
                    ignore[image_id] = ignored
        else:
            for image_id, box in _numbers(path, split.ids, 4):
                boxes[image_id] = (*boxes.get(image_id, ()), _box(path, image_id, split.labels[image_id], box))
            _warn_outside(path, split, boxes)
        _refuse_partial(path, split.ids, objects or boxes)
    return objects, ignore, boxes


def _box(path: Path, image_id: str, label: int, box: tuple[int, ...]) -> Box:
    x0, y0, x1, y1 = box
    if x1 < x0 or y1 < y0:
        raise DataError(f"{path} has the box {','.join(map(str, box))} for {image_id!r}; expected X0,Y0,X1,Y1 with X0 <= X1 and "
                        "Y0 <= Y1: correct the line")
    return label, float(x0), float(y0), float(x1), float(y1)


def _warn_outside(path: Path, split: _Split, boxes: Mapping[str, tuple[Box, ...]]) -> None:
    outside = [image_id for image_id, (width, height) in split.sizes.items()
               if any(x1 > width or y1 > height for _, _, _, x1, y1 in boxes.get(image_id, ()))]
    if outside:
        log.warning("%s: %d images have a box that is not inside the image as of image_sizes.txt, for example %s; boxes are "
                    "scored as they are, as in the official code", path, len(outside), outside[0])


def _refuse_missing(folder: Path, files: Iterable[str]) -> None:
    """Each sub-folder is listed once, because a list may have a million images."""
    if not are_plain_names(files := list(files)):
        raise DataError(f"a mask of {folder} has a path that leads out of this folder; expected paths below it in "
                        "localization.txt: correct them")
    names: dict[str, set[str]] = {}
    missing = []
    for file in files:
        place, name = os.path.split(file)
        if place not in names:
            try:
                names[place] = set(os.listdir(folder / place))
            except OSError:
                names[place] = set()
        if name not in names[place]:
            missing.append(file)
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} of the {len(files)} images and masks of the lists, for example "
                        f"{missing[0]}; add them, or remove their lines from the files in metadata/")


def _check_files(folder: Path, splits: Mapping[str, _Split], pictures: Iterable[str]) -> None:
    problems, turned = [], []
    sizes = {image_id: size for split in splits.values() for image_id, size in split.sizes.items()}
    for path, image_id in [item for split in splits.values() for item in split.ids.items()] + [(file, "") for file in pictures]:
        try:
            size = check_image(folder / path)
        except DataError as error:
            problems.append(str(error))
            continue
        width, height = sizes.get(image_id, size[::-1])
        if size == (width, height) != (height, width):
            turned.append(path)
        elif size != (height, width):
            problems.append(f"{path} is {format_size(size)} as shown, but in image_sizes.txt {format_size((height, width))}; "
                            "restore the image, or correct the line and its boxes")
    refuse(f"files of {folder}", problems)
    if turned:
        log.warning("%s: %d images are turned by their EXIF orientation, which the official evaluation does not apply, so their "
                    "boxes do not fit, for example %s; save such images upright", folder, len(turned), turned[0])
