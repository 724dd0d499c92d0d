"""A user's folder as a data set, in the form in which it is. It is checked completely when opened; the errors name the file and
the remedy."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsss.data.boxes import folder_boxes
from wsss.data.checked import reading_wanted, remembered
from wsss.data.dataset import MAX_CLASSES, Dataset, MaskSource
from wsss.data.folder.annotations import read_class_folders, read_xml_labels, read_yolo_labels
from wsss.data.folder.classes import find_classes
from wsss.data.folder.cvat_xml import read_cvat_labels
from wsss.data.folder.found import DrawnMasks, Found
from wsss.data.folder.json_files import read_json_labels
from wsss.data.folder.layout import LAYOUT, find_boxes, find_images, find_masks, find_objects, held_out, make_lists, scan_folder
from wsss.data.folder.masks import LABELMAP, Colours, FileMasks, complete, match_masks, read_colours, suggested_table
from wsss.data.folder.table import read_rows, read_table
from wsss.data.images import Levels, check_image, image_size, read_numbers
from wsss.data.instances import png_objects
from wsss.data.messages import format_size, refuse
from wsss.errors import DataError
from wsss.palette import IGNORE

__all__ = ["LAYOUT", "check_files", "held_out", "open_folder", "read_rows", "scan_folder"]

log = logging.getLogger(__name__)

Reader = Callable[[Path, tuple[str, ...] | None, Mapping[str, str]], Found | None]


def open_folder(root: str | Path, *, name: str = "folder", max_side: int | None = None, val_fraction: float = 0.2,
                difficult: bool = True, check: bool | Path = True, colours: str | Path | None = None,
                levels: Levels | None = None, max_pixels: int | None = None) -> Dataset:
    """Open the data set in `root`, with the layout `LAYOUT` or as labelling tools write one. Nothing is written there.

    Labels are those of the first of: labels.csv or the only csv file, COCO json, LabelMe json, CVAT's XML, VOC XML, YOLO txt, a
    folder per class, and the masks themselves. `Dataset.read_from` says what was read.

    Lists: with one of train.txt and val.txt the other list is the rest; with both, an image in neither is only in "all". With
    neither, the folders train and val of the images, else `val_fraction` of the images (at least 1 of 5 or more; chosen by a
    hash of the id, independent of the seed) is held out as "val", because thresholds are chosen on val masks and never on the
    list that is scored. Masks must cover all of train and val, or all of val only; an image without a class needs none. Boxes
    that do not are left out with a warning; without `difficult`, so are those of objects that are marked so.
    `colours`: a table of the numbers or colours in the masks (`read_colours`). `levels` and `max_pixels`: as of `read_image`.

    `check` reads the head and tail of every image and the head of every mask (0.1 ms for both on a local disk); with a marker
    file only if something changed since it was written (`reading_wanted`). EXIF orientation is applied, so a mask must have the
    size and orientation of the displayed image.

    Raises DataError, listing up to 10 problems, for anything missing, misspelt, duplicated, damaged or of the wrong size.
    A class without images is accepted with a warning.
    """
    root = Path(root)
    if not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; expected 0 <= val_fraction < 1")
    images = find_images(root)
    table = read_colours(Path(colours)) if colours else read_colours(root / LABELMAP) if (root / LABELMAP).exists() else None
    folder, files = find_masks(root)
    masks = match_masks(files, root / folder, images)
    classes, class_file = find_classes(root)
    if classes is None and table:
        classes, class_file = table.classes, table.path.name
    found = _labels(root, classes, images) or _labels_of_masks(root, classes, images, masks, table, check, max_pixels)
    _warn_left_out(root, images, found)
    lists, origin = make_lists(root, images, found.labels, val_fraction, found.parts)
    images = {image_id: images[image_id] for image_id in lists["all"]}
    masks, source, drawn = _masks(root, folder, masks, images, found, lists, table, max_pixels)
    numbered = find_objects(root)
    annotations = find_boxes(root)
    compared = {file: file for file in ("labels.csv", "classes.txt") if annotations and (root / file).exists()}   # with the boxes
    with reading_wanted(check, root, images, _files(masks), numbered, annotations, compared) as reads:
        if reads:
            if isinstance(source, FileMasks):
                _refuse_colours(source, found.labels, found.classes)
            check_files(root, images, _files(masks) if folder else {}, levels, max_pixels)
            _check_drawings(root, images, masks, source)
        objects = png_objects(root, numbered, masks, images, len(found.classes), reads, source, max_pixels)
        boxes = folder_boxes(root, annotations, images, found.classes, found.labels, lists, difficult=difficult, check=reads)
    read_from = {"images": f"{len(images)} ({_counts(images)})", "labels": found.source,
                 "classes": class_file or f"the names in {found.source}", "masks": drawn, "lists": origin}
    if table and folder:
        read_from["colours"] = f"{table.path.name} ({len(table.rows)} lines)"
    _warn_absent(name, found)
    return Dataset(name=name, root=root, classes=found.classes, lists=lists, labels=found.labels, image_files=images,
                   mask_files=masks, mask_source=source if masks else None, max_side=max_side, objects=objects, box_lists=boxes,
                   levels=levels, max_pixels=max_pixels, read_from=read_from)


def _masks(root: Path, folder: str, files: Mapping[str, str], images: Mapping[str, str], found: Found,
           lists: Mapping[str, tuple[str, ...]], table: Colours | None,
           max_pixels: int | None) -> tuple[dict[str, str], MaskSource, str]:
    """The masks of the images, how they are read, and in words where they are from."""
    if not folder:
        masks = _drawn(found, lists)
        return masks, DrawnMasks(found.drawings), f"{len(masks)} drawn from {found.source}" if masks else "none"
    masks, undrawn = complete({i: file for i, file in files.items() if i in images}, lists, found.labels, root / folder)
    none = f", {undrawn} images without class need none" if undrawn else ""
    return masks, _source(root, masks, images, found.classes, table, max_pixels), f"{len(masks) - undrawn} in {folder}/{none}"


def _warn_left_out(root: Path, images: Mapping[str, str], found: Found) -> None:
    if left := [file for image_id, file in images.items() if image_id not in found.labels]:
        log.warning("%s: %d images are in no annotation and are left out, for example %s", root, len(left), left[0])


def _files(masks: Mapping[str, str]) -> dict[str, str]:
    return {image_id: file for image_id, file in masks.items() if file}


def _counts(files: Mapping[str, str]) -> str:
    """The folders and suffixes of files with their numbers, as `images/*.jpg: 12`."""
    kinds = Counter(f"{file.rpartition('/')[0] or '.'}/*.{file.rpartition('.')[2]}" for file in files.values())
    shown = [f"{count} {kind}" for kind, count in kinds.most_common(4)]
    return ", ".join(shown + [f"{len(kinds) - 4} more kinds"] * (len(kinds) > 4))


def _warn_absent(name: str, found: Found) -> None:
    seen = {index for present in found.labels.values() for index in present}
    if absent := [class_name for index, class_name in enumerate(found.classes) if index not in seen]:
        log.warning("data set %s: no image of class %s; nothing can be learned about it: check %s", name, ", ".join(absent),
                    found.source)


def _labels(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str]) -> Found | None:
    tables = sorted(root.glob("*.csv"))
    path = root / "labels.csv" if (root / "labels.csv").exists() else tables[0] if len(tables) == 1 else None
    if path:
        return read_table(path, classes, images)
    readers: tuple[Reader, ...] = (read_json_labels, read_cvat_labels, read_xml_labels, read_yolo_labels, read_class_folders)
    return next((found for read in readers if (found := read(root, classes, images)) is not None), None)


def _source(root: Path, masks: Mapping[str, str], images: Mapping[str, str], classes: tuple[str, ...],
            table: Colours | None, max_pixels: int | None) -> FileMasks:
    return FileMasks(root, masks, images, table.values(classes) if table else {}, table.of_colours if table else False,
                     max_pixels)


def _refuse_colours(source: FileMasks, labels: Mapping[str, tuple[int, ...]], classes: tuple[str, ...]) -> None:
    """Raise DataError if the first mask holds colours and there is no table, with the lines that the table needs."""
    first = next((file for file in source.files.values() if file), None)
    if first is None or source.of_colours or read_numbers(source.root / first, max_pixels=source.max_pixels).ndim == 2:
        return
    lines = suggested_table(replace(source, table={}, of_colours=True), labels, classes)
    raise DataError(f"masks of {source.root} hold colours, for example {first}; expected class numbers, or a table of the "
                    "colours: write a file with a line NAME,RED,GREEN,BLUE for each class, background and ignore, and set "
                    f"data.colours=FILE. The labels suggest these lines; check them:\n    {lines}")


def _labels_of_masks(root: Path, classes: tuple[str, ...] | None, images: Mapping[str, str], masks: Mapping[str, str],
                     table: Colours | None, check: bool | Path, max_pixels: int | None) -> Found:
    """The labels of a folder with masks alone: what stands in them."""
    if not masks:
        raise DataError(f"{root / 'labels.csv'} does not exist, and there are neither masks nor labels in another form; "
                        "expected this layout:\n" + LAYOUT.format(root=root))
    refuse(f"masks of {root}", [f"{file} has no mask, so its classes are unknown; add its mask, or write labels.csv"
                                for image_id, file in images.items() if image_id not in masks])
    source = _source(root, masks, images, classes or (), table, max_pixels)
    _refuse_colours(source, dict.fromkeys(images, ()), classes or ())
    values = remembered(check, root, masks, repr(source.table), lambda: {i: np.unique(source.read(i)).tolist() for i in masks})
    highest = max((value for found in values.values() for value in found if value != IGNORE), default=0)
    if classes is None and not 1 <= highest <= MAX_CLASSES:
        raise DataError(f"masks of {root} hold no class number; expected 1 to {MAX_CLASSES} on some: is the foreground 255? Then "
                        "write a table with the line NAME,255 and set data.colours=FILE")
    listed = classes or tuple(f"class_{i}" for i in range(1, highest + 1))
    labels = {i: tuple(value - 1 for value in found if 0 < value <= len(listed)) for i, found in values.items()}
    return Found("the masks", listed, labels)


def _drawn(found: Found, lists: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """id -> the file that its mask is drawn from, if this covers train and val, or val alone."""
    missing = {name: [i for i in lists[name] if i not in found.drawings] for name in ("train", "val")}
    if missing["val"] or (missing["train"] and not lists["val"]):
        if found.drawings:
            log.warning("%s: %d images have a box without a shape, for example %s, so there are no masks: draw all shapes to "
                        "have scores", found.source, sum(map(len, missing.values())), (missing["train"] or missing["val"])[0])
        return {}
    covered = lists["val"] if missing["train"] else found.drawings
    return {image_id: found.files[image_id] for image_id in covered}


def _check_drawings(root: Path, images: Mapping[str, str], masks: Mapping[str, str], source: MaskSource) -> None:
    """Raise DataError if shapes are of an image of another size."""
    if isinstance(source, DrawnMasks):
        sizes = {image_id: (source.drawings[image_id].size, image_size(root / images[image_id])) for image_id in masks}
        refuse(f"shapes of {root}", [f"{masks[image_id]} has shapes of {images[image_id]} for {format_size(drawn)}, but it is "
                                     f"{format_size(size)} as shown; draw them on the image as it is now"
                                     for image_id, (drawn, size) in sizes.items() if drawn != size])


def check_files(root: Path, images: Mapping[str, str], masks: Mapping[str, str], levels: Levels | None = None,
                max_pixels: int | None = None) -> None:
    problems = []
    for image_id, file in images.items():
        try:
            size = check_image(root / file, levels, max_pixels)
            mask_size = image_size(root / masks[image_id]) if image_id in masks else size
        except DataError as error:
            problems.append(str(error))
            continue
        if mask_size != size:
            problems.append(f"{masks[image_id]} is {format_size(mask_size)} but {file} is {format_size(size)} as shown; "
                            "save the mask in that size")
    refuse(f"files of {root}", problems)
