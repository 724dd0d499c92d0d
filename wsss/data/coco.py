"""MS COCO 2014 as a data set: its 80 classes, and the official folder once `prepare_coco` has read its annotations.

The annotations are 670 MB of JSON in which masks are polygons. They are read once, and what `open_coco` needs then lies beside
the data:

    image_labels.csv    an image a line with its classes; the first line says from which JSON files it was made
    masks_POLICY/       STEM.png of both parts, and prepared.json, which says the same and whether all are there
"""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss.data.dataset import Dataset, contents
from wsss.data.folder import check_files
from wsss.errors import DataError

#: The 80 classes in the order of their official ids; class i is mask value i + 1.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave",
    "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
#: Class index 0..79 -> official category id 1..90; ten ids of the paper's 91 kinds of things were never used in 2014.
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
#: Official category id -> class index.
CLASS_INDEX = {category: index for index, category in enumerate(CATEGORY_IDS)}

PARTS = {"train": "train2014", "val": "val2014"}  # list -> folder
POLICIES = ("official", "clean")
LABELS = "image_labels.csv"
MARKER = "prepared.json"
VERSION = 1  # raised when labels or masks of the same JSON change

LAYOUT = """  {root}/
    train2014/     COCO_train2014_000000000009.jpg, ...
    val2014/       COCO_val2014_000000000042.jpg, ...
    annotations/   instances_train2014.json, instances_val2014.json"""


def open_coco(root: str | Path, *, name: str = "coco14", masks: str = "official", max_side: int | None = None,
              check: bool = True) -> Dataset:
    """COCO 2014 in `root`, laid out as `LAYOUT` says, after `prepare_coco(root, masks)`. An id is the stem of its file.

    Lists: train (train2014), val (val2014), all; in the order of the image ids. An image shows the classes of which it has an
    annotation, crowds included, as in the official code; without any it has no label. `check` digests the JSON files (else only
    their sizes are compared) and reads the head and tail of every image and the head of every mask: about half a minute for the
    whole set on a local disk.

    Raises DataError for another layout, another `masks` than official and clean, damaged files, and with the command to run where
    nothing is prepared, where the preparation was interrupted, or where the JSON files have changed since.
    """
    from wsss.data.coco_instances import CocoObjects  # late: it imports this module

    root = Path(root)
    check_policy(masks)
    check_layout(root)
    sources, labels = _read_labels(root, masks)
    marker = _read_marker(root, masks)
    if marker["sources"] != sources:
        raise unprepared(root, masks, f"{LABELS} and {folder_of(masks)} were made from different annotations")
    for part in PARTS.values():
        path = annotations_of(root, part)
        made_from = sources[path.name]
        if path.stat().st_size != made_from["bytes"] or (check and digest_of(path) != made_from["digest"]):
            raise unprepared(root, masks, f"{path.name} has changed since the last preparation")
    lists = {name: tuple(i for i in labels if i.startswith(f"COCO_{part}_")) for name, part in PARTS.items()}
    images = {image_id: f"{PARTS[name]}/{image_id}.jpg" for name, ids in lists.items() for image_id in ids}
    files = {image_id: f"{folder_of(masks)}/{image_id}.png" for image_id in images}
    objects = CocoObjects(root, frozenset(images), {name: made["digest"] for name, made in sources.items()})
    if check:
        check_files(root, images, files)
    return Dataset(name=name, root=root, classes=COCO_CLASSES, lists={**lists, "all": tuple(images)}, labels=labels,
                   image_files=images, mask_files=files, max_side=max_side, objects=objects)


def check_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise DataError(f"unknown kind of COCO masks {policy!r}; expected one of {', '.join(POLICIES)}")


def check_layout(root: Path) -> None:
    for part in (root, *(root / part for part in PARTS.values()), *(annotations_of(root, part) for part in PARTS.values())):
        if not os.path.exists(part):
            found = f"{root} holds {contents(root)}; " if os.path.exists(root) else ""
            raise DataError(f"{part} does not exist; {found}expected this layout:\n" + LAYOUT.format(root=root))


def annotations_of(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}.json"


def folder_of(policy: str) -> str:
    """The name of the folder of masks."""
    return f"masks_{policy}"


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unprepared(root: Path, policy: str, reason: str) -> DataError:
    """The error that says what to run."""
    command = f"python run_pipeline.py action=prepare data=coco14 {shlex.quote(f'data.root={root}')} data.masks={policy}"
    return DataError(f"COCO in {root} is not prepared: {reason}. Labels and masks are made once from the annotations, and an "
                     f"interrupted preparation continues: run {command}")


def _read_labels(root: Path, policy: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """What the labels were made from, and id -> classes present."""
    index = {name: i for i, name in enumerate(COCO_CLASSES)}
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    labels: dict[str, tuple[int, ...]] = {}
    try:
        first, _, *rows = (root / LABELS).read_text(encoding="utf-8").splitlines()
        made = json.loads(first.removeprefix("#"))
        for row in rows:
            image_id, names = row.split(",")
            present = tuple(index[name] for name in names.split(";") if name)
            labels[image_id] = shared.setdefault(present, present)
        if made["version"] != VERSION or len(labels) != sum(made["sources"][annotations_of(root, part).name]["images"]
                                                            for part in PARTS.values()):
            raise unprepared(root, policy, f"{LABELS} is of another version or has been changed")
        return made["sources"], labels
    except FileNotFoundError:
        raise unprepared(root, policy, f"there is no {LABELS}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise unprepared(root, policy, f"{LABELS} is damaged") from error


def _read_marker(root: Path, policy: str) -> Mapping[str, Any]:
    marker = read_marker(root, policy)
    others = [other for other in POLICIES if other != policy and read_marker(root, other).get("complete")]
    if not marker:
        reason = f"there are no {policy} masks" + (f", only {others[0]} ones" if others else "")
        raise unprepared(root, policy, reason)
    if not marker["complete"]:
        raise unprepared(root, policy, f"not all of its {policy} masks are there")
    return marker


def read_marker(root: Path, policy: str) -> dict[str, Any]:
    """What `prepare_coco` noted in the folder of masks; empty where it is missing, damaged, or of another policy or version."""
    try:
        marker = json.loads((root / folder_of(policy) / MARKER).read_text(encoding="utf-8"))
        fits = (marker["policy"], marker["version"]) == (policy, VERSION) and {"sources", "complete"} <= marker.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return marker if fits else {}
