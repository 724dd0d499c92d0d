"""Preparation of PASCAL VOC 2012: all files are counted and read once, and image labels are saved in one small file."""

from collections.abc import Sequence
from pathlib import Path

from wsss.data.archives import Progress
from wsss.data.download import Archive, obtain, report_unpacked
from wsss.data.findings import Finding
from wsss.data.ids import read_lines, read_list
from wsss.data.images import check_image, mask_classes, read_mask
from wsss.data.messages import format_size
from wsss.data.voc import (
    ANNOTATIONS,
    IMAGES,
    LABELS,
    LISTS,
    MASKS,
    VOC_CLASSES,
    VocFiles,
    annotation_classes,
    class_names,
    encode_labels,
    find_voc,
    list_file,
    scan_part,
    union,
    voc_files,
)
from wsss.errors import DataError, StorageError
from wsss.files import write_text

#: Numbers of files and ids in the official VOC2012 trainval, the lists of IRN and LPCAM, and SegmentationClassAug.
OFFICIAL = {IMAGES: 17125, ANNOTATIONS: 17125, MASKS[0]: 12031, MASKS[1]: 2913, "train": 1464, "train_aug": 10582, "val": 1449}

_SUFFIX = {IMAGES: ".jpg", ANNOTATIONS: ".xml", MASKS[0]: ".png", MASKS[1]: ".png"}
_WHERE = {IMAGES: "put the images of VOCtrainval_11-May-2012.tar into {}, or set download=true",
          ANNOTATIONS: "put the XML files of VOCtrainval_11-May-2012.tar into {}; without them image labels come from the masks",
          MASKS[0]: "put the masks of train_aug and val (SegmentationClassAug) into {}; needed only to score train_aug",
          MASKS[1]: "put the masks of VOCtrainval_11-May-2012.tar into {}"}
_TRAINVAL = (IMAGES, ANNOTATIONS, MASKS[1])   # the folders of that archive, except lists and instances
_SHOWN = 3
_TOLERATED = 0.1   # share of such images

Labels = dict[str, tuple[int, ...]]


def prepare_voc(root: str | Path) -> list[Finding]:
    """Count and read the files in `root` (as of `open_voc`), write `image_labels.csv`, and return a report of what is missing.

    For the ids of the lists, both ends of every image are read, and every annotation and mask completely. `image_labels.csv` is
    written if every id has its classes: from the annotation, else from the mask. Differences between the two are listed.

    Raises DataError if `root` has nothing of PASCAL VOC 2012.
    """
    root = find_voc(root)
    files = voc_files(root)
    findings = [_count(root, folder) for folder in OFFICIAL if folder in _SUFFIX]
    lists = {}
    for name in LISTS:
        lists[name], finding = _list(root, name)
        findings.append(finding)
    ids = union(lists.values())
    findings.append(_images(files, ids))
    from_masks, finding = _masks(files, ids)
    findings.append(finding)
    from_annotations, finding = _annotations(files, ids)
    either = {**from_masks, **from_annotations}
    labels = {image_id: either[image_id] for image_id in ids
              if image_id in (from_annotations if image_id in files.annotations else from_masks)}
    return [*findings, finding, _kept(root, labels, ids, len(from_annotations)), _differences(from_annotations, from_masks)]


def download_voc(root: str | Path, progress: Progress, archives: Sequence[Archive] | None = None) -> list[Finding]:
    """Download and unpack VOCtrainval_11-May-2012.tar (2 GB) if `root` has fewer images, annotations or masks than it.

    Without any part of PASCAL VOC 2012 in `root` it is unpacked to VOCdevkit/VOC2012 below `root`, or to a `root` of that name.
    Its address and MD5 are torchvision's. SegmentationClassAug is in no official archive: a SegmentationClassAug.zip, .tar or
    .tar.gz in `root` is unpacked. Raises as `obtain`.
    """
    root = Path(root)
    try:
        into = find_voc(root)
    except DataError:
        into = root / {"VOC2012": "", "VOCdevkit": "VOC2012"}.get(root.name, "VOCdevkit/VOC2012")
    masks = [path for suffix in (".zip", ".tar", ".tar.gz") if (path := root / f"{MASKS[0]}{suffix}").is_file()]
    findings = []
    if masks and not _count(into, MASKS[0]).ok:
        findings = [report_unpacked(masks[0], into, "", MASKS[:1], progress)]
    if all(_count(into, folder).ok for folder in _TRAINVAL):
        return [*findings, Finding("archives to fetch", 0, 0)]
    return findings + obtain(root, into, _archives() if archives is None else archives, progress)


def _archives() -> tuple[Archive, ...]:
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # late, because it is slow

    official = DATASET_YEAR_DICT["2012"]
    return (Archive(official["url"], official["md5"], Path(official["base_dir"]).as_posix()),)


def _count(root: Path, folder: str) -> Finding:
    found, expected = len(scan_part(root, folder, _SUFFIX[folder])), OFFICIAL[folder]
    if folder == MASKS[1] and not found and len(scan_part(root, MASKS[0], ".png")) >= OFFICIAL[MASKS[0]]:
        return Finding(folder, 0, None, f"not needed with {MASKS[0]}")
    return Finding(folder, found, expected, "" if found >= expected else _WHERE[folder].format(root / folder))


def _list(root: Path, name: str) -> tuple[tuple[str, ...], Finding]:
    path = list_file(root, name)
    note = str(path) if root in path.parents else "the official list"
    try:
        ids = read_list(path, dict.fromkeys(read_lines(path), ""))   # missing images are another line of the report
    except DataError as error:
        ids, note = (), str(error)
    return ids, Finding(f"list {name}", len(ids), OFFICIAL[name], note)


def _images(files: VocFiles, ids: Sequence[str]) -> Finding:
    wrong = []
    for image_id in ids:
        try:
            if image_id in files.images:
                check_image(files.root / files.images[image_id])
            else:
                wrong.append(f"{IMAGES}/{image_id}.jpg is missing")
        except DataError as error:
            wrong.append(str(error))
    return Finding("images of the lists that can be read", len(ids) - len(wrong), len(ids), _first(wrong))


def _masks(files: VocFiles, ids: Sequence[str]) -> tuple[Labels, Finding]:
    """The classes on the valid masks of `ids`."""
    labels, wrong, masks = {}, [], [image_id for image_id in ids if image_id in files.masks]
    for image_id in masks:
        path = files.root / files.masks[image_id]
        try:
            mask = read_mask(path)
            present = mask_classes(mask, len(VOC_CLASSES), path)
            size = check_image(files.root / files.images[image_id]) if image_id in files.images else mask.shape
        except DataError as error:
            wrong.append(str(error))
            continue
        if mask.shape != size:
            wrong.append(f"{path} is {format_size(mask.shape)}, its image {format_size(size)}")
        else:
            labels[image_id] = present
    return labels, Finding("masks of the lists that fit", len(labels), len(masks), _first(wrong))


def _annotations(files: VocFiles, ids: Sequence[str]) -> tuple[Labels, Finding]:
    labels, wrong, annotations = {}, [], [image_id for image_id in ids if image_id in files.annotations]
    for image_id in annotations:
        try:
            labels[image_id] = annotation_classes(files.root / files.annotations[image_id])
        except DataError as error:
            wrong.append(str(error))
    return labels, Finding("annotations of the lists that can be read", len(labels), len(annotations),
                           _first(wrong) or "objects marked difficult count as present" * bool(annotations))


def _kept(root: Path, labels: Labels, ids: Sequence[str], annotated: int) -> Finding:
    """Write `image_labels.csv` if it is complete."""
    if not ids or len(labels) < len(ids):
        missing = [image_id for image_id in ids if image_id not in labels]
        note = _first([f"no valid annotation or mask of {image_id}" for image_id in missing]) or "nothing is listed"
        note = f"{LABELS} is not written: {note}"
    else:
        note = f"written to {root / LABELS}: {annotated:,} from annotations, {len(ids) - annotated:,} from masks"
        try:
            write_text(root / LABELS, encode_labels(labels))
        except StorageError as error:   # a shared folder may be read-only
            note = f"not saved, so read again at each start: {error}"
    return Finding("image labels", len(labels), len(ids), note)


def _differences(from_annotations: Labels, from_masks: Labels) -> Finding:
    """Report differing classes. An object may be annotated but not drawn, or drawn but not annotated; neither is an error."""
    differing = [f"{image_id}: annotation {class_names(present)}, mask {class_names(from_masks[image_id])}"
                 for image_id, present in from_annotations.items() if from_masks.get(image_id, present) != present]
    known = sum(image_id in from_masks for image_id in from_annotations)
    few = len(differing) <= _TOLERATED * known   # objects that are annotated but not drawn
    return Finding("images whose annotation and mask name other classes", len(differing), None if few else 0, _first(differing))


def _first(texts: Sequence[str]) -> str:
    """The first few texts, and the number of the others."""
    return "; ".join([*texts[:_SHOWN], *([f"and {len(texts) - _SHOWN:,} more"] if len(texts) > _SHOWN else [])])
