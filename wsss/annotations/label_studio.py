"""Label Studio: `tasks.json` with pre-annotations as brush masks or polygons; `labels.xml` is the labelling interface.

The brush masks are four channels of a picture in run lengths, as https://github.com/thi-ng/umbrella packs them (`rle-pack`).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from wsss.annotations import MASKS, POLYGONS, Options, Sheet
from wsss.annotations.polygons import polygons
from wsss.errors import DataError
from wsss.files import write_text
from wsss.palette import VOC_PALETTE

IMAGES, SHAPES = "images", (MASKS, POLYGONS)
CHANNELS = 4             # of the picture: red, green, blue, alpha
TAG, IMAGE, ID = "tag", "image", "image_id"   # the names of the labels and the image in the interface, and of the id in a task
_WORD, _LENGTHS = 8, (3, 4, 8, 16)   # bits of a value, and of the length of a run, of which there are four kinds


def write(folder: Path, sheets: Iterable[Sheet], options: Options) -> None:
    tasks, seen = [], set()
    kind = "brushlabels" if options.tolerance is None else "polygonlabels"
    for sheet in sheets:
        results = []
        for value, region in sheet.regions():
            seen.add(value)
            results += [_result(sheet, f"{value}-{number}", kind, {**shape, kind: [options.name(value)]})
                        for number, shape in enumerate(_shapes(region, options.tolerance))]
        tasks.append({"data": {IMAGE: options.url + quote(sheet.image), ID: sheet.name},
                      "predictions": [{"model_version": options.made_by, "result": results}]})
    write_text(folder / "tasks.json", json.dumps(tasks, ensure_ascii=False))
    write_text(folder / "labels.xml", _interface("BrushLabels" if options.tolerance is None else "PolygonLabels",
                                                 options.names(seen)))


def _shapes(region: np.ndarray, tolerance: float | None) -> list[dict[str, Any]]:
    if tolerance is None:
        return [{"format": "rle", "rle": encode_brush(region)}]
    height, width = region.shape
    return [{"points": np.round(100 * polygon / (width, height), 6).tolist(), "closed": True}   # in percent
            for polygon in polygons(region, tolerance)]


def _result(sheet: Sheet, key: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    height, width = sheet.mask.shape
    identifier = hashlib.blake2b(f"{sheet.name} {key}".encode(), digest_size=5).hexdigest()
    return {"id": identifier, "type": kind, "from_name": TAG, "to_name": IMAGE, "original_width": width,
            "original_height": height, "image_rotation": 0, "value": value}


def _interface(tag: str, names: dict[int, str]) -> str:
    labels = [f"    <Label value={quoteattr(name)} background=\"#{VOC_PALETTE[value].tobytes().hex()}\"/>"
              for value, name in names.items()]
    return "\n".join([f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}" zoom="true"/>',
                      f'  <{tag} name="{TAG}" toName="{IMAGE}">', *labels, f"  </{tag}>\n</View>\n"])


def encode_brush(region: np.ndarray) -> list[int]:
    """The bytes of `region` (H, W) bool: 255 in every channel inside, 0 outside."""
    flat = region.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    words = [f"{CHANNELS * flat.size:032b}{_WORD - 1:05b}", *(f"{bits - 1:04b}" for bits in _LENGTHS)]
    longest = 1 << _LENGTHS[-1]
    for start, length in zip(starts[:-1].tolist(), (CHANNELS * np.diff(starts)).tolist()):
        value = f"{255 if flat[start] else 0:0{_WORD}b}"
        for part in [longest] * (length // longest) + [length % longest] * (length % longest > 0):
            kind = next(i for i, bits in enumerate(_LENGTHS) if part <= 1 << bits)
            words.append(f"1{kind:02b}{part - 1:0{_LENGTHS[kind]}b}{value}")   # 1: one value for the whole run
    bits = "".join(words)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def decode_brush(packed: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: where the alpha of the picture is a half or more. Raises DataError if it is not a picture of `size`."""
    try:
        bits = np.unpackbits(np.array(packed, np.uint8))
        text = "".join(map(str, bits.tolist()))
        total, word = int(text[:32], 2), int(text[32:37], 2) + 1
        if total != size[0] * size[1] * CHANNELS:
            raise _damaged(f"it has {total} values", size)
        lengths = [int(text[at:at + 4], 2) + 1 for at in range(37, 53, 4)]
        values, place, done = np.zeros(total, np.uint32), 53, 0
        while done < total:
            of_kind = lengths[int(text[place + 1:place + 3], 2)]
            run = int(text[place + 3:place + 3 + of_kind], 2) + 1
            one, place = text[place] == "1", place + 3 + of_kind
            number = 1 if one else run
            coded = bits[place:place + number * word].reshape(number, word)
            values[done:done + run] = coded @ (1 << np.arange(word)[::-1])
            place, done = place + number * word, done + run
        alpha = values.reshape(*size, CHANNELS)[:, :, -1]
    except DataError:
        raise
    except (ValueError, OverflowError, IndexError, TypeError) as error:
        raise _damaged(error, size) from error
    return alpha >= 1 << (word - 1)


def _damaged(why: object, size: tuple[int, int]) -> DataError:
    return DataError(f"a brush mask cannot be read ({why}); expected the run lengths of a picture of {size[1]} x {size[0]} "
                     "pixels in four channels: export the project again as JSON")
