"""LabelMe: `NAME.json` beside each image, with polygons; `labels.txt` has the classes, for `labelme --labels`."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsss.annotations import POLYGONS, Options, Sheet
from wsss.annotations.polygons import polygons
from wsss.files import write_text

IMAGES, SHAPES = "", (POLYGONS,)
_VERSION = "5.5.0"   # of LabelMe, whose form this is


def write(folder: Path, sheets: Iterable[Sheet], options: Options) -> None:
    seen = set()
    for sheet in sheets:
        height, width = sheet.mask.shape
        shapes = []
        for value, region in sheet.regions():
            seen.add(value)
            shapes += [{"label": options.name(value), "points": np.round(polygon, 2).tolist(), "group_id": None,
                        "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
                       for polygon in polygons(region, options.tolerance or 0)]
        write_text(folder / f"{sheet.name}.json", json.dumps(
            {"version": _VERSION, "flags": {}, "shapes": shapes, "imagePath": os.path.basename(sheet.image), "imageData": None,
             "imageHeight": height, "imageWidth": width}, ensure_ascii=False, indent=1))
    write_text(folder / "labels.txt", "".join(f"{name}\n" for name in options.names(seen).values()))
