"""Ground-truth boxes from PASCAL VOC XML, a file per image, or from one COCO json with the boxes of all images.

Both readers are mappings, id -> boxes as in `Dataset.box_lists`. A file is read when its boxes are first requested, so a plan in
which nothing reads boxes opens none of them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wsss.data.dataset import Box
from wsss.data.images import image_size
from wsss.data.messages import MAX_REPORTED, did_you_mean, format_size, refuse
from wsss.errors import DataError
from wsss.reading import parse_json, read_whole

log = logging.getLogger(__name__)

_OUTSIDE = 1  # pixels: tools differ by one in where they count from


@dataclass(frozen=True, eq=False)
class XmlBoxes(Mapping[str, tuple[Box, ...]]):
    """The boxes of images with an annotation as in PASCAL VOC: `bndbox` of each `object`; those of its parts are not read.

    `files`: id -> annotation, `images`: id -> image, both below `root`. Without `difficult`, objects marked so are left out.
    """

    root: Path
    files: Mapping[str, str] = field(repr=False)
    images: Mapping[str, str] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    difficult: bool = True
    _read: dict[str, tuple[Box, ...]] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, image_id: str) -> tuple[Box, ...]:
        """Raises KeyError for an image without annotation, DataError, listing up to 10 problems, for one that does not fit."""
        if image_id not in self._read:
            path = self.root / self.files[image_id]
            self._read[image_id] = _xml_boxes(path, self.classes, image_size(self.root / self.images[image_id]), self.difficult)
        return self._read[image_id]

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, eq=False)
class CocoBoxes(Mapping[str, tuple[Box, ...]]):
    """The boxes of the images that a COCO json lists (`images`, `annotations` with `bbox`, `categories`); crowds are left out.

    An image is that of the stem of its `file_name`, a class that of the name of its category.
    """

    path: Path
    root: Path
    images: Mapping[str, str] = field(repr=False)   # id -> file below `root`
    classes: tuple[str, ...] = field(repr=False)

    @cached_property
    def _read(self) -> dict[str, tuple[Box, ...]]:
        return _coco_boxes(self.path, self.root, self.images, self.classes)

    def __getitem__(self, image_id: str) -> tuple[Box, ...]:
        """Raises KeyError for an image that the file does not list, DataError, listing up to 10 problems, for a wrong file."""
        return self._read[image_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


def folder_boxes(root: Path, files: Mapping[str, str], images: Mapping[str, str], classes: tuple[str, ...],
                 labels: Mapping[str, tuple[int, ...]], lists: Mapping[str, tuple[str, ...]], *, difficult: bool = True,
                 check: bool = True) -> Mapping[str, tuple[Box, ...]]:
    """The boxes of a user's folder from its `files` (stem -> file below `root`) of `annotations/`: NAME.xml, or one .json.

    With `check` all are read. Raises DataError, listing up to 10 problems, for files that cannot be read or do not fit their
    images and `classes`, and unless they cover all of train and val, or all of val only. A box of a class that is not in the
    image's `labels` gives a warning.
    """
    tables = [file for file in files.values() if file.lower().endswith(".json")]
    if tables:
        boxes: Mapping[str, tuple[Box, ...]] = CocoBoxes(root / tables[0], root, images, classes)
    else:
        if unused := [image_id for image_id in files if image_id not in images]:
            log.warning("%s: %d annotations have no image and are ignored, for example %s; give an annotation the name of its "
                        "image", root, len(unused), unused[0])
        boxes = XmlBoxes(root, {i: files[i] for i in images if i in files}, images, classes, difficult)
    if not files or not _cover(root, boxes, lists):
        return {}
    if not check:
        return boxes
    problems = []
    for image_id in boxes:
        try:
            boxes[image_id]
        except DataError as error:
            problems.append(str(error))
    refuse(f"annotations of {root}", problems)
    _compare_labels(root, boxes, classes, labels)
    return boxes


def _cover(root: Path, boxes: Mapping[str, tuple[Box, ...]], lists: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the boxes are known for train and val or for val only: scores of half a list would mislead. A warning if not."""
    missing = {name: [image_id for image_id in lists[name] if image_id not in boxes] for name in ("train", "val")}
    only_val = bool(lists["val"]) and len(missing["train"]) == len(lists["train"])
    if not missing["val"] and (not missing["train"] or only_val):
        return True
    counts = ", ".join(f"{name} has {len(lists[name]) - len(missing[name])} of {len(lists[name])}" for name in missing)
    log.warning("%s: the boxes are not used, because they are incomplete: %s, for example that of %s is missing; for scores of "
                "localisation add those of all of train and val, or of val. An image without an object has an annotation without "
                "one", root, counts, (missing["val"] or missing["train"])[0])
    return False


def _compare_labels(root: Path, boxes: Mapping[str, tuple[Box, ...]], classes: tuple[str, ...],
                    labels: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [(image_id, box[0]) for image_id, found in boxes.items() for box in found if box[0] not in labels[image_id]]
    if wrong:
        image_id, index = wrong[0]
        log.warning("%s: %d boxes are of a class that their image does not have in labels.csv, for example %s in %s; the boxes "
                    "are scored, the labels stay: correct the wrong one of the two", root, len(wrong), classes[index], image_id)


# VOC XML.

class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type declaration before it is read: its entities can make a small file fill the memory."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError(f"{self.path} declares a document type, <!DOCTYPE {name}>, which annotations do not have; remove it")


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file. Raises DataError, naming the file, if it cannot be read or declares a document type."""
    try:
        return ElementTree.fromstring(read_whole(path), ElementTree.XMLParser(target=_NoDoctype(path)))
    except DataError:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise DataError(f"cannot read the annotation {path} ({error}); restore it, or remove it") from error


def read_annotation(path: Path) -> ElementTree.Element:
    """The element <annotation> of a VOC XML file. Raises DataError, naming the file, for anything else."""
    annotation = read_xml(path)
    if annotation.tag != "annotation":
        raise DataError(f"{path} is not a VOC annotation: it starts with <{annotation.tag}>, expected <annotation>; restore it")
    return annotation


def class_of(found: ElementTree.Element, path: Path, classes: tuple[str, ...]) -> int:
    """The class (0-based) of an <object>. Raises DataError for a name that is not in `classes`."""
    name = (found.findtext("name") or "").strip()
    if name not in classes:
        raise DataError(f"{path} names an object of the unknown class {name!r}{did_you_mean(name, classes)}; expected one of the "
                        f"{len(classes)} classes of the data set: correct it, or add the class; data=folder reads VOC's layout "
                        "with classes of your own")
    return classes.index(name)


def _xml_boxes(path: Path, classes: tuple[str, ...], size: tuple[int, int], difficult: bool) -> tuple[Box, ...]:
    """The boxes of a VOC annotation of an image of `size` (H, W). Coordinates there are those of the first and the last pixel,
    counted from 1 (VOC development kit, section 9.1)."""
    annotation = read_annotation(path)
    sides = [annotation.findtext(f"size/{side}") for side in ("height", "width")]
    if all(sides) and sides != ["0", "0"] and tuple(map(_number, sides)) != size:   # some tools leave the size out or 0
        raise DataError(f"{path} is for an image that is {sides[0]} high and {sides[1]} wide, but its image is "
                        f"{format_size(size)} as shown; correct its boxes and its size")
    objects = [found for found in annotation.iterfind("object")
               if difficult or (found.findtext("difficult") or "0").strip() == "0"]
    boxes = []
    for found in objects:
        corners = [_number(found.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        boxes.append(_box(path, class_of(found, path, classes), [corner - 1 for corner in corners], size))
    return tuple(boxes)


def _number(text: Any) -> float:
    """A coordinate; not a number, which no check passes, for anything else."""
    try:
        return float("nan" if text is None or isinstance(text, bool) else text)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _box(path: Path, index: int, corners: Sequence[float], size: tuple[int, int], of: str = "") -> Box:
    """A box of class `index` from x and y of its first and last pixel, from 0, cut at the edges of the image of `size` (H, W).

    Raises DataError if a coordinate is missing, if they are in another order, or if more than a pixel is outside.
    """
    (height, width), (x0, y0, x1, y1) = size, corners
    inside = -_OUTSIDE <= x0 <= x1 <= width - 1 + _OUTSIDE and -_OUTSIDE <= y0 <= y1 <= height - 1 + _OUTSIDE
    if not inside or x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
        raise DataError(f"{path}{of} has a box from x={x0:g}, y={y0:g} to x={x1:g}, y={y1:g} (the first and the last pixel, from "
                        f"0), but its image is {format_size(size)}; expected a box inside it: correct the box")
    return index, max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)


# COCO json.

def has_boxes(path: Path) -> bool:
    """Whether a JSON file is of COCO's form and each of its annotations has a box."""
    try:
        data = parse_json(read_whole(path))
        return {"images", "categories"} <= data.keys() and all("bbox" in item for item in data["annotations"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _coco_boxes(path: Path, root: Path, images: Mapping[str, str], classes: tuple[str, ...]) -> dict[str, tuple[Box, ...]]:
    try:
        data = parse_json(read_whole(path))
        stems = {image["id"]: Path(image["file_name"]).stem for image in data["images"]}
        names = {category["id"]: category["name"].strip() for category in data["categories"]}
        sides = {image["id"]: (image.get("height"), image.get("width")) for image in data["images"]}
        found = [(item["image_id"], names.get(item["category_id"]), item["bbox"])
                 for item in data["annotations"] if not item.get("iscrowd")]
        hash(tuple(number for number, _, _ in found))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected a COCO json: check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a COCO json with boxes ({type(error).__name__}: {error}); expected images with id and "
                        "file_name, categories with id and name, annotations with image_id, category_id and bbox") from error
    if unused := [stem for stem in stems.values() if stem not in images]:
        log.warning("%s: %d of its images are not in images/ and are ignored, for example %s; give both the same name", path,
                    len(unused), unused[0])
    sizes = {number: image_size(root / images[stem]) for number, stem in stems.items() if stem in images}
    problems = [f"its image {stems[i]} is {sides[i][0]} high and {sides[i][1]} wide, but {images[stems[i]]} is "
                f"{format_size(size)} as shown; correct the file"
                for i, size in sizes.items() if any(sides[i]) and sides[i] != size]
    boxes: dict[str, list[Box]] = {stems[i]: [] for i in sizes}
    if len(boxes) < len(sizes):
        problems.append("two of its images have the same file name without the suffix; keep one entry for an image")
    for number, name, bbox in found:
        if number not in stems:
            problems.append(f"an annotation is of image {number}, which is not in its images; remove it")
        elif number in sizes and name not in classes:
            nearest = did_you_mean(str(name), classes) if len(problems) < MAX_REPORTED else ""
            problems.append(f"image {stems[number]} has a box of the unknown class {name!r}"
                            f"{nearest or '; expected one of the classes of the data set'}")
        elif number in sizes:
            try:
                boxes[stems[number]].append(coco_box(path, classes.index(str(name)), bbox, sizes[number], stems[number]))
            except DataError as error:
                problems.append(str(error))
    refuse(f"boxes of {path}", problems)
    return {stem: tuple(boxes[stem]) for stem in images if stem in boxes}


def coco_box(path: Path, index: int, bbox: Any, size: tuple[int, int], stem: str) -> Box:
    """A box from `bbox`, a list of x, y, width and height in pixels, measured from the edge of the first pixel.

    Raises DataError, naming the file and the image, for anything else and for a box that is not in the image.
    """
    numbers = [_number(side) for side in bbox] if isinstance(bbox, list) else []
    x, y, width, height = numbers if len(numbers) == 4 and min(numbers[2:]) > 0 else [float("nan")] * 4
    return _box(path, index, (x, y, x + max(width - 1, 0), y + max(height - 1, 0)), size, of=f", image {stem},")
