"""MS COCO 2014 as a data set: the official folder once `prepare_coco` has read its annotations.

The annotations are 670 MB of JSON with polygon masks. They are read once, and the files that `open_coco` needs are written to
the same folder:

    image_labels.csv    one line per image with its classes; the first line identifies the JSON files it was made from
    masks_POLICY/       STEM.png of both parts, and prepared.json, which identifies the same files and whether all masks exist
"""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss.data.checked import reading_wanted
from wsss.data.coco_instances import CocoObjectBoxes, CocoObjects
from wsss.data.coco_layout import (
    COCO_CLASSES,
    LABELS,
    PARTS,
    POLICIES,
    VERSION,
    annotations_of,
    check_layout,
    check_policy,
    folder_of,
    read_marker,
)
from wsss.data.dataset import Dataset
from wsss.data.folder import check_files
from wsss.errors import DataError
from wsss.reading import parse_json


def open_coco(root: str | Path, *, name: str = "coco14", masks: str = "official", max_side: int | None = None,
              check: bool | Path = True) -> Dataset:
    """Open COCO 2014 in `root`, with the layout `coco_layout.LAYOUT`, after `prepare_coco(root, masks)`.

    An id is the stem of its file.

    Lists: train (train2014), val (val2014), all; in the order of the image ids. The classes of an image are those of its
    annotations, including crowds, as in the official code; without annotations it has no label. `check` digests the JSON files
    (otherwise only their sizes are compared) and reads the head and tail of every image and the head of every mask: about half
    a minute for the whole set on a local disk; with a marker file only if something changed since it was written
    (`reading_wanted`).

    Raises DataError for another layout, for `masks` other than official and clean, for damaged files, and, with the command to
    run, if the preparation is missing, incomplete or older than a change of the JSON files.
    """
    root = Path(root)
    check_policy(masks)
    check_layout(root)
    sources, labels = _read_labels(root, masks)
    marker = _read_marker(root, masks)
    if marker["sources"] != sources:
        raise unprepared(root, masks, f"{LABELS} and {folder_of(masks)} were made from different annotations")
    lists = {name: tuple(i for i in labels if i.startswith(f"COCO_{part}_")) for name, part in PARTS.items()}
    images = {image_id: f"{PARTS[name]}/{image_id}.jpg" for name, ids in lists.items() for image_id in ids}
    files = {image_id: f"{folder_of(masks)}/{image_id}.png" for image_id in images}
    parts = {image_id: PARTS[name] for name, ids in lists.items() for image_id in ids}
    objects = CocoObjects(root, parts, {name: made["digest"] for name, made in sources.items()})
    annotations = {part: str(annotations_of(root, part).resolve()) for part in PARTS.values()}
    with reading_wanted(check, root, images, files, annotations) as reads:
        for path in map(Path, annotations.values()):
            made_from = sources[path.name]
            if path.stat().st_size != made_from["bytes"] or (reads and digest_of(path) != made_from["digest"]):
                raise unprepared(root, masks, f"{path.name} has changed since the last preparation")
        if reads:
            check_files(root, images, files)
    return Dataset(name=name, root=root, classes=COCO_CLASSES, lists={**lists, "all": tuple(images)}, labels=labels,
                   image_files=images, mask_files=files, max_side=max_side, objects=objects, box_lists=CocoObjectBoxes(objects))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unprepared(root: Path, policy: str, reason: str) -> DataError:
    """The error for an unprepared data set, with the command to run."""
    command = f"python run_pipeline.py action=prepare data=coco14 {shlex.quote(f'data.root={root}')} data.masks={policy}"
    return DataError(f"COCO in {root} is not prepared: {reason}. Labels and masks are made once from the annotations, and an "
                     f"interrupted preparation can be continued: run {command}")


def _read_labels(root: Path, policy: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The sources of the labels, and id -> classes present."""
    index = {name: i for i, name in enumerate(COCO_CLASSES)}
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    labels: dict[str, tuple[int, ...]] = {}
    try:
        first, _, *rows = (root / LABELS).read_text(encoding="utf-8").splitlines()
        made = parse_json(first.removeprefix("#"))
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
