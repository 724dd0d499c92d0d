"""Labels of the other forms: VOC's XML, YOLO's txt, a folder per class."""

import logging
from collections.abc import Mapping
from pathlib import Path

from wsss.data.boxes import read_xml
from wsss.data.folder.classes import is_class, numbered
from wsss.data.folder.found import Drawing, Found, Shape
from wsss.data.folder.layout import IMAGE_FOLDERS, part_of
from wsss.data.ids import Names, read_lines
from wsss.data.images import image_size
from wsss.data.messages import refuse
from wsss.errors import DataError

log = logging.getLogger(__name__)

_LIMIT = 1000.0   # of a share of the image's side
_NO_CLASS = ("none", "negative", "negatives", "no_class", "empty")


def read_xml_labels(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    """The names of the objects in VOC's XML files, also of objects marked `difficult`; None without such files."""
    names, present = Names(images), {}
    lost = []
    for path in sorted(root.rglob("*.xml")):
        annotation = read_xml(path)
        if annotation.tag != "annotation" or annotation.find("object") is None and annotation.find("size") is None:
            continue   # XML of something else
        relative = path.relative_to(root).as_posix().removesuffix(".xml")
        image_id = names.find(relative) or names.find(annotation.findtext("filename") or "")
        if image_id is None:
            lost.append(path.name)
            continue
        found = {(item.findtext("name") or "").strip() for item in annotation.iterfind("object")}
        present[image_id] = {name for name in found if name and is_class(name)}
    if lost:
        log.warning("%s: %d XML files have no image and are left out, for example %s", root, len(lost), lost[0])
    if not present:
        return None
    listed = numbered(classes, sorted(set().union(*present.values())), root)
    return Found(f"{len(present)} XML files of VOC's form", listed,
                 {image_id: tuple(sorted(map(listed.index, found))) for image_id, found in present.items()})


def read_yolo_labels(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    """The classes in YOLO's txt files: a line an object, its class counted from 0, then a box or a polygon in shares of the
    image's width and height. An image without a file has no class. None without such files."""
    files = {image_id: path for image_id, file in images.items() if (path := _yolo_file(root, file)) is not None}
    if not files:
        return None
    if classes is None:
        raise DataError(f"{root} has YOLO labels, for example {next(iter(files.values()))}, but no class list; expected "
                        "classes.txt with a class per line, obj.names or data.yaml: add it")
    labels: dict[str, tuple[int, ...]] = {}
    drawings: dict[str, Drawing] = {}
    problems: list[str] = []
    for image_id, file in images.items():
        objects = _yolo_objects(files[image_id], len(classes), problems) if image_id in files else []
        labels[image_id] = tuple(sorted({number for number, _ in objects}))
        if all(len(places) > 4 for _, places in objects):   # polygons, or nothing
            height, width = image_size(root / file) if objects else (0, 0)
            drawings[image_id] = Drawing((height, width) if objects else image_size(root / file), tuple(
                Shape(number + 1, (tuple((x * width, y * height) for x, y in zip(places[::2], places[1::2])),))
                for number, places in objects))
    refuse(f"labels of {root}", problems)
    if without := len(images) - len(files):
        log.warning("%s: %d images have no YOLO file and are taken as images without a class", root, without)
    if not any(drawing.shapes for drawing in drawings.values()):
        drawings = {}
    return Found(f"{len(files)} YOLO txt files", classes, labels, drawings,
                 {image_id: str((files.get(image_id) or root / images[image_id]).relative_to(root)) for image_id in drawings})


def _yolo_file(root: Path, file: str) -> Path | None:
    """The txt file of an image: beside it, or in labels/ where the image is in images/."""
    stem = file.rpartition(".")[0]
    below = next((stem.removeprefix(f"{folder}/") for folder in IMAGE_FOLDERS if stem.startswith(f"{folder}/")), stem)
    name = below.rpartition("/")[2]
    places = [f"{stem}.txt", f"labels/{below}.txt", f"labels/{name}.txt", stem.replace("images/", "labels/") + ".txt"]
    return next((root / place for place in places if (root / place).is_file()), None)


def _yolo_objects(path: Path, n_classes: int, problems: list[str]) -> list[tuple[int, list[float]]]:
    objects = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        try:
            kind, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            kind, values = -1, []
        fits = len(values) == 4 or len(values) >= 6 and len(values) % 2 == 0
        if fits and 0 <= kind < n_classes and all(abs(value) < _LIMIT for value in values):
            objects.append((kind, values))
        else:
            problems.append(f"{path.name}, line {number}, is {line[:60]!r}; expected a class from 0 to {n_classes - 1}, then x, "
                            "y, width and height, or the corners of a polygon")
    return objects


def read_class_folders(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    """The folder of an image is its class; None unless the images are in two folders or more. Folders train and val are lists."""
    present = {}
    for image_id, file in images.items():
        folders = [folder for folder in file.split("/")[:-1] if folder not in IMAGE_FOLDERS and part_of(f"{folder}/") is None]
        present[image_id] = folders[-1] if folders else ""
    if len(set(present.values())) < 2:
        return None
    refuse(f"class folders of {root}", [f"{images[image_id]} is in no class folder; move it into one, or write labels.csv"
                                        for image_id, name in present.items() if not name])
    named = sorted({name for name in present.values() if is_class(name) and name.lower() not in _NO_CLASS})
    listed = numbered(classes, named, root)
    return Found(f"a folder per class ({len(named)} folders)", listed,
                 {image_id: (listed.index(name),) if name in named else () for image_id, name in present.items()})
