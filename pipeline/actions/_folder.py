"""Segment a folder of photographs without labels: `action=predict images=DIR run=NAME out=DIR`.

    OUT/
      masks/ID.png          palette PNGs in the size of the photographs; ID is the path below `images` without its suffix
      overlays/ID.jpg       the masks on the photographs
      predictions.csv       of every photograph its size, the classes found and their shares of its pixels; written at the end
      predictions.json      the run, its network and the settings: an `out` has one of each
      index.jsonl           or journals/: what is done, with a checksum of each file
      failed.json           the photographs that failed, with the reasons
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import differences
from pipeline.runfolder.claims import Claims
from pipeline.runfolder.folder import RunFolder
from pipeline.segmentation import ROLE, SegmentationNetwork
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.context import StepContext, settings_of
from steps.runtime.inference import ImagesFailed, Made, failures, for_each_image, with_fallback
from steps.runtime.journal import Lines, file_sum, merge_journals, unfinished
from steps.runtime.schedule import WEIGHTS
from steps.runtime.store import Layout
from wsss.data.headers import FORMATS, SUFFIXES
from wsss.data.ids import check_id
from wsss.data.images import encode_jpeg, encode_mask
from wsss.data.messages import refuse
from wsss.errors import ConfigError, DataError
from wsss.files import remove_temporary, user_path, write_text
from wsss.networks.facts import file_sha256
from wsss.overlays import overlay_mask
from wsss.text import csv_text

MASKS, OVERLAYS, TABLE, RECORD = "masks", "overlays", "predictions.csv", "predictions.json"
WORK = "predict"   # in messages, and as the name of the work in the claim on `out`


def checked_folders(config: Any, run: RunFolder) -> tuple[Path, Path]:
    """The folders `images` and `out`. Raises ConfigError if they cannot be used with each other and with the run."""
    images, out = user_path(config.images), user_path(config.out)
    if not images.is_dir():
        raise ConfigError(f"images={images} is not a folder. Set it to the folder with your photographs ({FORMATS})")
    here = out.resolve()
    for inside, what in ((images, "the photographs"), (run.path, "the run")):
        if inside.resolve() in (here, *here.parents):
            raise ConfigError(f"out={out} is the folder of {what} or inside it ({inside}). Choose another folder with out=DIR")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file. Choose a folder with out=DIR: it need not exist")
    return images, out


def find_images(folder: Path, warn: Callable[[str], None]) -> dict[str, str]:
    """id -> file relative to `folder`, for all files with one of `SUFFIXES` in it and its sub-folders, sorted by id.
    Hidden files and folders are left out, and links to folders are not followed.

    Raises DataError if there are none, a name cannot be used, or two files have the same id.
    """
    found: dict[str, str] = {}
    problems, others = [], []
    for file in sorted(_files_below(folder)):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in SUFFIXES:
            others.append(file)
            continue
        try:
            image_id = "/".join(map(check_id, stem.split("/")))
        except DataError as error:
            problems.append(str(error))
            continue
        if image_id in found:
            problems.append(f"{found[image_id]} and {file} would have the same mask, {image_id}.png; rename one")
        found[image_id] = file
    refuse(f"photographs in {folder}", problems)
    if not found:
        raise DataError(f"there is no photograph in {folder}: expected files {', '.join(SUFFIXES)}, also in sub-folders. Set "
                        "images=DIR to another folder, or convert them")
    if others:
        warn(f"{folder}: ignored {len(others)} files that are not {', '.join(SUFFIXES)}, for example {others[0]}")
    return dict(sorted(found.items()))


def _files_below(folder: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror or error}; check its permissions") from error
    for path, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(path, folder).replace(os.sep, "/")
        yield from (name if below == "." else f"{below}/{name}" for name in names if not name.startswith("."))


def record_of(network: SegmentationNetwork, images: Path, run: RunFolder) -> dict[str, Any]:
    """What the masks depend on besides the photographs, and where it is."""
    context, data = network.context, network.context.dataset
    return {"images": str(images.resolve()), "run": str(run.path.resolve()),
            context.name: {key: value for key, value in settings_of(network.settings).items() if key != "split"},
            "version": BY_NAME[context.name].VERSION, "precision": context.runtime.precision,
            "weights_sha256": file_sha256(context.input(ROLE) / WEIGHTS), "classes": list(network.classes),
            "max_side": data.max_side, "min_side": data.min_side}


@contextmanager
def opened(out: Path, record: dict[str, Any], warn: Callable[[str], None], name: str = RECORD,
           work: str = WORK) -> Iterator[None]:
    """Claim the folder `out` for `work` and write its record, the file `name`.

    Raises ConfigError if it holds other files, or results with another record; BusyError if another process works in it.
    """
    if (out / name).exists():
        _check_record(out / name, record)
    elif others := [other for other in sorted(os.listdir(out) if out.exists() else ()) if not other.startswith(".")]:
        raise ConfigError(f"out={out} holds other files, for example {others[0]}, and no {name}. Choose another folder with "
                          "out=DIR: it need not exist")
    claims = Claims(out)
    with ExitStack() as held:
        with claims.planning(warn):
            held.enter_context(claims.hold([(work, 0, 1)], []))
        remove_temporary(out)
        write_json(out / name, record)
        yield


def _check_record(path: Path, record: dict[str, Any]) -> None:
    """Raise ConfigError if the results beside `path` are of another folder, of another network or made with other settings. The
    run may have moved."""
    known, out = read_json(path), path.parent
    before = {**known, "run": record["run"]} if isinstance(known, dict) else {}
    changes = differences(before, record)
    if changes:
        raise ConfigError(f"out={out} was made otherwise ({', '.join(changes)}). Choose another folder with out=DIR, or delete "
                          "this one, or use the same settings to continue")


def remove_changed(out: Path) -> None:
    """Delete the masks and overlays whose content is not that recorded, so that they are made again."""
    for line in Lines(out).values():
        for name, recorded in line["files"].items():
            path = out / name
            if path.is_file() and file_sum(path) != recorded:
                path.unlink()


def segment_folder(network: SegmentationNetwork, images: Path, files: dict[str, str], out: Path,
                   progress: Callable[[int, int, str], None], warn: Callable[[str], None]) -> int:
    """Make the masks and overlays that `out` lacks, and its table; return how many photographs were to be made.

    Raises ImagesFailed at the end if some could not be; the table lists the others. Stopped if asked to stop.
    """
    ids = tuple(files)
    dataset = replace(network.context.dataset, root=images, image_files=files, labels=dict.fromkeys(ids, ()),
                      lists={"train": (), "val": (), "all": ids})
    runtime = replace(network.context.runtime, progress=progress, warn=warn, layout=Layout.files, shard=(0, 1), prepared=False)
    context = replace(network.context, dataset=dataset, lists={"ids": ids}, folder=out, runtime=runtime)

    def work(context: StepContext) -> None:
        of_device = network.on(context.runtime.device)
        for_each_image(context, lambda image_id: _made(image_id, dataset.full_image(image_id), of_device))

    remove_changed(out)
    to_do = len(unfinished(out, ids, dataset))
    if to_do:
        (out / TABLE).unlink(missing_ok=True)   # if it is there, all is done
    failed: ImagesFailed | None = None
    try:
        with_fallback(work, context)
        merge_journals(out, ids)
    except ImagesFailed as error:
        failed = error
    write_table(out, files, network.classes)
    if failed is not None:
        raise failed
    return to_do


def _made(image_id: str, image: np.ndarray, network: SegmentationNetwork) -> Made:
    mask = network(image)
    values, pixels = np.unique(mask, return_counts=True)
    return ({f"{MASKS}/{image_id}.png": encode_mask(mask), f"{OVERLAYS}/{image_id}.jpg": encode_jpeg(overlay_mask(image, mask))},
            {"height": mask.shape[0], "width": mask.shape[1], "pixels": dict(zip(map(str, values), pixels.tolist()))})


def write_table(out: Path, files: dict[str, str], classes: Sequence[str]) -> None:
    """Write a row for each photograph that has a mask: its file, height and width, the classes on it, largest first, and their
    shares of its pixels, both separated by ";"."""
    lines, failed = Lines(out), failures(out)
    rows: list[Sequence[object]] = [("file", "height", "width", "classes", "shares")]
    for image_id, file in files.items():
        if image_id in lines and image_id not in failed:
            line = lines[image_id]
            pixels = {int(label): count for label, count in line["pixels"].items() if label != "0"}
            labels = sorted(pixels, key=lambda label: (-pixels[label], label))
            shares = (f"{pixels[label] / (line['height'] * line['width']):.4g}" for label in labels)
            rows.append((file, line["height"], line["width"], ";".join(classes[label - 1] for label in labels), ";".join(shares)))
    write_text(out / TABLE, csv_text(rows))
