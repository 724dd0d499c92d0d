"""COCO's object instances: `annotations/instances_default.json`, an annotation for each class of an image.

Masks are run lengths (RLE, uncompressed), polygons are COCO's lists of x and y. `iscrowd` is 0: the regions are ground truth.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wsss.annotations import MASKS, POLYGONS, Options, Sheet
from wsss.annotations.polygons import polygons
from wsss.files import write_text

IMAGES, SHAPES = "images", (MASKS, POLYGONS)


def write(folder: Path, sheets: Iterable[Sheet], options: Options) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, sheet in enumerate(sheets, start=1):
        height, width = sheet.mask.shape
        images.append({"id": number, "file_name": sheet.image, "height": height, "width": width})
        for value, region in sheet.regions():
            seen.add(value)
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": value, "iscrowd": 0,
                                **_shape(region, options.tolerance)})
    categories = [{"id": value, "name": name, "supercategory": ""} for value, name in options.names(seen).items()]
    write_text(folder / "annotations" / "instances_default.json", json.dumps(
        {"info": {"description": options.made_by}, "licenses": [], "categories": categories, "images": images,
         "annotations": annotations}, ensure_ascii=False))


def _shape(region: np.ndarray, tolerance: float | None) -> dict[str, Any]:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
    if tolerance is None:
        drawn: Any = {"size": list(region.shape), "counts": run_lengths(region)}
    else:
        drawn = [np.round(polygon, 2).reshape(-1).tolist() for polygon in polygons(region, tolerance)]
    return {"segmentation": drawn, "area": int(region.sum()), "bbox": box}


def run_lengths(region: np.ndarray) -> list[int]:
    """The run lengths of `region` (H, W) bool in COCO's order: by column, from the background."""
    flat = np.concatenate([[False], region.T.reshape(-1)])
    bounds = [0, *(np.flatnonzero(flat[1:] != flat[:-1])).tolist(), region.size]
    return [last - first for first, last in pairwise(bounds)]
