"""The files of a user's folder: its images, masks and lists, wherever the usual tools put them."""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path

from wsss.data.boxes import has_boxes
from wsss.data.headers import SUFFIXES
from wsss.data.ids import check_id, read_list
from wsss.data.messages import refuse
from wsss.errors import DataError

log = logging.getLogger(__name__)

LAYOUT = """  {root}/
    images/       NAME.jpg, .png, .webp, .tif or .bmp, also in sub-folders
    labels.csv    first line: name,classes   then one line per image: NAME,cat;dog   (no class: NAME,)
                  or instead of it a folder per class, COCO json, VOC XML, LabelMe json, YOLO txt, or masks alone
    classes.txt   one class name per line, without background; line i is mask value i
    masks/        optional: NAME.png, palette or grey, 0 background, i class, 255 ignore; other numbers and colours: data.colours
    annotations/  optional: NAME.xml, boxes as in PASCAL VOC, or one .json, boxes of all images as in COCO
    instances/    optional: NAME.png, likewise, 0 none, 255 not scored, else the number of an object; its class is that in masks/
    train.txt     optional: one NAME per line; val.txt likewise"""

IMAGE_FOLDERS = ("images", "JPEGImages")
MASK_FOLDERS = ("masks", "SegmentationClass")
_ANNOTATION_FOLDERS = ("annotations", "Annotations")
_OBJECT_FOLDERS = ("instances", "SegmentationObject")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_LISTS = ("", "ImageSets/Segmentation", "ImageSets/Main")   # the folders that may hold train.txt and val.txt
_PARTS = {"train": ("train", "train2014", "train2017"), "val": ("val", "valid", "validation", "val2014", "val2017")}
_MIN_TO_SPLIT = 5  # with fewer images none are held out


def scan_folder(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """id -> file relative to `root`, for the files of a folder with one of `suffixes`; sorted by id."""
    files: dict[str, str] = {}
    problems: list[str] = []
    others = []
    for name in _names(root / folder, suffixes):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            others.append(name)
            continue
        _add(files, stem, f"{folder}/{name}", problems)
    refuse(f"folder {root / folder}", problems)
    _warn_ignored(root / folder, others, suffixes)
    return dict(sorted(files.items()))


def _names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}; expected a folder of files "
                        f"{', '.join(suffixes)}: check its name and permissions") from error


def _add(files: dict[str, str], stem: str, file: str, problems: list[str]) -> None:
    try:
        image_id = check_id(stem)
    except DataError as error:
        problems.append(str(error))
        return
    if image_id in files:
        problems.append(f"{files[image_id].removeprefix(os.path.dirname(file) + '/')} and {os.path.basename(file)} share the id "
                        f"{image_id!r}; rename one")
    files[image_id] = file


def _warn_ignored(folder: Path, others: list[str], suffixes: tuple[str, ...]) -> None:
    if others:
        log.warning("%s: ignored %d entries that are not %s, for example %s; convert any images among them",
                    folder, len(others), ", ".join(suffixes), others[0])


def scan_tree(root: Path, folder: str, suffixes: tuple[str, ...], skip: Collection[str] = ()) -> dict[str, str]:
    """As `scan_folder`, with its sub-folders except those named in `skip`. Where files of two sub-folders have one name, the ids
    of all files are their paths, with `__` for `/`."""
    found, others = [], []
    _names(root / folder, suffixes)   # a readable message if it is not a folder
    above = {str(root / folder): {os.path.realpath(root / folder)}}   # folder -> where it and those above it really are
    for path, folders, names in os.walk(root / folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(path, name)) for name in folders}
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")) and name not in skip
                            and real[name] not in above[path])   # a link to a folder above would go on for ever
        above |= {os.path.join(path, name): above[path] | {real[name]} for name in folders}
        below = os.path.relpath(path, root / folder).replace(os.sep, "/")
        names = sorted(name for name in names if not name.startswith("."))
        images = {os.path.splitext(name)[0] for name in names if name.lower().endswith(suffixes)}
        found += [name if below == "." else f"{below}/{name}" for name in names if name.lower().endswith(suffixes)]
        others += [name for name in names if os.path.splitext(name)[0] not in images]   # an annotation has its image's name
    by_stem: dict[str, set[str]] = {}
    for file in found:
        by_stem.setdefault(_nfc(os.path.splitext(os.path.basename(file))[0]), set()).add(os.path.dirname(file))
    paths = any(len(folders) > 1 for folders in by_stem.values())
    files: dict[str, str] = {}
    problems: list[str] = []
    for file in found:
        stem = os.path.splitext(file)[0]
        name = stem.replace("/", "__") if paths else os.path.basename(stem)
        _add(files, name, f"{folder}/{file}" if folder else file, problems)
    refuse(f"folder {root / folder}", problems)
    if folder:
        _warn_ignored(root / folder, others, suffixes)
    if paths:
        log.warning("%s: files of several sub-folders have one name, so the ids are their paths, for example %s",
                    root / folder, next(iter(files)))
    return dict(sorted(files.items()))


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def find_images(root: Path) -> dict[str, str]:
    """id -> image file: of images/ or JPEGImages/, else of the whole folder but its masks. Raises DataError if there is none."""
    folder = next((name for name in IMAGE_FOLDERS if (root / name).exists()), "")
    skip = {*MASK_FOLDERS, *_OBJECT_FOLDERS, "SegmentationClassAug"} if not folder else ()
    images = scan_tree(root, folder, SUFFIXES, skip) if root.exists() else {}
    if not images:
        if not (root / folder).exists():
            raise DataError(f"{root / folder} does not exist; expected this layout:\n" + LAYOUT.format(root=root))
        raise DataError(f"no image in {root / folder}; expected this layout:\n" + LAYOUT.format(root=root))
    return images


def find_masks(root: Path) -> tuple[str, dict[str, str]]:
    """The folder of masks ("" if there is none), and its files by their paths without suffix."""
    folder = next((name for name in MASK_FOLDERS if (root / name).is_dir()), "")
    return folder, scan_tree(root, folder, MASK_SUFFIXES) if folder else {}


def find_objects(root: Path) -> dict[str, str]:
    """id -> file of object numbers."""
    folder = next((name for name in _OBJECT_FOLDERS if (root / name).is_dir()), "")
    return scan_tree(root, folder, MASK_SUFFIXES) if folder else {}


def find_boxes(root: Path) -> dict[str, str]:
    """Stem -> file of the annotations with boxes: VOC's XML in `annotations/`, else a single .json there, which is COCO's."""
    folder = next((name for name in _ANNOTATION_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        return {}
    files = [f"{folder}/{name}" for name in _names(root / folder, (".xml", ".json"))]
    if annotations := [file for file in files if file.lower().endswith(".xml")]:
        texts = ((root / file).read_bytes() for file in annotations)
        first = next((text for text in texts if b"<object" in text), b"<bndbox")   # of an image with objects
        return {Path(file).stem: file for file in annotations} if b"<bndbox" in first else {}
    tables = [file for file in files if file.lower().endswith(".json")]
    if len(tables) != 1:
        return {}
    if not has_boxes(root / tables[0]):
        log.warning("%s has no boxes in COCO's form: expected images, categories, and annotations with bbox; none are scored",
                    root / tables[0])
        return {}
    return {Path(tables[0]).stem: tables[0]}


def make_lists(root: Path, images: Mapping[str, str], known: Collection[str],
               val_fraction: float, parts: Mapping[str, str]) -> tuple[dict[str, tuple[str, ...]], str]:
    """The lists train, val and all of the ids `known`, and where they are from.

    They are train.txt and val.txt, else the lists `parts` that annotation files are named after (id -> train or val), else those
    of the folders of the images, else `val_fraction` is held out.
    """
    files = {name: path for name in ("train", "val") for part in reversed(_LISTS)
             if (path := root / part / f"{name}.txt").exists()}
    ids = tuple(image_id for image_id in images if image_id in known)
    found = {name: tuple(i for i in read_list(path, images) if i in known) for name, path in files.items()}
    origin = " and ".join(str(path.relative_to(root)) for path in files.values())
    if not found and (found := _by_part(parts, ids)):
        origin = "the names of the annotation files"
    if not found and (found := _by_part({i: part for i in ids if (part := part_of(images[i]))}, ids)):
        origin = "the folders of the images"
    if not found:
        found["val"] = held_out(ids, val_fraction)
        origin = f"a fraction of {val_fraction:g} held out as val by a hash of the ids" if found["val"] else "no val list"
    taken = {image_id for part in found.values() for image_id in part}
    rest = tuple(image_id for image_id in ids if image_id not in taken)
    lists = {"train": found.get("train", rest), "val": found.get("val", rest), "all": ids}
    if both := set(lists["train"]) & set(lists["val"]):
        raise DataError(f"{len(both)} ids are in both train.txt and val.txt of {root}, for example {min(both)!r}: thresholds "
                        "chosen on val would be chosen on what is scored; keep each in one list")
    if not lists["train"]:
        raise DataError(f"val.txt of {root} lists every image, so nothing is left for train; leave some out or write train.txt")
    return lists, origin


def part_of(file: str) -> str | None:
    """The list, train or val, whose name a folder of the file has."""
    folders = {folder.lower() for folder in file.split("/")[:-1]}
    return next((name for name, words in _PARTS.items() if folders.intersection(words)), None)


def _by_part(parts: Mapping[str, str], ids: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    if not {"train", "val"} <= set(parts.values()):
        return {}
    return {name: tuple(image_id for image_id in ids if parts.get(image_id) == name) for name in _PARTS}


def held_out(ids: tuple[str, ...], fraction: float) -> tuple[str, ...]:
    """The `fraction` of `ids` with the smallest hashes, in the order of `ids`."""
    if fraction == 0 or len(ids) < _MIN_TO_SPLIT:
        return ()
    ranked = sorted(ids, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())
    chosen = set(ranked[:max(1, round(fraction * len(ids)))])
    return tuple(image_id for image_id in ids if image_id in chosen)
