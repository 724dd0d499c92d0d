"""Write results into `export_to=DIR` in the format of the official IRN and LPCAM code.

The files are `cam_mask/ID.npy`, `lpcam_mask/ID.npy`, `ir_label/ID.png` and `sem_seg/ID.png`, and the networks `res50_cam.pth` and
`res50_irn.pth`, which the setting `weights` of a training reads; the network of EDAM as `res38_edam.pth`.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pipeline.actions._export import Settings, export_target
from pipeline.actions._official import refuse_same_files
from pipeline.order import BY_NAME
from pipeline.plan.plan import DONE, PlannedStep, survey
from pipeline.plan.selection import selected
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import read_json, write_json
from steps.step import IMAGES, TRAINING
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding, report_table
from wsss.errors import ArtifactError, ConfigError
from wsss.files import free_bytes

__all__ = ["Settings", "do", "run"]
RECORD = "exported.json"   # in the export folder: OFFICIAL.name -> the fingerprint of the step that it was written from

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
        before anything is written: if `data.max_side` is set, the run has no finished results, two steps have the same official
        files, there is too little disk space, or the folder contains other results (`force=true` replaces them).
    """
    target = export_target(config, dataset, folder, "export_official")
    if dataset.max_side or dataset.min_side:
        key = "max_side" if dataset.max_side else "min_side"
        raise ConfigError(f"data.{key}={getattr(dataset, key)}: the maps were made from resized images, but the "
                          "official code reads the original ones. Export a run that was made without it")
    done, report = [], []
    for planned in survey(config, dataset, folder):
        reason = _why_not(planned, folder)
        if planned.step.OFFICIAL and planned.name in chosen:
            if reason:
                expected = len(planned.lists["ids"]) if planned.step.KIND == IMAGES else 1
                name = _name(planned, folder) if planned.state == DONE else planned.step.OFFICIAL.name
                report.append(Finding(name, 0, expected, f"{planned.name} {reason}"))
            else:
                done.append(planned)
    if not done:
        raise ConfigError(f"{folder.path} has no up-to-date results to export. Run it first, with the same settings")
    refuse_same_files(planned.step for planned in done)
    known = _check_target(config, target, done, folder)
    _check_room(target, folder, done)
    for planned in done:
        # until all files are replaced, the folder also contains files of other results
        name = _name(planned, folder)
        mixed = config.force and known.get(name) != planned.fingerprint
        write_json(target / RECORD, {**known, name: "mixed" if mixed else planned.fingerprint})
        report.append(_export(config, folder, target, planned, len(dataset.classes), progress))
        known[name] = planned.fingerprint
        write_json(target / RECORD, known)
    return report


def _why_not(planned: PlannedStep, folder: RunFolder) -> str:
    """Why a step is not exported; empty if it is."""
    if planned.state != DONE:
        return f"is not up to date ({planned.why})" if planned.why else "has not been made"
    return planned.step.OFFICIAL.why_not(folder.result(planned.name)) if planned.step.OFFICIAL else ""


def _name(planned: PlannedStep, folder: RunFolder) -> str:
    """The name of the official file or folder of a finished step."""
    return planned.step.OFFICIAL.name_in(folder.result(planned.name))


def _check_target(config: Any, target: Path, done: list[PlannedStep], folder: RunFolder) -> dict[str, str]:
    """The record of an earlier export. Raises ConfigError if the target contains other files."""
    try:
        known = read_json(target / RECORD)
        known = known if isinstance(known, dict) else {}
    except ArtifactError:
        known = {}
    for planned in done:
        name = _name(planned, folder)
        place = target / name
        if not config.force and known.get(name) != planned.fingerprint and (
                any(place.iterdir()) if place.is_dir() else place.exists()):
            raise ConfigError(f"{place} exists and was not written from these results. Set force=true to replace it, or choose "
                              "another folder with export_to=DIR")
    return known


def _check_room(target: Path, folder: RunFolder, done: list[PlannedStep]) -> None:
    """Raise ConfigError if the disk space does not suffice."""
    large = {planned.name: needed for planned in done
             if (needed := planned.step.OFFICIAL.bytes_needed(folder.result(planned.name)))}
    names = [BY_NAME[name].OFFICIAL.name for name in large]
    there = sum(path.stat().st_size for name in names for path in (target / name).glob("*"))
    needed, free = sum(large.values()), free_bytes(target)
    if needed - there > free:
        flags = " or ".join(f"{BY_NAME[name].flag}=false" for name in large)
        raise ConfigError(f"export_to={target} has {free / 2**30:.1f} GiB free, the maps need {needed / 2**30:.1f} GiB. Choose "
                          f"another place, or leave maps out with {flags}")


def _export(config: Any, folder: RunFolder, target: Path, planned: PlannedStep, n_classes: int, progress: Progress) -> Finding:
    """Write the missing files of one step."""
    official, source = planned.step.OFFICIAL, folder.result(planned.name)
    if planned.step.KIND == TRAINING:
        official.write(target, source)
        return Finding(_name(planned, folder), 1, None, f"from {planned.name}")
    write, ids, written = official.writer(source, n_classes), planned.lists["ids"], 0
    for number, image_id in enumerate(ids, start=1):
        path = official.path(target, image_id)
        if config.force or not path.exists():
            write(path, image_id)
            written += 1
        progress(official.name, number, len(ids), "files")
    return Finding(official.name, len(ids), None, f"{written:,} written, {len(ids) - written:,} were there")
