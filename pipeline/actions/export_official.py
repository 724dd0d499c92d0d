"""Write results into `export_to=DIR` in the format of the official IRN and LPCAM code.

The files are `cam_mask/ID.npy`, `lpcam_mask/ID.npy`, `ir_label/ID.png` and `sem_seg/ID.png`, and the networks `res50_cam.pth` and
`res50_irn.pth`, which `model.cam_weights` and `model.irn_weights` read.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions._export import Settings, export_target
from pipeline.plan.plan import DONE, PlannedStep, survey
from pipeline.plan.selection import selected
from pipeline.runfolder.folder import RunFolder
from steps.parts.imported import FOLDERS, MAPS, official_file
from steps.runtime.artifacts import Labels, Maps, read_json, write_json
from steps.runtime.journal import Lines
from steps.runtime.schedule import WEIGHTS
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.errors import ArtifactError, ConfigError
from wsss.files import free_bytes
from wsss.networks.facts import read_metadata

__all__ = ["Settings", "do", "run"]
NETWORKS = {"train_cam": "res50_cam.pth", "train_irn": "res50_irn.pth"}
RECORD = "exported.json"   # in the export folder: the fingerprint of each exported step

Progress = Callable[[str, int, int, str], None]


def do(pipeline: Any) -> list[Finding]:
    """Write maps, labels and networks into `export_to`; return what was written. Raises WsssError."""
    chosen = selected(pipeline.config)
    with pipeline.reading(chosen):
        pipeline.console.start("export_official")
        return export_official(pipeline.config, pipeline.dataset, pipeline.folder, chosen, pipeline.console.progress)


def run(pipeline: Any) -> int:
    pipeline.console.result(report_table(do(pipeline)))
    return 0


def export_official(config: Any, dataset: Dataset, folder: RunFolder, chosen: Collection[str],
                    progress: Progress) -> list[Finding]:
    """Write the results of the `chosen` steps into `export_to`, in the format of the official code.

    Returns a line for each kind of file. Files that an earlier call wrote from the same results are not changed.

    Raises
    ------
    ConfigError
        before anything is written: if `data.max_side` is set, the run has no finished results, there is too little disk space, or
        the folder contains other results (`force=true` replaces them).
    """
    target = export_target(config, dataset, folder, "export_official")
    if dataset.max_side or dataset.min_side:
        key = "max_side" if dataset.max_side else "min_side"
        raise ConfigError(f"data.{key}={getattr(dataset, key)}: the maps were made from resized images, but the "
                          "official code reads the original ones. Export a run that was made without it")
    done, report = [], []
    for planned in survey(config, dataset, folder):
        reason = _why_not(planned, folder)
        if planned.name in (*FOLDERS, *NETWORKS) and planned.name in chosen:
            if reason:
                expected = len(planned.lists["ids"]) if planned.name in FOLDERS else 1
                report.append(Finding(_what(planned.name), 0, expected, f"{planned.name} {reason}"))
            else:
                done.append(planned)
    if not done:
        raise ConfigError(f"{folder.path} has no up-to-date results to export. Run it first, with the same settings")
    known = _check_target(config, target, done)
    _check_room(target, folder, done)
    for planned in done:
        # until all files are replaced, the folder also contains files of other results
        mixed = config.force and known.get(planned.name) != planned.fingerprint
        write_json(target / RECORD, {**known, planned.name: "mixed" if mixed else planned.fingerprint})
        report.append(_export(config, folder, target, planned, len(dataset.classes), progress))
        known[planned.name] = planned.fingerprint
        write_json(target / RECORD, known)
    return report


def _what(step: str) -> str:
    return NETWORKS[step] if step in NETWORKS else FOLDERS[step]


def _why_not(planned: PlannedStep, folder: RunFolder) -> str:
    """Why a step is not exported; empty if it is."""
    if planned.state != DONE:
        return f"is not up to date ({planned.why})" if planned.why else "has not been made"
    if planned.name in NETWORKS:
        facts = read_metadata(folder.result(planned.name) / WEIGHTS)
        if (facts.get("backbone"), facts.get("norm")) != ("resnet50", "frozen_batch"):
            return f"is a {facts.get('backbone')} with norm {facts.get('norm')}, the official network a resnet50 with batch norm"
    return ""


def _check_target(config: Any, target: Path, done: list[PlannedStep]) -> dict[str, str]:
    """The record of an earlier export. Raises ConfigError if the target contains other files."""
    try:
        known = read_json(target / RECORD)
        known = known if isinstance(known, dict) else {}
    except ArtifactError:
        known = {}
    for planned in done:
        place = target / _what(planned.name)
        if not config.force and known.get(planned.name) != planned.fingerprint and (
                any(place.iterdir()) if place.is_dir() else place.exists()):
            raise ConfigError(f"{place} exists and was not written from these results. Set force=true to replace it, or choose "
                              "another folder with export_to=DIR")
    return known


def _check_room(target: Path, folder: RunFolder, done: list[PlannedStep]) -> None:
    """Raise ConfigError if the disk space does not suffice: the official maps are float32 at full size."""
    lines = [line for planned in done if planned.name in MAPS for line in Lines(folder.result(planned.name)).values()]
    needed = sum(4 * len(line["classes"]) * line["height"] * line["width"] * (1 + 1 / 16) for line in lines)
    there = sum(path.stat().st_size for name in MAPS.values() for path in (target / name).glob("*.npy"))
    free = free_bytes(target)
    if needed - there > free:
        raise ConfigError(f"export_to={target} has {free / 2**30:.1f} GiB free, the maps need {needed / 2**30:.1f} GiB. Choose "
                          "another place, or leave maps out with make_cam_pass=false or make_lpcam_pass=false")


def _export(config: Any, folder: RunFolder, target: Path, planned: PlannedStep, n_classes: int, progress: Progress) -> Finding:
    """Write the missing files of one step."""
    name, source = planned.name, folder.result(planned.name)
    if name in NETWORKS:
        from wsss.networks.weights import read_tensors
        from wsss.official import CAM, IRN, write_network

        write_network(target / NETWORKS[name], read_tensors(source / WEIGHTS), CAM if name == "train_cam" else IRN)
        return Finding(NETWORKS[name], 1, None, f"from {name}")
    write, ids, written = _writer(name, source, n_classes), planned.lists["ids"], 0
    for number, image_id in enumerate(ids, start=1):
        path = official_file(target, name, image_id)
        if config.force or not path.exists():
            write(path, image_id)
            written += 1
        progress(FOLDERS[name], number, len(ids), "files")
    return Finding(FOLDERS[name], len(ids), None, f"{written:,} written, {len(ids) - written:,} were there")


def _writer(step: str, source: Path, n_classes: int) -> Callable[[Path, str], None]:
    """The function that writes the official file of an image."""
    from wsss.official import OfficialMaps, write_label, write_maps

    if step not in MAPS:
        read = Labels(source, n_classes)
        return lambda path, image_id: write_label(path, read(image_id))
    maps = Maps(source)

    def write(path: Path, image_id: str) -> None:
        cam, high_res = (maps.map(image_id, resolution).numpy() for resolution in ("strided", "full"))
        write_maps(path, OfficialMaps(np.array(maps.classes(image_id), np.int64), cam, high_res), lpcam=step == "make_lpcam")
    return write
