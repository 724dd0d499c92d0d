"""Write masks as an annotation tool reads them, `export_format=cvat` (or coco, label_studio, labelme, voc) `export_to=DIR`.

The masks are the pseudo masks of the run, or those of the step `export_step`; an image that has a mask corrected by hand
(`data.corrections`) gets that. Or they are the masks of a folder that `action=predict` has written: `export_from=DIR`. The images
are copied. `wsss/annotations/` has a file for each form.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions import _export, _folder
from pipeline.actions._export import export_target, finished_masks
from pipeline.actions.export_voc import mask_step
from pipeline.order import BY_NAME
from pipeline.plan.plan import survey
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import Labels, read_json, read_label
from steps.runtime.context import require
from steps.runtime.journal import Lines
from wsss import annotations
from wsss.annotations import Options, Sheet
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.data.images import encode_jpeg, is_upright_jpeg
from wsss.errors import ConfigError
from wsss.files import user_path, write_bytes, writing_folder
from wsss.overlays import write_picture


@dataclass
class FormatSettings:
    export_step: str | None      # the step whose masks are meant; null: that which makes the pseudo masks
    export_tolerance: float      # pixels that a polygon may be away from the outline of its mask; 0: exact


@dataclass
class Settings(_export.Settings, FormatSettings):
    export_format: str | None    # the name of a file in wsss/annotations/
    export_from: str | None      # a folder that action=predict wrote; null: the run
    export_split: str | None     # a list, or a file with ids; null: all images that have a mask
    export_polygons: bool        # polygons, where the format has masks too
    export_url: str | None       # for label_studio: what stands before the files of the images in its tasks


def check(config: Any) -> None:
    known = annotations.names()
    require(config.export_format in known, "export_format", config.export_format, f"one of {', '.join(known)}")
    shapes = annotations.load(config.export_format).SHAPES
    require(not config.export_polygons or annotations.POLYGONS in shapes, "export_polygons", True,
            f"false: {config.export_format} has masks only")
    require(config.export_tolerance >= 0, "export_tolerance", config.export_tolerance, "0 or more pixels")
    require(not (config.export_from and config.export_step), "export_step", config.export_step,
            f"no value with export_from={config.export_from}")


def do(pipeline: Any) -> list[Finding]:
    """Write the folder `export_to`. Raises WsssError; then nothing is written."""
    config, console = pipeline.config, pipeline.console
    with ExitStack() as held:
        if config.export_from:
            source = _predicted(config, console.warning)
        else:
            step = mask_maker(config, "export")
            held.enter_context(pipeline.reading([step]))
            source = _of_run(config, pipeline.dataset, pipeline.folder, pipeline.command, step)
        console.start("export")
        target = export_target(config, source.dataset, pipeline.folder, "export")
        return write_export(config, source, target, pipeline.progress("export"))


def run(pipeline: Any) -> int:
    pipeline.console.result(report_table(do(pipeline)))
    return 0


@dataclass(frozen=True)
class _Source:
    """Masks to export: of the images `ids` of a data set, read by `mask(id)`; `title` and `made_by` say what they are."""

    dataset: Dataset
    ids: tuple[str, ...]
    mask: Callable[[str], np.ndarray]
    title: str
    made_by: str


def mask_maker(config: Any, action: str) -> str:
    """The step whose masks are meant. Raises ConfigError if there is none."""
    makers = [name for name in config.steps if BY_NAME[name].MASKS]
    require(config.export_step in (None, *makers), "export_step", config.export_step,
            f"a step of this experiment that makes masks ({', '.join(makers) or 'there is none'})")
    return config.export_step or mask_step(config, action)


def _of_run(config: Any, dataset: Dataset, folder: RunFolder, command: str, step: str) -> _Source:
    made = Labels(folder.result(step), len(dataset.classes)).index if folder.manifest(step) else {}
    split = config.export_split or "all"
    ids = dataset.list_ids(split) if config.export_split else tuple(i for i in dataset.lists["all"] if i in made)
    read = finished_masks(config, _as_made(config, dataset, folder, step), folder, command, step, split, ids)

    def mask(image_id: str) -> np.ndarray:
        return dataset.correction(image_id) if image_id in dataset.corrections else read(image_id, dataset.size(image_id))
    return _Source(dataset, ids, mask, BY_NAME[step].MASKS[""], folder.path.name)


def _as_made(config: Any, dataset: Dataset, folder: RunFolder, step: str) -> Dataset:
    """The data set with which the masks were made: without corrected masks, if these were imported since."""
    manifest = folder.manifest(step)
    for each in (dataset, dataset.uncorrected) if manifest and dataset.corrections else ():
        fingerprints = {planned.name: planned.fingerprint for planned in survey(config, each, folder)}
        if fingerprints[step] == manifest["fingerprint"]:
            return each
    return dataset


def _predicted(config: Any, warn: Callable[[str], None]) -> _Source:
    """The masks of a folder that `action=predict` has written. Raises ConfigError if it is none, or its photographs are gone."""
    out = user_path(config.export_from)
    if not (out / _folder.RECORD).exists():
        raise ConfigError(f"export_from={out} has no {_folder.RECORD}. Expected a folder that action=predict images=DIR out=DIR "
                          "has written; for the masks of a run leave it out")
    record, made = read_json(out / _folder.RECORD), Lines(out)
    images, classes = Path(record["images"]), tuple(record["classes"])
    if not images.is_dir():
        raise ConfigError(f"export_from={out}: its photographs are no longer in {images}. Move them back, or predict again")
    files = {image_id: file for image_id, file in _folder.find_images(images, warn).items() if image_id in made}
    dataset = Dataset(name="predictions", root=images, classes=classes, lists={"train": (), "val": (), "all": tuple(files)},
                      labels=dict.fromkeys(files, ()), image_files=files)

    def mask(image_id: str) -> np.ndarray:
        return read_label(out / _folder.MASKS / f"{image_id}.png", dataset.size(image_id), len(classes), _folder.WORK)
    return _Source(dataset, dataset.list_ids(config.export_split or "all"), mask, "predicted masks", out.name)


def write_export(config: Any, source: _Source, target: Path, progress: Callable[[int, int, str], None]) -> list[Finding]:
    """Write the images and masks of `source`, complete or not at all; return the lines of a report.

    Raises ConfigError if `target` holds files, and what reading an image or a mask raises.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"export_to={target} is not empty. Choose another folder, or delete it: it need not exist")
    form = annotations.load(config.export_format)
    polygons = config.export_polygons or annotations.MASKS not in form.SHAPES
    url = config.export_url if config.export_url is not None else f"/data/local-files/?d={target.name}/{form.IMAGES}/"
    options = Options(source.dataset.classes, config.export_tolerance if polygons else None, url, source.made_by)
    regions = 0

    def sheets(folder: Path) -> Iterator[Sheet]:
        nonlocal regions
        for number, image_id in enumerate(source.ids, start=1):
            sheet = Sheet(image_id, _copy_image(source.dataset, image_id, folder / form.IMAGES), source.mask(image_id))
            regions += sum(1 for _ in sheet.regions())
            yield sheet
            progress(number, len(source.ids), "images")
    with writing_folder(target) as folder:
        form.write(folder, sheets(folder), options)
    shape = f"polygons, at most {config.export_tolerance:g} px from the masks" if polygons else "masks"
    corrected = sum(image_id in source.dataset.corrections for image_id in source.ids)
    return [Finding(f"{source.title}, {config.export_format}", len(source.ids), len(source.ids), f"in {target}"),
            *([Finding("of these corrected by hand before", corrected)] if corrected else []),
            Finding("regions of a class", regions, None, shape)]


def _copy_image(dataset: Dataset, image_id: str, folder: Path) -> str:
    """Write a copy of an image into `folder` and return its name: upright, because not every tool turns it."""
    path = dataset.image_path(image_id)
    if os.path.splitext(path)[1].lower() == ".png":
        write_picture(folder / f"{image_id}.png", dataset.full_image(image_id))
        return f"{image_id}.png"
    content = path.read_bytes() if is_upright_jpeg(path) else encode_jpeg(dataset.full_image(image_id))
    write_bytes(folder / f"{image_id}.jpg", content)
    return f"{image_id}.jpg"
