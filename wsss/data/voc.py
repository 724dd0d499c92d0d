"""PASCAL VOC 2012 in its official layout as a data set: its 20 classes, its lists, and image labels from its annotations.

The lists train (1,464), train_aug (10,582, with the annotations of SBD) and val (1,449) are those of the official LPCAM and IRN
code (`voc12/*.txt`). A list of the same name in ImageSets/Segmentation takes precedence.
"""

import csv
import io
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from wsss.data.checked import reading_wanted
from wsss.data.dataset import Dataset
from wsss.data.folder import check_files, read_rows, scan_folder
from wsss.data.ids import read_lines, read_list, union
from wsss.data.images import mask_classes, read_mask
from wsss.data.instances import png_objects
from wsss.data.messages import contents, did_you_mean, refuse
from wsss.errors import DataError

log = logging.getLogger(__name__)

#: In official order: class i (0-based) is mask value i + 1.
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
               "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
LISTS = ("train", "train_aug", "val")
TEST = "test"  # images of the evaluation server, without labels
LABELS = "image_labels.csv"  # written by `prepare_voc`, in the format of labels.csv of a user's folder
OBJECTS = "SegmentationObject"
IMAGES, ANNOTATIONS, MASKS = "JPEGImages", "Annotations", ("SegmentationClassAug", "SegmentationClass")  # in order of precedence

LAYOUT = """  {root}/
    JPEGImages/               ID.jpg: the images
    Annotations/              ID.xml: the objects on each; without it image labels come from the masks
    SegmentationClassAug/     optional: ID.png, masks of train_aug and val to score against; where it has none:
    SegmentationClass/        optional: ID.png, masks of train and val
    SegmentationObject/       optional: ID.png, the objects of train and val, to score instances against
    ImageSets/Segmentation/   optional: train.txt, train_aug.txt, val.txt with one ID per line; without one the official list;
                              test.txt: images to segment, without labels"""

_SHIPPED = Path(__file__).parent / "voc12"
_PARTS = (IMAGES, ANNOTATIONS, *MASKS, "ImageSets")
_BELOW = ("", "VOC2012", "VOCdevkit/VOC2012")


@dataclass(frozen=True)
class VocFiles:
    """The files in the folder VOC2012, relative to `root`."""

    root: Path
    images: Mapping[str, str]       # id -> file
    annotations: Mapping[str, str]
    masks: Mapping[str, str]        # of either folder


def open_voc(root: str | Path, *, name: str = "voc12", max_side: int | None = None, check: bool | Path = True) -> Dataset:
    """Open the data set in `root`, with the layout `LAYOUT`; `root` is the folder VOC2012, VOCdevkit or the parent of that.

    Lists: train, train_aug, val, and their union "all"; with a test.txt also test. The classes of the images that are not in
    "all" are not known (`Dataset.unlabelled`), and their files are not checked. Image labels are read from
    `image_labels.csv`, which `prepare_voc` writes; without it they are derived at each call from an XML file per image, or from
    its mask if there is none. Masks must cover all of train or none of it, likewise val; of train_aug any part.
    `check` reads the head and tail of every image and the head of every mask; with a marker file only if something changed
    since it was written (`reading_wanted`).

    Raises DataError, listing up to 10 problems, for anything missing, duplicated, damaged or of the wrong size.
    """
    root = find_voc(root)
    if not (root / IMAGES).is_dir():
        raise DataError(f"{root / IMAGES} does not exist; expected this layout:\n" + LAYOUT.format(root=root))
    files = voc_files(root)
    lists = _read_lists(files)
    ids = lists["all"]
    images = {image_id: files.images[image_id] for image_id in ids}
    masks = {image_id: files.masks[image_id] for image_id in ids if image_id in files.masks}
    _refuse_partial(root, lists, masks)
    labels = _stored_labels(root, ids) if (root / LABELS).exists() else _derived_labels(files, ids)
    numbered, drawn = scan_part(root, OBJECTS, ".png"), masks | scan_part(root, MASKS[1], ".png")
    with reading_wanted(check, root, images, masks, numbered) as reads:
        if reads:
            check_files(root, images, masks)
        objects = png_objects(root, numbered, drawn, images, len(VOC_CLASSES), reads)   # drawn together with SegmentationClass
    unlabelled = files.images.keys() - images.keys()
    return Dataset(name=name, root=root, classes=VOC_CLASSES, lists=lists, labels=labels | dict.fromkeys(unlabelled, ()),
                   image_files=files.images, mask_files=masks, unlabelled=frozenset(unlabelled), max_side=max_side,
                   objects=objects)


def find_voc(root: str | Path) -> Path:
    """The folder VOC2012: `root` itself or one below it. Raises DataError if there is none."""
    root = Path(root)
    for below in _BELOW:
        if any((root / below / part).is_dir() for part in _PARTS):
            return root / below
    if not root.is_dir():
        raise DataError(f"{root} does not exist; expected this layout:\n" + LAYOUT.format(root=root))
    raise DataError(f"no PASCAL VOC 2012 in {root}, which holds {contents(root)}; expected there, or in VOCdevkit/VOC2012 below "
                    "it, this layout:\n" + LAYOUT.format(root=root))


def voc_files(root: Path) -> VocFiles:
    """The files of each existing folder. If an id has two masks, the one in SegmentationClassAug is used."""
    masks = scan_part(root, MASKS[1], ".png") | scan_part(root, MASKS[0], ".png")
    return VocFiles(root, scan_part(root, IMAGES, ".jpg"), scan_part(root, ANNOTATIONS, ".xml"), masks)


def scan_part(root: Path, folder: str, suffix: str) -> dict[str, str]:
    """id -> file of a folder; empty if there is no such folder."""
    return scan_folder(root, folder, (suffix,)) if (root / folder).is_dir() else {}


def list_file(root: Path, name: str) -> Path:
    """The list of this name in ImageSets/Segmentation, else the official one."""
    own = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    return own if own.exists() else _SHIPPED / f"{name}.txt"


def _read_lists(files: VocFiles) -> dict[str, tuple[str, ...]]:
    """train, train_aug, val and all, and test if there is a test.txt."""
    lists = {}
    for name in LISTS:
        path = list_file(files.root, name)
        missing = [line for line in read_lines(path) if line and line not in files.images]
        if missing and path.parent == _SHIPPED:
            raise DataError(f"{files.root / IMAGES} lacks {len(missing)} images of the official list {name}, for example "
                            f"{missing[0]}.jpg; add them, or write a list of your own to "
                            f"{files.root / 'ImageSets' / 'Segmentation' / path.name}")
        lists[name] = read_list(path, files.images)
    val = set(lists["val"])
    for name in ("train", "train_aug"):
        if both := val.intersection(lists[name]):
            raise DataError(f"{len(both)} ids are in both lists {name} and val of {files.root}, for example {min(both)!r}: "
                            "thresholds chosen on val would be chosen on what is trained on or scored; keep each in one list")
    lists["all"] = union(lists.values())
    if (path := list_file(files.root, TEST)).exists():
        lists[TEST] = read_list(path, files.images)
        if both := set(lists["all"]).intersection(lists[TEST]):
            raise DataError(f"{len(both)} ids are in the list {TEST} and in another of {files.root}, for example {min(both)!r}; "
                            f"expected images without labels: keep each in one list")
    return lists


def _refuse_partial(root: Path, lists: Mapping[str, tuple[str, ...]], masks: Mapping[str, str]) -> None:
    """Raise DataError if masks cover only a part of train or val, because scores of half a list would mislead."""
    problems = []
    for name in ("train", "val"):
        missing = [image_id for image_id in lists[name] if image_id not in masks]
        if 0 < len(missing) < len(lists[name]):
            problems.append(f"{len(missing)} of the {len(lists[name])} ids of list {name} have no mask, for example "
                            f"{missing[0]}; add {missing[0]}.png to {MASKS[0]} or {MASKS[1]}, or remove the line")
    refuse(f"masks of {root}", problems)


# Image labels.

def annotation_classes(path: Path) -> tuple[int, ...]:
    """The classes (0-based, ascending) of the objects in a VOC annotation, including objects marked `difficult` (official).

    The names of object parts (head, hand, foot) are ignored. Raises DataError if the file cannot be read.
    """
    try:
        annotation = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"cannot read the annotation {path} ({error}); restore it, or remove it to use the classes of its "
                        "mask") from error
    if annotation.tag != "annotation":
        raise DataError(f"{path} is not a VOC annotation: it starts with <{annotation.tag}>, expected <annotation>; restore it")
    names = {(found.findtext("name") or "").strip() for found in annotation.iterfind("object")}
    if wrong := sorted(names - set(VOC_CLASSES)):
        raise DataError(f"{path} names an object of the unknown class {wrong[0]!r}{did_you_mean(wrong[0], VOC_CLASSES)}; "
                        "expected one of the 20 of PASCAL VOC: correct it, or use data=folder, which reads this layout with "
                        "classes of your own")
    return tuple(sorted(VOC_CLASSES.index(name) for name in names))


def class_names(classes: Iterable[int]) -> str:
    """Class names as in labels.csv: `cat;person`."""
    return ";".join(VOC_CLASSES[index] for index in classes)


def encode_labels(labels: Mapping[str, tuple[int, ...]]) -> str:
    """`labels` (id -> classes) as the text of `image_labels.csv`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("name", "classes"), *((i, class_names(c)) for i, c in labels.items())])
    return text.getvalue()


def _stored_labels(root: Path, ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """id -> classes present, from `image_labels.csv`, which may have additional ids."""
    path, index = root / LABELS, {name: i for i, name in enumerate(VOC_CLASSES)}
    command = shlex.join(["python", "run_pipeline.py", "action=prepare", "data=voc12", f"data.root={root}"])
    labels = {}
    for line, row in read_rows(path):
        names = row[1].split(";") if len(row) == 2 and row[1] else []
        if len(row) != 2 or not index.keys() >= set(names):
            raise DataError(f"{path}, line {line}, {','.join(row)!r}, is not an id and its classes of PASCAL VOC; make "
                            f"the file again by `{command}`")
        labels[row[0]] = tuple(sorted({index[name] for name in names}))
    if missing := [image_id for image_id in ids if image_id not in labels]:
        raise DataError(f"{path} is stale: it lacks {len(missing)} of the {len(ids)} ids of the lists, for example "
                        f"{missing[0]!r}; make it again by `{command}`")
    return {image_id: labels[image_id] for image_id in ids}


def _derived_labels(files: VocFiles, ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """id -> classes present, from the annotation, else from the mask."""
    log.info("%s: reading the classes of %d images; `prepare_voc` would keep them in %s", files.root, len(ids), LABELS)
    labels, problems = {}, []
    for image_id in ids:
        try:
            if image_id in files.annotations:
                labels[image_id] = annotation_classes(files.root / files.annotations[image_id])
            elif image_id in files.masks:
                path = files.root / files.masks[image_id]
                labels[image_id] = mask_classes(read_mask(path), len(VOC_CLASSES), path)
            else:
                problems.append(f"{image_id!r} has neither annotation nor mask, so its classes are unknown; add "
                                f"{ANNOTATIONS}/{image_id}.xml, or remove it from its lists")
        except DataError as error:
            problems.append(str(error))
    refuse(f"image labels of {files.root}", problems)
    return labels
