"""Read what annotation tools export as masks of a data set: the counterpart of `wsss.annotations`.

A reader takes the folder of an export and the data set, and returns for every image with an annotation the function that draws
its mask (H, W) uint8. It raises DataError for what it cannot read, and for a class that the data set does not have; annotations
without an image are left out with a warning.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import numpy as np

from wsss.annotations import UNSCORED
from wsss.annotations.colours import label
from wsss.annotations.label_studio import ID, IMAGE, decode_brush
from wsss.data.archives import unpack
from wsss.data.dataset import Dataset
from wsss.data.folder.classes import find_classes, is_ignored
from wsss.data.folder.cvat_xml import read_cvat_labels
from wsss.data.folder.found import Found, Shape, corners_of, region
from wsss.data.folder.json_files import read_json_labels
from wsss.data.folder.layout import find_masks
from wsss.data.folder.masks import LABELMAP, FileMasks, match_masks, read_colours
from wsss.data.ids import Names
from wsss.data.messages import did_you_mean, refuse
from wsss.errors import ConfigError, DataError
from wsss.palette import IGNORE
from wsss.reading import parse_json, read_whole

Masks = Mapping[str, Callable[[], np.ndarray]]
_UPLOADED = re.compile("^[0-9a-f]{8}-")   # before the name of a file that was uploaded to Label Studio


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of an export, or of its unpacked zip file. Raises ConfigError if it is neither."""
    if path.is_dir():
        yield path
        return
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"import_from={path} is neither a folder nor a zip file. Set it to what the annotation tool "
                          "has exported")
    with TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        yield Path(folder)


def read_pictures(root: Path, dataset: Dataset) -> Masks:
    """PNGs in SegmentationClass/, of CVAT or in VOC's layout: colours by labelmap.txt, else numbers by classes.txt."""
    folder, files = find_masks(root)
    if not folder:
        raise DataError(f"{root} has no folder SegmentationClass; expected an export of the format Segmentation mask 1.1 of "
                        "CVAT, CVAT's own XML, or PASCAL VOC's folders: export it again, or choose another import_format")
    classes, masks = dataset.classes, match_masks(files, root / folder, dataset.image_files)
    if (root / LABELMAP).exists():
        table = read_colours(root / LABELMAP)
        values, of_colours = table.values(tuple(map(label, (*classes, UNSCORED)))), table.of_colours
    else:
        listed = find_classes(root)[0] or classes
        refuse(f"classes of {root}", [f"class {name!r} is not in the class list{did_you_mean(name, classes)}: rename it"
                                      for name in listed if name not in classes])
        values = {0: 0, IGNORE: IGNORE, **{i: classes.index(name) + 1 for i, name in enumerate(listed, start=1)}}
        of_colours = False
    source = FileMasks(root, masks, dataset.image_files, values, of_colours)
    return {image_id: partial(_scored, partial(source.read, image_id), len(classes)) for image_id in masks}


def read_shapes(root: Path, dataset: Dataset) -> Masks:
    """JSON files of COCO or LabelMe: run lengths, polygons, masks. An image with a box alone is left out."""
    found = read_json_labels(root, (*dataset.classes, UNSCORED), dataset.image_files)
    if found is None or not found.drawings:
        raise DataError(f"{root} has no JSON file of COCO or LabelMe with shapes; expected polygons or masks: export it again, "
                        "or choose another import_format")
    return _of_shapes(found, dataset)


def read_cvat(root: Path, dataset: Dataset) -> Masks:
    """CVAT's "Segmentation mask 1.1", or its XML of "CVAT for images 1.1". An image with a box alone is left out."""
    found = read_cvat_labels(root, (*dataset.classes, UNSCORED), dataset.image_files)
    return _of_shapes(found, dataset) if found is not None and found.drawings else read_pictures(root, dataset)


def _of_shapes(found: Found, dataset: Dataset) -> Masks:
    return {image_id: partial(_scored, drawing.mask, len(dataset.classes)) for image_id, drawing in found.drawings.items()}


def _scored(draw: Callable[[], np.ndarray], n_classes: int) -> np.ndarray:
    """A mask in which the class after the last one, `UNSCORED`, has become 255."""
    mask = draw()
    mask[mask == n_classes + 1] = IGNORE
    return mask


def read_tasks(root: Path, dataset: Dataset, part: str = "annotations") -> Masks:
    """Tasks that Label Studio has exported as JSON: brush masks and polygons of the last annotation of each. A task without one,
    or whose annotations were all cancelled, is left out. `part`: "predictions" reads those that were given to the tool."""
    names, found, problems = Names(dataset.image_files), {}, []
    tasks = [task for path in sorted(root.glob("*.json")) for task in _tasks(path)]
    for task in tasks:
        done = [each for each in _dictionaries(task.get(part)) if not each.get("was_cancelled")]
        if not done:
            continue
        known, address = str(task["data"].get(ID, "")), unquote(str(task["data"].get(IMAGE, ""))).rpartition("/")[2]
        image_id = known if known in dataset.image_files else names.find(address) or names.find(_UPLOADED.sub("", address))
        if image_id is None:
            problems.append(f"task {task.get('id')} is of {address or known!r}, which is no image; leave it out of the export")
        else:
            results = _dictionaries(done[-1].get("result"))
            found[image_id] = partial(_drawn, image_id, results, dataset)
            problems += _wrong_results(image_id, results, dataset.classes)
    refuse(f"tasks of {root}", problems)
    if not found:
        raise DataError(f"{root} has no task with an annotation; expected Label Studio's JSON with submitted annotations (not "
                        "JSON-MIN): submit some, and export the project again")
    return found


def _tasks(path: Path) -> list[dict[str, Any]]:
    try:
        content = parse_json(read_whole(path))
        if isinstance(content, list) and all(isinstance(task["data"], dict) for task in content):
            return content
        reason = "it is no list of tasks"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise DataError(f"{path} cannot be read as tasks of Label Studio ({reason}); expected its export as JSON: export the project "
                    "again, or remove the file")


def _dictionaries(values: Any) -> list[dict[str, Any]]:
    """Those of a list; anything else has none."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _labels(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value") if isinstance(result.get("value"), dict) else {}
    names = value.get("brushlabels") or value.get("polygonlabels") or []
    return [str(name) for name in names] if isinstance(names, list) else []


def _wrong_results(image_id: str, results: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    problems = []
    for result in results:
        if not (names := _labels(result)):
            problems.append(f"{image_id} has a result of the type {result.get('type')!r}; expected brush masks or polygons: "
                            "draw it as one, or delete it")
        problems += [f"{image_id} has the class {name!r}{did_you_mean(name, classes)}; expected one of the data set: rename it"
                     for name in names if name not in (*classes, UNSCORED) and not is_ignored(name)]
    return problems


def _drawn(image_id: str, results: Sequence[Mapping[str, Any]], dataset: Dataset) -> np.ndarray:
    """The mask of an annotation, in which a later region covers those before it; without a region it is background."""
    height, width = dataset.size(image_id)
    if sizes := {(str(result.get("original_height")), str(result.get("original_width"))) for result in results} - {
            (str(height), str(width))}:
        raise DataError(f"{image_id} has regions of an image of another size, {min(sizes)}; expected {(height, width)} as shown: "
                        "annotate the image as it is")
    mask = np.zeros((height, width), np.uint8)
    for result in results:
        name, value = _labels(result)[0], result["value"]
        number = IGNORE if name == UNSCORED or is_ignored(name) else dataset.classes.index(name) + 1
        if "rle" in value:
            mask[decode_brush(value["rle"], (height, width))] = number
        else:
            corners = tuple((x * width / 100, y * height / 100) for x, y in corners_of(value.get("points")))
            mask[region(Shape(number, (corners,)), (height, width))] = number
    return mask


READERS: Mapping[str, Callable[[Path, Dataset], Masks]] = {
    "coco": read_shapes, "cvat": read_cvat, "label_studio": read_tasks, "labelme": read_shapes, "voc": read_pictures}
# What the tool was given, as if it had been exported without a change.
GIVEN = {**READERS, "label_studio": partial(read_tasks, part="predictions")}
