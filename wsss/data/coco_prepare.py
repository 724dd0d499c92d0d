"""Preparation of COCO: instance annotations become image labels in one text file and class masks in palette PNGs.

There are two policies for masks. `official`: annotations are drawn in file order, later ones over earlier ones, and crowds are
background. `clean`: crowds are 255 (ignore), and instances are drawn over them, the largest first, so that small ones stay
visible.
"""

import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsss.data.archives import Progress
from wsss.data.coco_instances import draw, pycocotools_mask
from wsss.data.coco_json import Part, classes_of, read_instances
from wsss.data.coco_layout import (
    CLASS_INDEX,
    COCO_CLASSES,
    LABELS,
    LAYOUT,
    MARKER,
    PARTS,
    VERSION,
    annotations_of,
    check_layout,
    check_policy,
    folder_of,
    read_marker,
)
from wsss.data.download import Archive, obtain
from wsss.data.findings import Finding
from wsss.data.images import check_image, write_mask
from wsss.data.messages import format_size, refuse
from wsss.errors import DataError, StorageError
from wsss.files import write_text
from wsss.palette import IGNORE

log = logging.getLogger(__name__)

COUNTS = {"train2014": 82783, "val2014": 40504}  # images, as published
# The bucket behind http://images.cocodataset.org, which has no certificate for that name. cocodataset.org publishes no
# checksums: the MD5s are from PaddleDetection and LAVIS; that of the annotations is also the server's ETag.
_BUCKET = "https://s3.amazonaws.com/images.cocodataset.org"
_MD5 = {"train2014": "0da8c0bd3d6becc4dcb32757491aca88", "val2014": "a3d79f5ed8d289b7a7554ce06a5782b3"}
ARCHIVES = (*(Archive(f"{_BUCKET}/zips/{part}.zip", _MD5[part], only=(part,)) for part in PARTS.values()),
            Archive(f"{_BUCKET}/annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd",
                    only=tuple(f"annotations/instances_{part}.json" for part in PARTS.values())))
_EVERY = 5000  # masks between two log lines


def prepare_coco(root: str | Path, policy: str = "official") -> list[Finding]:
    """Check COCO 2014 in `root`, write image_labels.csv and masks_POLICY/ there, and return the lines of a report.

    Every file is written completely or not at all. An interrupted call can be repeated: complete masks of the same annotations
    are kept. Concurrent calls share the work. Both JSON files are parsed: about 5 GB of memory for the whole set.

    Raises DataError for another layout, JSON of another year or task, or files that do not fit it; BackendError without
    pycocotools; StorageError if `root` cannot be written. Fewer images than official are no error: `Finding.ok` is then False.
    """
    root = Path(root)
    check_policy(policy)
    check_layout(root)
    rle = pycocotools_mask()
    parts, findings = {}, []
    for part in PARTS.values():
        parts[part] = read_instances(annotations_of(root, part), part)
        findings += _check_images(root, part, parts[part])
    labels = {part.stems[i]: classes_of(part.annotations[i]) for part in parts.values() for i in sorted(part.stems)}
    shown = Counter(index for classes in labels.values() for index in classes)
    absent = [name for index, name in enumerate(COCO_CLASSES) if index not in shown]
    note = f"no image of {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}" if absent else ""
    findings.append(Finding("classes on an image", len(shown), len(COCO_CLASSES), note))
    sources = {annotations_of(root, name).name: part.source for name, part in parts.items()}
    try:
        _write_labels(root, sources, labels)
        made = _write_masks(root, policy, sources, parts, rle)
    except StorageError as error:
        raise StorageError(f"COCO in {root} cannot be prepared ({error.__cause__ or error}). Make room or make it writable; or "
                           "prepare a folder of your own that holds links to train2014, val2014 and annotations") from error
    note = f"{made:,} made, {len(labels) - made:,} were there"
    findings.append(Finding(f"masks in {folder_of(policy)}", len(labels), len(labels), note))
    return findings


def download_coco(root: str | Path, progress: Progress, archives: Sequence[Archive] = ARCHIVES) -> list[Finding]:
    """Download train2014.zip (13.5 GB), val2014.zip (6.6 GB) and annotations_trainval2014.zip unless `root` has their contents.

    Raises as `obtain`, and BackendError before any download without pycocotools, which the preparation needs.
    """
    root, _ = Path(root), pycocotools_mask()
    missing = [archive for archive in archives if not all(_is_there(root, name) for name in archive.only)]
    return obtain(root, root, missing, progress) if missing else [Finding("archives to fetch", 0, 0)]


def _is_there(root: Path, name: str) -> bool:
    """Whether a file exists, or all official images of a part."""
    if name not in COUNTS:
        return (root / name).exists()
    return (root / name).is_dir() and sum(file.endswith(".jpg") for file in os.listdir(root / name)) >= COUNTS[name]


def _check_images(root: Path, part: str, found: Part) -> list[Finding]:
    """Check that every image exists, is complete and has the size in its annotations; return the counts."""
    try:
        files = {name for name in os.listdir(root / part) if name.endswith(".jpg") and not name.startswith(".")}
    except OSError as error:
        raise DataError(f"cannot read the folder {root / part}: {error.strerror or error}; expected this layout:\n"
                        + LAYOUT.format(root=root)) from error
    missing = sorted(stem for stem in found.stems.values() if f"{stem}.jpg" not in files)
    if missing:
        raise DataError(f"{root / part} lacks {len(missing):,} of the {len(found.stems):,} images of instances_{part}.json, for "
                        f"example {missing[0]}.jpg; unpack {part}.zip there, or remove these images from the JSON file")
    problems = []
    for number, stem in found.stems.items():
        try:
            size = check_image(root / part / f"{stem}.jpg")
        except DataError as error:
            problems.append(str(error))
            continue
        if size != found.sizes[number]:
            problems.append(f"{part}/{stem}.jpg is {format_size(size)}, but in its annotations "
                            f"{format_size(found.sizes[number])}; restore the image")
    refuse(f"files of {root}", problems)
    return _counts(part, found, len(files))


def _counts(part: str, found: Part, n_files: int) -> list[Finding]:
    n_images, all_annotations = len(found.stems), list(found.annotations.values())
    crowds = sum(bool(annotation.get("iscrowd")) for annotations in all_annotations for annotation in annotations)
    return [Finding(f"images of {part}", n_images, COUNTS[part],
                    "" if n_images == COUNTS[part] else "not the whole official set"),
            Finding(f"files in {part} that are in no annotations", n_files - n_images, 0),
            Finding(f"images of {part} without object", sum(not annotations for annotations in all_annotations)),
            Finding(f"annotations of {part}", sum(map(len, all_annotations)), None, f"{crowds:,} of them crowds")]


# Writing.

def _write_labels(root: Path, sources: Mapping[str, Any], labels: Mapping[str, tuple[int, ...]]) -> None:
    lines = ["# " + json.dumps({"version": VERSION, "sources": sources}), "name,classes"]
    lines += [f"{image_id},{';'.join(COCO_CLASSES[index] for index in classes)}" for image_id, classes in labels.items()]
    write_text(root / LABELS, "\n".join(lines) + "\n")


def _write_masks(root: Path, policy: str, sources: Mapping[str, Any], parts: Mapping[str, Part], rle: Any) -> int:
    """Make the missing masks and return their number. The marker says "complete" only after all were checked."""
    folder, marker = root / folder_of(policy), {"policy": policy, "version": VERSION, "sources": sources}
    if read_marker(root, policy).get("sources") != sources:
        for path in folder.glob("COCO_*.png"):  # of other annotations
            path.unlink(missing_ok=True)
        write_text(folder / MARKER, json.dumps({**marker, "complete": False}) + "\n")
    made, started = 0, time.monotonic()
    while todo := [(folder / f"{stem}.png", part.sizes[number], part.annotations[number])
                   for part in parts.values() for number, stem in part.stems.items()
                   if not _is_whole(folder / f"{stem}.png", part.sizes[number])]:
        random.Random(os.getpid()).shuffle(todo)  # so that several processes make different masks
        for i, (path, size, annotations) in enumerate(todo):
            if i % _EVERY == 0:
                log.info("%s: %d of %d masks to make, %.0f s", folder, len(todo) - i, len(todo), time.monotonic() - started)
            if not _is_whole(path, size):
                write_mask(path, render(annotations, size, policy, rle))
                made += 1
    write_text(folder / MARKER, json.dumps({**marker, "complete": True}) + "\n")
    return made


def _is_whole(path: Path, size: tuple[int, int]) -> bool:
    try:
        return path.exists() and check_image(path) == size
    except DataError:
        return False


def render(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], policy: str, rle: Any) -> np.ndarray:
    """The class mask (H, W) uint8 of one image; `rle` is `pycocotools.mask`. Raises DataError for invalid shapes."""
    mask = np.zeros(size, np.uint8)
    if policy == "official":
        for annotation in annotations:
            if not annotation.get("iscrowd"):
                mask[draw(annotation, size, rle)] = CLASS_INDEX[annotation["category_id"]] + 1
        return mask
    instances = []
    for annotation in annotations:
        inside = draw(annotation, size, rle)
        if annotation.get("iscrowd"):
            mask[inside] = IGNORE
        else:
            instances.append((inside, CLASS_INDEX[annotation["category_id"]] + 1))
    for inside, value in sorted(instances, key=lambda instance: -int(instance[0].sum())):  # of equal sizes the later is on top
        mask[inside] = value
    return mask
