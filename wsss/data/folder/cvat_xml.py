"""Labels and shapes of CVAT's own files, "CVAT for images 1.1": `annotations.xml` with an element <image> for each image."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from wsss.data.boxes import read_xml
from wsss.data.folder.classes import is_class, is_ignored, numbered
from wsss.data.folder.found import Found, Shape, corners_of, found_shapes, run_lengths, size_of
from wsss.data.folder.layout import part_of
from wsss.data.ids import Names
from wsss.errors import DataError
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

LABELS_ALONE = ("box", "tag")                                     # no shape of an object, but its class is in the image
LEFT_OUT = ("polyline", "points", "cuboid", "skeleton")           # of lines and points: neither
ROUND = 90                                                        # corners of an ellipse
_ERRORS = (KeyError, ValueError, OverflowError, DataError)


def read_cvat_labels(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    """The labels and shapes in CVAT's XML files of a folder and its sub-folders; None without such files.

    Polygons, ellipses and masks are shapes, in the order of `z_order`; boxes and tags are labels alone. Polylines, points,
    cuboids and skeletons are left out with a warning. The classes are in the order of the file's list of labels.
    """
    files = {path: content for path in sorted(root.rglob("*.xml")) if _begins(path)
             and any((content := read_xml(path)).find(tag) is not None for tag in ("image", "track"))}
    if not files:
        return None
    reading = _Reading(root, Names(images))
    for path, content in files.items():
        reading.add(path, content)
    reading.tell()
    listed = numbered(classes, reading.classes, next(iter(files)))
    shown = ", ".join(path.relative_to(root).as_posix() for path in files)
    fields = found_shapes(listed, reading.labels, reading.shapes, reading.sizes, reading.origin)
    return Found(f"CVAT XML {shown}", listed, **fields, parts=reading.parts)


def _begins(path: Path) -> bool:
    """Whether it begins as a file of CVAT: others, of which there may be one for each image, are not parsed."""
    try:
        with path.open("rb") as file:
            return b"<annotations" in file.read(1000)
    except OSError:   # told by the reader of the other form
        return False


class _Reading:
    """What was read so far."""

    def __init__(self, root: Path, names: Names):
        self.root, self.names = root, names
        self.classes: dict[str, None] = {}
        self.labels: dict[str, set[str]] = {}
        self.shapes: dict[str, list[tuple[str, Shape | None]]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.origin: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self.lost: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, path: Path, content: Element) -> None:
        if content.find("track") is not None:
            raise DataError(f"{path} has tracks of a video; expected annotations of images: export the task as CVAT for images "
                            "1.1")
        for label in content.iterfind("./meta/*/labels/label"):
            name = (label.findtext("name") or "").strip()
            if is_class(name) and label.findtext("type") != "skeleton" and label.find("parent") is None:
                self.classes[name] = None
        for image in content.iterfind("image"):
            try:
                self._image(path, image)
            except _ERRORS as error:
                raise DataError(f"{path}, image {image.get('name')!r}, has an incomplete shape ({type(error).__name__}: "
                                f"{error}); expected CVAT for images 1.1: export the task again") from error

    def _image(self, path: Path, image: Element) -> None:
        name = image.attrib["name"]
        image_id = self.names.find(name)
        if image_id is None:
            self.lost.append(name)
            return
        size = self.sizes[image_id] = size_of(image.attrib["height"], image.attrib["width"])
        self.origin[image_id] = path.relative_to(self.root).as_posix()
        if part := part_of(f"{image.get('subset', '')}/{name}"):
            self.parts[image_id] = part
        labels, drawn = self.labels.setdefault(image_id, set()), self.shapes.setdefault(image_id, [])
        for item in image:
            label = item.attrib["label"]
            if item.tag in LEFT_OUT or not is_class(label) and (item.tag in LABELS_ALONE or not is_ignored(label)):
                self.left_out[item.tag] += item.tag in LEFT_OUT
                continue
            if is_class(label):
                self.classes[label] = None
                labels.add(label)
            if item.tag != "tag":
                drawn.append((label, _shape(item, size)))

    def tell(self) -> None:
        if self.lost:
            log.warning("%s: %d images of CVAT's XML have no file and are left out, for example %s", self.root, len(self.lost),
                        self.lost[0])
        if counts := {tag: count for tag, count in self.left_out.items() if count}:
            log.warning("%s: shapes without an area are left out: %s; draw polygons or masks instead", self.root,
                        ", ".join(f"{count} of the kind {tag}" for tag, count in counts.items()))


def _shape(item: Element, size: tuple[int, int]) -> Shape | None:
    """The shape of an element, with value 255 if it is not scored and else 0, to be replaced; None for a box."""
    value, order = IGNORE if is_ignored(item.attrib["label"]) else 0, int(item.get("z_order") or 0)
    if item.tag == "box":
        return None
    if item.tag == "polygon":
        points = [[float(number) for number in pair.split(",")] for pair in item.attrib["points"].split(";")]
        return Shape(value, (corners_of(points),), order=order)
    if item.tag == "ellipse":
        return Shape(value, (corners_of(_ellipse(item)),), order=order)
    if item.tag == "mask":
        return Shape(value, runs=_runs(item, size), order=order)
    raise DataError(f"it is a <{item.tag}>; expected a polygon, an ellipse, a mask or a box")


def _ellipse(item: Element) -> np.ndarray:
    """The corners (ROUND, 2) of an ellipse, whose rotation is clockwise in degrees."""
    x, y, along, across = (float(item.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
    turned, angles = np.radians(float(item.get("rotation") or 0)), np.linspace(0, 2 * np.pi, ROUND, endpoint=False)
    u, v = along * np.cos(angles), across * np.sin(angles)
    return np.stack([x + u * np.cos(turned) - v * np.sin(turned), y + u * np.sin(turned) + v * np.cos(turned)], axis=1)


def _runs(item: Element, size: tuple[int, int]) -> tuple[int, ...]:
    """COCO's run lengths in the image from those of a <mask>: row by row in its box, beginning with background."""
    left, top, width, height = (int(item.attrib[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in item.attrib["rle"].split(",")]
    inside = min(left, top, width, height, *counts) >= 0 and top + height <= size[0] and left + width <= size[1]
    if not inside or sum(counts) != width * height:
        raise DataError(f"the counts of a mask fill {sum(counts)} pixels; expected {width * height}, those of its box of {width} "
                        f"x {height} pixels in the image")
    mask = np.zeros(size, bool)
    mask[top:top + height, left:left + width] = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return run_lengths(mask)
