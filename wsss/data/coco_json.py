"""Reading of COCO's object instances; files of another year, part or task and inconsistent files are refused."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss.data.coco_layout import CATEGORY_IDS, CLASS_INDEX, COCO_CLASSES
from wsss.data.messages import refuse
from wsss.errors import DataError
from wsss.reading import parse_json, read_whole

_OTHER_TASKS = {"caption": "captions", "keypoints": "person keypoints", "segments_info": "panoptic segments"}


@dataclass
class Part:
    """The contents of one JSON file: the images by id, and the annotations of each in file order."""

    source: dict[str, Any]  # bytes, digest and number of images
    stems: dict[int, str]
    sizes: dict[int, tuple[int, int]]  # (H, W)
    annotations: dict[int, list[dict]]


def read_instances(path: Path, part: str) -> Part:
    """Read the annotations of a part (train2014 or val2014). Raises DataError for anything but that part's object instances."""
    try:
        content = read_whole(path)
        data = parse_json(content)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; expected the annotations of COCO: check its "
                        "permissions") from error
    except (ValueError) as error:
        raise DataError(f"{path} is not a complete JSON file ({error}); unpack annotations_trainval2014.zip again") from error
    source = {"bytes": len(content), "digest": hashlib.sha256(content).hexdigest()}
    del content
    try:
        _check_task(path, data)
        _check_categories(path, data["categories"])
        found = _take_images(path, part, data["images"])
        _take_annotations(path, found, data["annotations"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} has an incomplete image or annotation ({type(error).__name__}: {error}); expected the "
                        "official instances file: unpack annotations_trainval2014.zip again") from error
    found.source = {**source, "images": len(found.stems)}
    return found


def _check_task(path: Path, data: Any) -> None:
    keys = sorted(data) if isinstance(data, dict) else [type(data).__name__]
    lists = isinstance(data, dict) and all(isinstance(data.get(key), list) for key in ("images", "annotations"))
    first = data["annotations"][0] if lists and data["annotations"] else {}
    other = next((task for key, task in _OTHER_TASKS.items() if key in first), None)
    if other or not lists or not isinstance(data.get("categories"), list):
        raise DataError(f"{path} holds {other or 'something else'} ({', '.join(map(str, keys[:8]))}); expected object instances, "
                        f"with the lists images, annotations and categories: use {path.name} of annotations_trainval2014.zip")


def _check_categories(path: Path, categories: Sequence[Mapping[str, Any]]) -> None:
    found: dict[Any, Any] = {category.get("id"): category.get("name") for category in categories if isinstance(category, dict)}
    expected: dict[Any, Any] = dict(zip(CATEGORY_IDS, COCO_CLASSES))
    if wrong := [i for i in {**found, **expected} if found.get(i) != expected.get(i)]:
        first = f"id {wrong[0]} is {found.get(wrong[0])!r}, expected {expected.get(wrong[0])!r}"
        raise DataError(f"{path} has {len(found)} categories that are not COCO's 80: {first}; use the official file, or "
                        "data=folder for classes of your own")


def _take_images(path: Path, part: str, images: Sequence[Mapping[str, Any]]) -> Part:
    found, problems = Part({}, {}, {}, {}), []
    for image in images:
        number, name, size = image["id"], image["file_name"], (image["height"], image["width"])
        if number in found.stems:
            problems.append(f"image id {number} ({name}) is listed twice; keep one entry")
        elif not re.fullmatch(rf"COCO_{part}_\d{{12}}\.jpg", name) or int(name[-16:-4]) != number:
            problems.append(f"image {number} is the file {name!r}; expected COCO_{part}_{number:0>12}.jpg: is it of another year "
                            "or part?")
        elif not all(isinstance(side, int) and side > 0 for side in size):
            problems.append(f"image {name} is {size[0]} high and {size[1]} wide; expected whole numbers of pixels")
        found.stems[number], found.sizes[number], found.annotations[number] = name.removesuffix(".jpg"), size, []
    if not images:
        problems.append("the list images is empty; expected one entry per image")
    refuse(f"annotations {path}", problems)
    return found


def _take_annotations(path: Path, found: Part, annotations: Sequence[dict]) -> None:
    problems = []
    for annotation in annotations:
        if annotation["image_id"] not in found.annotations:
            problems.append(f"annotation {annotation['id']} is of image {annotation['image_id']}, which is not in images")
        elif annotation["category_id"] not in CLASS_INDEX:
            problems.append(f"annotation {annotation['id']} has category {annotation['category_id']}, which is not in COCO's 80")
        else:
            found.annotations[annotation["image_id"]].append(annotation)
    refuse(f"annotations {path}", problems)


def classes_of(annotations: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """The present classes, ascending; crowds count (official)."""
    return tuple(sorted({CLASS_INDEX[annotation["category_id"]] for annotation in annotations}))
