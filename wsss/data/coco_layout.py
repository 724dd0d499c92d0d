"""Shared by the modules of COCO 2014: its classes, the layout of its files, and the marker of a preparation."""

import os
from pathlib import Path
from typing import Any

from wsss.data.messages import contents
from wsss.errors import DataError
from wsss.reading import parse_json

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
#: Class index 0..79 -> official category id 1..90; ten ids of the paper's 91 categories are not used in 2014.
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
#: Official category id -> class index.
CLASS_INDEX = {category: index for index, category in enumerate(CATEGORY_IDS)}

PARTS = {"train": "train2014", "val": "val2014"}  # list -> folder
POLICIES = ("official", "clean")
LABELS = "image_labels.csv"
MARKER = "prepared.json"
VERSION = 1  # increased when the labels or masks made from the same JSON change

LAYOUT = """  {root}/
    train2014/     COCO_train2014_000000000009.jpg, ...
    val2014/       COCO_val2014_000000000042.jpg, ...
    annotations/   instances_train2014.json, instances_val2014.json"""


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


def read_marker(root: Path, policy: str) -> dict[str, Any]:
    """The marker of `prepare_coco` in the folder of masks; empty if missing, damaged, or of another policy or version."""
    try:
        marker = parse_json((root / folder_of(policy) / MARKER).read_text(encoding="utf-8"))
        fits = (marker["policy"], marker["version"]) == (policy, VERSION) and {"sources", "complete"} <= marker.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return marker if fits else {}
