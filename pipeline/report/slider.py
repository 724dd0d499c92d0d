"""The maps of some images for the browser, which cuts them at the threshold that the reader of the page chooses.

A pixel is stored as two numbers: how many of the thresholds 0.00, 0.01, ..., 1.00 are below its greatest map, and which map that
is. As that map does not depend on the threshold, the browser's masks are exactly those of `wsss.refinement.masks.mask_of` for the
same maps; what is lost is the size, `SIDE` pixels, and thresholds between two of these.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report import thumbnails
from pipeline.report.gallery import SIDE, TAGS
from pipeline.report.kinds import title_of
from pipeline.report.pieces import Pieces
from pipeline.report.scores import safely
from pipeline.runfolder.recorded import RecordedRun
from steps.parts.pieces import Adjustable
from wsss.metrics.semantic import THRESHOLDS
from wsss.palette import IGNORE, VOC_PALETTE

SHOWN = 12   # images


def slider(run: RecordedRun, found: Pieces, shown: Mapping[str, set[str]], missing: list[str]) -> dict[str, Any] | None:
    """The content of the section: images and, for each thing that steps let the reader cut (`Adjustable`), its settings and the
    stored maps by image; None without such things. What cannot be read is left out, with the reason in `missing`.

    `shown`: the images of the galleries with their tags, of which `SHOWN` are used.
    """
    pieces = [(step, piece) for step, piece in found if isinstance(piece, Adjustable)]
    maps: list[str] = []   # stored once, whatever number of things are cut from them
    images = safely(lambda: [_image(run, image_id) for image_id in choose_images(run, shown, [piece for _, piece in pieces])],
                    missing, [])
    kinds = []
    for step, piece in pieces:
        of_images = [safely(lambda piece=piece, image=image: _stored(piece, image), missing, None) for image in images]
        if not any(of_images):
            continue
        result = run.summary.get("steps", {}).get(step, {}).get("result") or {}
        settings = [(key, result.get(key.rpartition(".")[2]) if value is None else value)
                    for key, value in piece.settings.items()]
        for each in filter(None, of_images):
            maps += [] if each["maps"] in maps else [each["maps"]]
            each["maps"] = maps.index(each["maps"])
        title = piece.title or title_of(run.summary, piece.kind or step)
        kinds.append({"title": title, "settings": settings, "after": piece.after, "images": of_images})
    if not kinds:
        return None
    colours = {value: list(bytes.fromhex(thumbnails.colour(value)[1:]))
               for kind in kinds for each in filter(None, kind["images"]) for value in each["values"]}
    return {"images": images, "data": {"kinds": kinds, "maps": maps, "colours": colours, "ignore": VOC_PALETTE[IGNORE].tolist(),
                                       "names": ["background", *run.dataset.classes]}}


def choose_images(run: RecordedRun, shown: Mapping[str, set[str]], pieces: Sequence[Adjustable]) -> list[str]:
    """Up to `SHOWN` images of the galleries that have maps and classes: of the best, the worst and random ones in turn."""
    usable = [image_id for image_id in shown if run.dataset.labels[image_id] and any(image_id in piece.ids for piece in pieces)]
    by_tag = [[image_id for image_id in usable if tag in shown[image_id]] for tag in TAGS]
    in_turn = [ids[place] for place in range(max(map(len, by_tag), default=0)) for ids in by_tag if place < len(ids)]
    return list(dict.fromkeys([*in_turn, *usable]))[:SHOWN]


def levels(maps: np.ndarray) -> np.ndarray:
    """(2, h, w) uint8 of maps (K, h, w), K at least 1: the number of `THRESHOLDS` below the greatest map, and its index, the
    first of equal ones."""
    greatest = np.asarray(maps, np.float32).max(axis=0)
    return np.stack([np.searchsorted(np.array(THRESHOLDS, np.float32), greatest), maps.argmax(axis=0)]).astype(np.uint8)


def _image(run: RecordedRun, image_id: str) -> dict[str, Any]:
    image = run.dataset.full_image(image_id)
    height, width = thumbnails.thumbnail_size(image, SIDE)
    return {"id": image_id, "picture": thumbnails.image(image, SIDE), "height": height, "width": width}


def _stored(piece: Adjustable, image: Mapping[str, Any]) -> dict[str, Any] | None:
    """The label of each map, and the levels as a zlib stream in base64; None without maps of the image. The stream has the
    differences of neighbours in one row of all pixels (modulo 256), most of which are 0."""
    if image["id"] not in piece.ids:
        return None
    maps, classes = piece.read(image["id"], (image["height"], image["width"]))
    array = np.asarray(maps.cpu() if hasattr(maps, "cpu") else maps)
    if not len(array):
        return None
    flat = levels(array).reshape(-1)
    packed = zlib.compress(np.diff(flat, prepend=flat.dtype.type(0)).tobytes(), 9)
    return {"values": [index + 1 for index in classes], "maps": base64.b64encode(packed).decode()}
