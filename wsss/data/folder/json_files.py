"""Labels and shapes of JSON files: COCO's object instances with any classes and ids, and LabelMe's file per image."""

import base64
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss.data.folder.classes import is_class, is_ignored, numbered
from wsss.data.folder.found import Found, Shape, corners_of, found_shapes, size_of
from wsss.data.folder.layout import part_of
from wsss.data.headers import DAMAGE
from wsss.data.ids import Names
from wsss.data.messages import format_size
from wsss.data.rle import runs_of
from wsss.errors import DataError
from wsss.palette import IGNORE
from wsss.reading import parse_json, read_whole

log = logging.getLogger(__name__)

_COCO_KEYS = {"images", "annotations", "categories"}
_SHAPE_ERRORS = (KeyError, *DAMAGE)   # also of a picture in the file


def read_json_labels(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    """The labels in the JSON files of a folder and its sub-folders; None if none is of COCO or LabelMe. COCO's come first."""
    coco, labelme = {}, {}
    for path, content in _json_files(root):
        if isinstance(content, dict) and content.keys() >= _COCO_KEYS:
            coco[path] = content
        elif isinstance(content, dict) and isinstance(content.get("shapes"), list):
            labelme[path] = content
    if coco:
        chosen = {path: content for path, content in coco.items() if path.name.startswith("instances")} or coco
        return _coco(root, chosen, classes, Names(images))
    return _labelme(root, labelme, classes, Names(images)) if labelme else None


def _json_files(root: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted(root.rglob("*.json")):
        try:
            yield path, parse_json(read_whole(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a complete JSON file ({error}); export it again, or move it out of the data "
                            "set") from error


# COCO.

def _coco(root: Path, files: Mapping[Path, dict], classes: tuple[str, ...] | None, names: Names) -> Found:
    categories: dict[str, None] = {}
    labels: dict[str, set[str]] = {}
    shapes: dict[str, list[tuple[str, Shape | None]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    origin: dict[str, str] = {}
    parts: dict[str, str] = {}
    lost: list[str] = []
    for path, content in files.items():
        try:
            by_id = {item["id"]: str(item["name"]) for item in sorted(content["categories"], key=lambda item: item["id"])}
            ids = {item["id"]: names.find(item["file_name"]) for item in content["images"]}
            lost += [item["file_name"] for item in content["images"] if ids[item["id"]] is None]
            categories |= dict.fromkeys(name for name in by_id.values() if is_class(name))
            for item in content["images"]:
                if (image_id := ids[item["id"]]) is not None:
                    sizes[image_id] = size_of(item["height"], item["width"])
                    labels.setdefault(image_id, set())
                    shapes.setdefault(image_id, [])
                    origin[image_id] = path.relative_to(root).as_posix()
                    if part := part_of(path.stem.replace("_", "/").replace("-", "/").replace(".", "/") + "/"):
                        parts[image_id] = part
            for item in content["annotations"]:
                image_id, name = ids[item["image_id"]], by_id[item["category_id"]]
                if image_id is None or not is_class(name) and not is_ignored(name):
                    continue
                shape = _coco_shape(item, sizes[image_id], is_ignored(name))
                if is_class(name):
                    labels[image_id].add(name)
                if is_class(name) or shape is not None:
                    shapes[image_id].append((name, shape))
        except _SHAPE_ERRORS as error:
            raise DataError(f"{path} has an incomplete image, category or annotation ({type(error).__name__}: {error}); expected "
                            "COCO's object instances: export the file again") from error
    if lost:
        log.warning("%s: %d images of the COCO json have no file and are left out, for example %s", root, len(lost), lost[0])
    listed = numbered(classes, categories, next(iter(files)))
    return Found(_named("COCO json", root, files), listed, **found_shapes(listed, labels, shapes, sizes, origin), parts=parts)


def _coco_shape(item: Mapping[str, Any], size: tuple[int, int], ignored: bool) -> Shape | None:
    """The shape of an annotation, with value 255 for a crowd or one that is not scored and else 0, to be replaced; None for a box
    alone."""
    drawn, value = item.get("segmentation"), IGNORE if item.get("iscrowd") or ignored else 0
    if not drawn:
        return None
    if isinstance(drawn, Mapping):
        return Shape(value, runs=tuple(runs_of(drawn["counts"], size).tolist()))
    return Shape(value, tuple(map(corners_of, drawn)))


# LabelMe.

def _labelme(root: Path, files: Mapping[Path, dict], classes: tuple[str, ...] | None, names: Names) -> Found:
    labels: dict[str, set[str]] = {}
    shapes: dict[str, list[tuple[str, Shape | None]]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    origin: dict[str, str] = {}
    for path, content in files.items():
        relative = path.relative_to(root).as_posix()
        image_id = names.find(relative.removesuffix(".json")) or names.find(str(content.get("imagePath", "")))
        if image_id is None:
            log.warning("%s has no image and is left out: expected one of its name, or %r", path, content.get("imagePath"))
            continue
        try:
            sizes[image_id] = size_of(content["imageHeight"], content["imageWidth"])
            drawn = [(str(item["label"]), _labelme_shape(item, sizes[image_id])) for item in content["shapes"]]
            flags = [name for name, is_set in (content.get("flags") or {}).items() if is_set]
        except _SHAPE_ERRORS as error:
            raise DataError(f"{path} has an incomplete shape ({type(error).__name__}: {error}); expected LabelMe's label, points "
                            "and shape_type: save the image again in LabelMe") from error
        labels[image_id] = {name for name in (*flags, *(label for label, _ in drawn)) if is_class(name)}
        shapes[image_id] = [(name, shape) for name, shape in drawn if is_class(name) or is_ignored(name) and shape is not None]
        origin[image_id] = relative
    listed = numbered(classes, sorted(set().union(*labels.values())), root)
    return Found(f"{len(files)} LabelMe json files", listed, **found_shapes(listed, labels, shapes, sizes, origin))


def _labelme_shape(item: Mapping[str, Any], size: tuple[int, int]) -> Shape | None:
    """The shape, with value 255 if it is not scored and else 0, to be replaced; None for others than polygons and masks."""
    value = IGNORE if is_ignored(str(item["label"])) else 0
    if item.get("shape_type", "polygon") == "polygon":
        return Shape(value, (corners_of(item["points"]),))
    if item["shape_type"] == "mask":   # a picture of the box from the first point to the second
        with Image.open(io.BytesIO(base64.b64decode(item["mask"])), formats=["PNG"]) as image:
            drawn = np.asarray(image.convert("1"))
        left, top = map(int, item["points"][0])
        if not (0 <= left < size[1] and 0 <= top < size[0]):
            raise DataError(f"a mask begins at x={left}, y={top}, but its image is {format_size(size)}; expected it inside: draw "
                            "it again")
        return Shape(value, runs=_runs(drawn[:size[0] - top, :size[1] - left], left, top, size))
    return None


def _runs(drawn: np.ndarray, left: int, top: int, size: tuple[int, int]) -> tuple[int, ...]:
    """The run lengths of an image of `size` (H, W) that is `drawn` (h, w) bool from (left, top): only this part is looked at."""
    columns, rows = np.nonzero(np.diff(drawn.T.astype(np.int8), axis=1, prepend=0, append=0))
    bounds = ((columns + left) * size[0] + rows + top).tolist()   # where drawn and undrawn pixels change, column by column
    places: list[int] = []
    for place in bounds if bounds[-1:] != [size[0] * size[1]] else bounds[:-1]:   # a run that goes on in the next column is one
        if places and places[-1] == place:
            places.pop()
        else:
            places.append(place)
    return tuple(second - first for first, second in zip([0, *places], [*places, size[0] * size[1]]))


# Both.

def _named(kind: str, root: Path, files: Mapping[Path, Any]) -> str:
    return f"{kind} {', '.join(path.relative_to(root).as_posix() for path in files)}"
