"""Class-agnostic masks of images (proposals), as Segment Anything and superpixel methods write them.

A folder holds for each image one of

    ID.json   a list of {"segmentation": run lengths}, or {"annotations": such a list}: Segment Anything's `scripts/amg.py
              --convert-to-rle`, and its data set SA-1B
    ID.png    grey, 8 or 16 bits: each number is a region, 0 is none, as superpixels from 1
    ID/       a folder of PNGs, one for each mask, not 0 inside: `scripts/amg.py` without that option

in the size of the image. Masks may overlap and leave pixels uncovered.
"""

import hashlib
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wsss.data.dataset import Dataset
from wsss.data.headers import DAMAGE
from wsss.data.messages import format_size, refuse
from wsss.data.rle import decode_rle, rle_size
from wsss.errors import DataError, prefixed
from wsss.reading import parse_json, read_whole

_ENDS = 4096   # bytes at each end of a file that are read before any work
_SIZE = re.compile(rb'"size"\s*:\s*\[\s*(\d+)\s*,\s*(\d+)\s*\]')
_FORMS = ("ID.json", "ID.png", "ID/")


def read_proposals(folder: Path, image_id: str, frame: tuple[int, int]) -> list[np.ndarray]:
    """The proposals of an image, the largest first: of each the numbers of its pixels (row times W plus column) in the frame
    (H, W), to which the masks are resized by the nearest pixel. Empty ones are left out.

    Raises DataError, which names the file, if there is none or it cannot be used.
    """
    path = _path(folder, image_id)
    if path is None:
        raise DataError(f"{folder} has no proposals of {image_id!r} ({', '.join(_FORMS)}); make them, or choose another refiner")
    try:
        regions = [*_regions(_grey(path), frame)] if path.suffix == ".png" else [
            np.flatnonzero(_resized(mask, frame)) for mask in (_in_folder(path) if path.is_dir() else _in_json(path))]
    except DataError as error:
        raise prefixed(error, str(path)) from error
    return sorted((region for region in regions if len(region)), key=lambda region: -len(region))


def check_proposals(folder: Path, dataset: Dataset, ids: Iterable[str]) -> None:
    """Raise one DataError for all of `ids` whose proposals are missing or not of the size of the image, read from headers: of a
    JSON file only both ends."""
    problems = []
    for image_id in ids:
        path, size = _path(folder, image_id), dataset.size(image_id)
        if path is None:
            problems.append(f"no proposals of {image_id!r}; expected one of {', '.join(_FORMS)}")
            continue
        try:
            found = _sizes(path)
        except (DataError, OSError) as error:
            problems.append(f"{path}: {error}")
            continue
        if wrong := [each for each in found if each != size]:
            problems.append(f"{path} has masks {format_size(wrong[0])}, but its image is {format_size(size)}")
    refuse(f"refiner.masks={folder}", problems)


def digest_of_proposals(folder: Path, ids: Collection[str]) -> str:
    """The digest of the files of those of `ids` that have some: name, size, first and last 4 KiB; of the PNGs in a folder name
    and size."""
    digest = hashlib.sha256()
    for image_id in ids:
        path = _path(folder, image_id)
        if path is None:
            continue
        if path.is_dir():
            for file in _pngs(path):
                digest.update(f"{image_id}/{file.name}\t{file.stat().st_size}\n".encode())
        else:
            digest.update(f"{image_id}{path.suffix}\t{path.stat().st_size}\n".encode() + b"".join(_ends(path)))
    return digest.hexdigest()


def _path(folder: Path, image_id: str) -> Path | None:
    files = (folder / f"{image_id}.json", folder / f"{image_id}.png")
    found = next((path for path in files if path.is_file()), None)
    return found or (path if (path := folder / image_id).is_dir() else None)


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, os.fstat(file.fileno()).st_size - _ENDS))
        return head, file.read(_ENDS)


def _sizes(path: Path) -> list[tuple[int, int]]:
    """(H, W) of masks in a file or folder: the first and the last one."""
    if path.suffix == ".json":
        found = [(int(h), int(w)) for end in _ends(path) for h, w in _SIZE.findall(end)]
        return found[:1] + found[-1:]
    return [_png_size(file) for file in ([path] if path.is_file() else _pngs(path)[:1])]


def _png_size(path: Path) -> tuple[int, int]:
    with _opened(path) as image:
        return image.height, image.width


def _pngs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(read_whole(path)), formats=["PNG"])
    except DAMAGE as error:
        raise DataError(f"{path.name} is damaged or no PNG; write it again, or remove it") from error


def _grey(path: Path) -> np.ndarray:
    """(H, W) whole numbers of a PNG of one channel."""
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P", "I;16", "I"):
            raise DataError(f"{path.name} has the channels {image.mode}; expected a single one of whole numbers, not colours: "
                            "save it as grey")
        try:
            return np.asarray(image).astype(np.int64)
        except DAMAGE as error:
            raise DataError(f"{path.name} is truncated ({error}); write it again, or remove it") from error


def _in_folder(path: Path) -> Iterator[np.ndarray]:
    _refuse_unlike({_png_size(file) for file in _pngs(path)})
    return (_grey(file) > 0 for file in _pngs(path))


def _in_json(path: Path) -> Iterator[np.ndarray]:
    try:
        content = parse_json(read_whole(path))
    except (OSError, ValueError) as error:
        raise DataError(f"it is no JSON file ({error}); write it again") from error
    items = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(items, list) or not all(isinstance(item, dict) and "segmentation" in item for item in items):
        raise DataError("it holds no list of masks; expected [{\"segmentation\": {\"size\": ..., \"counts\": ...}}, ...], as "
                        "Segment Anything writes with output_mode=coco_rle")
    _refuse_unlike({rle_size(item["segmentation"]) for item in items})
    return (decode_rle(item["segmentation"]) for item in items)


def _refuse_unlike(sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        raise DataError(f"its masks have several sizes ({', '.join(map(format_size, sorted(sizes)))}); expected that of the "
                        "image: write them again")


def _regions(labels: np.ndarray, frame: tuple[int, int]) -> Iterator[np.ndarray]:
    """The pixels of each number but 0."""
    flat = _resized(labels, frame).ravel()
    order = np.argsort(flat, kind="stable")
    starts = np.flatnonzero(np.diff(flat[order])) + 1
    return (region for region in np.split(order, starts) if len(region) and flat[region[0]] != 0)


def _resized(mask: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(mask.shape, frame, strict=True))
    return mask if mask.shape == tuple(frame) else mask[np.ix_(rows, columns)]
