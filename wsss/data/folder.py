"""A user's folder as a data set. It is checked completely when opened; the errors name the file and the remedy."""

import csv
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from wsss.data.boxes import ANNOTATIONS, folder_boxes
from wsss.data.checked import reading_wanted
from wsss.data.dataset import Dataset
from wsss.data.ids import check_id, read_lines, read_list, without_image
from wsss.data.images import check_image, image_size
from wsss.data.instances import png_objects
from wsss.data.messages import did_you_mean, format_size, refuse
from wsss.errors import DataError

log = logging.getLogger(__name__)

LAYOUT = """  {root}/
    images/       NAME.jpg, .jpeg or .png
    labels.csv    first line: name,classes   then one line per image: NAME,cat;dog   (no class: NAME,)
    classes.txt   one class name per line, without background; line i is mask value i
    masks/        optional: NAME.png, palette or 8-bit grey, 0 background, i class, 255 ignore
    instances/    optional: NAME.png, likewise, 0 none, 255 not scored, else the number of an object; its class is that in masks/
    annotations/  optional: NAME.xml, boxes as in PASCAL VOC, or one .json, boxes of all images as in COCO
    train.txt     optional: one NAME per line; val.txt likewise"""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MIN_TO_SPLIT = 5  # with fewer images none are held out


def open_folder(root: str | Path, *, name: str = "folder", max_side: int | None = None, val_fraction: float = 0.2,
                difficult: bool = True, check: bool | Path = True) -> Dataset:
    """Open the data set in `root`, with the layout `LAYOUT`. Other files and folders are ignored.

    Lists: with one of train.txt and val.txt the other list is the rest; with both, an image in neither is only in "all". With
    neither, `val_fraction` of the images (at least 1 of 5 or more; chosen by a hash of the id, independent of the seed) is held
    out as "val", because thresholds are chosen on val masks and never on the list that is scored. Masks must cover all of train
    and val, or all of val only; boxes likewise. Without `difficult`, boxes of objects that are marked so are left out.
    `check` reads the head and tail of every image, the head of every mask (0.1 ms for both on a local disk) and every box (0.1 ms
    for an image); with a marker file only if something changed since it was written (`reading_wanted`). EXIF orientation is
    applied, so a mask must have the size and orientation of the displayed image.

    Raises DataError, listing up to 10 problems, for anything missing, misspelt, duplicated, damaged or of the wrong size.
    A class without images is accepted with a warning.
    """
    root = Path(root)
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; expected 0 <= val_fraction < 1")
    for part in (root, root / "images", root / "labels.csv", root / "classes.txt"):
        if not os.path.exists(part):
            raise DataError(f"{part} does not exist; expected this layout:\n" + LAYOUT.format(root=root))
    classes = _read_classes(root / "classes.txt")
    images = scan_folder(root, "images", _IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"no image in {root / 'images'}; expected this layout:\n" + LAYOUT.format(root=root))
    labels = _read_labels(root / "labels.csv", classes, images)
    lists = _make_lists(root, images, val_fraction)
    masks = _find_masks(root, images, lists) if (root / "masks").is_dir() else {}
    numbered = scan_folder(root, "instances", (".png",)) if (root / "instances").is_dir() else {}
    annotations = scan_folder(root, ANNOTATIONS, (".xml", ".json")) if (root / ANNOTATIONS).is_dir() else {}
    compared = {name: name for name in ("labels.csv", "classes.txt") if annotations}   # with the boxes
    with reading_wanted(check, root, images, masks, numbered, annotations, compared) as reads:
        if reads:
            check_files(root, images, masks)
        objects = png_objects(root, numbered, masks, images, len(classes), reads)
        boxes = folder_boxes(root, annotations, images, classes, labels, lists, difficult=difficult, check=reads)
    seen = {index for present in labels.values() for index in present}
    if absent := [class_name for index, class_name in enumerate(classes) if index not in seen]:
        log.warning("data set %s: no image of class %s; nothing can be learned about it: check labels.csv", name,
                    ", ".join(absent))
    return Dataset(name=name, root=root, classes=classes, lists=lists, labels=labels, image_files=images, mask_files=masks,
                   max_side=max_side, objects=objects, box_lists=boxes)


def _read_classes(path: Path) -> tuple[str, ...]:
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    problems = []
    for i, name in enumerate(names, start=1):
        if not name:
            problems.append(f"line {i} is empty; it would shift the mask values of the classes below it: remove or fill it")
        elif name.lower() == "background":
            problems.append(f"line {i} is {name!r}; background is mask value 0 and is not listed: remove the line")
        elif ";" in name:
            problems.append(f"line {i}, {name!r}, holds ';', which separates classes in labels.csv: rename the class")
        elif names.index(name) < i - 1:
            problems.append(f"line {i} repeats {name!r} of line {names.index(name) + 1}; rename one class")
    if not names:
        problems.append("it is empty; expected a class name on each line")
    refuse(f"classes {path}", problems)
    return tuple(names)


def scan_folder(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """id -> file relative to `root`, for the files of a folder with one of `suffixes`; sorted by id."""
    files: dict[str, str] = {}
    problems, others = [], []
    try:
        names = sorted(name for name in os.listdir(root / folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {root / folder}: {error.strerror or error}; expected a folder of files "
                        f"{', '.join(suffixes)}: check its name and permissions") from error
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            others.append(name)
            continue
        try:
            image_id = check_id(stem)
        except DataError as error:
            problems.append(str(error))
            continue
        if image_id in files:
            problems.append(f"{Path(files[image_id]).name} and {name} share the id {image_id!r}; rename one")
        files[image_id] = f"{folder}/{name}"
    refuse(f"folder {root / folder}", problems)
    if others:
        log.warning("%s: ignored %d entries that are not %s, for example %s; convert any images among them",
                    root / folder, len(others), ", ".join(suffixes), others[0])
    return dict(sorted(files.items()))


def _read_labels(path: Path, classes: tuple[str, ...], images: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """id -> classes present, for the ids of `images`, all of which must have a row."""
    index = {name: i for i, name in enumerate(classes)}
    found, problems = {}, []
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}   # one tuple for all images of equal labels
    for line, row in read_rows(path):
        if len(row) != 2:
            problems.append(f"line {line}, {','.join(row)!r}, has {len(row)} fields; expected NAME,cat;dog (no class: NAME,)")
            continue
        image_id, names = row[0].strip(), [name.strip() for name in row[1].split(";") if name.strip()]
        if image_id in found:
            problems.append(f"line {line}: {image_id!r} has a row already; keep one")
        elif image_id not in images:
            problems.append(f"line {line}: {without_image(image_id, images)}")
        problems += [f"line {line}: unknown class {name!r}{did_you_mean(name, classes) or '; expected one of classes.txt'}"
                     for name in names if name not in index]
        present = tuple(sorted({index[name] for name in names if name in index}))
        found[image_id] = shared.setdefault(present, present)
    problems += [f"{file} has no row; write '{image_id},' if it shows no class"
                 for image_id, file in images.items() if image_id not in found]
    refuse(f"labels {path}", problems)
    return {image_id: found[image_id] for image_id in images}


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number, fields) of every row after the header `name,classes`."""
    reader = csv.reader(read_lines(path), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; is a quotation mark not closed? Close or "
                        "remove it") from error
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    if header != ["name", "classes"]:
        hint = ": separate the columns by commas and the classes by ';'" if ";" in "".join(header) else ""
        raise DataError(f"{path} starts with {','.join(header)!r}; expected the line 'name,classes'{hint}")
    return rows[1:]


def _make_lists(root: Path, images: Mapping[str, str], val_fraction: float) -> dict[str, tuple[str, ...]]:
    found = {name: read_list(root / f"{name}.txt", images) for name in ("train", "val") if (root / f"{name}.txt").exists()}
    if not found:
        found["val"] = held_out(tuple(images), val_fraction)
    taken = {image_id for ids in found.values() for image_id in ids}
    rest = tuple(image_id for image_id in images if image_id not in taken)
    lists = {"train": found.get("train", rest), "val": found.get("val", rest), "all": tuple(images)}
    if both := set(lists["train"]) & set(lists["val"]):
        raise DataError(f"{len(both)} ids are in both train.txt and val.txt of {root}, for example {min(both)!r}: thresholds "
                        "chosen on val would be chosen on what is scored; keep each in one list")
    if not lists["train"]:
        raise DataError(f"val.txt of {root} lists every image, so nothing is left for train; leave some out or write train.txt")
    return lists


def held_out(ids: tuple[str, ...], fraction: float) -> tuple[str, ...]:
    """The `fraction` of `ids` with the smallest hashes, in the order of `ids`."""
    if fraction == 0 or len(ids) < _MIN_TO_SPLIT:
        return ()
    ranked = sorted(ids, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())
    chosen = set(ranked[:max(1, round(fraction * len(ids)))])
    return tuple(image_id for image_id in ids if image_id in chosen)


def _find_masks(root: Path, images: Mapping[str, str], lists: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """id -> mask file, complete for train and val or for val only, because scores of half a list would mislead."""
    masks = scan_folder(root, "masks", (".png",))
    if unused := [image_id for image_id in masks if image_id not in images]:
        log.warning("%s: %d masks have no image and are ignored, for example %s; give a mask the name of its image",
                    root / "masks", len(unused), unused[0])
    missing = {name: [image_id for image_id in lists[name] if image_id not in masks] for name in ("train", "val")}
    only_val = bool(lists["val"]) and len(missing["train"]) == len(lists["train"])
    if missing["val"] or (missing["train"] and not only_val):
        counts = ", ".join(f"{name} has {len(lists[name]) - len(missing[name])} of {len(lists[name])}" for name in missing)
        example = (missing["val"] or missing["train"])[0]
        raise DataError(f"masks in {root / 'masks'} are incomplete: {counts}, for example {example}.png is missing; expected "
                        "all of train and val, or all of val and none of train, or no masks folder")
    return {image_id: masks[image_id] for image_id in images if image_id in masks}


def check_files(root: Path, images: Mapping[str, str], masks: Mapping[str, str]) -> None:
    problems = []
    for image_id, file in images.items():
        try:
            size = check_image(root / file)
            mask_size = image_size(root / masks[image_id]) if image_id in masks else size
        except DataError as error:
            problems.append(str(error))
            continue
        if mask_size != size:
            problems.append(f"{masks[image_id]} is {format_size(mask_size)} but {file} is {format_size(size)} as shown; "
                            "save the mask in that size")
    refuse(f"files of {root}", problems)
