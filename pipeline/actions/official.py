"""`action=import_official` and `action=export_official`: results from, and for, the official IRN and LPCAM code.

Both know its folders: `cam_mask/ID.npy`, `lpcam_mask/ID.npy`, `ir_label/ID.png`, `sem_seg/ID.png`; the export also writes
`res50_cam.pth` and `res50_irn.pth`, which `model.cam_weights` and `model.irn_weights` read.
"""

import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions.export_voc import export_target
from pipeline.config import selected
from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import imported_identity
from pipeline.plan.plan import ABSENT, CONTINUE, DONE, PARTIAL, RERUN, RUN, SKIP, STALE, PlannedStep, survey
from pipeline.runfolder.folder import RunFolder
from steps.parts.imported import FOLDERS, MAPS, Import, official_file
from steps.runtime.artifacts import Labels, Maps, read_json, write_json
from steps.runtime.journal import Lines, unfinished
from steps.runtime.networks import WEIGHTS
from wsss.data.dataset import Dataset
from wsss.data.findings import Finding
from wsss.errors import ArtifactError, ConfigError
from wsss.files import user_path
from wsss.networks.weights import read_metadata, read_tensors
from wsss.official import CAM, IRN, OfficialMaps, write_label, write_maps, write_network

NETWORKS = {"train_cam": ("res50_cam.pth", CAM), "train_irn": ("res50_irn.pth", IRN)}
RECORD = "exported.json"   # in the folder of an export: the fingerprint of each step that it holds

Progress = Callable[[str, int, int, str], None]


def import_plan(config: Any, dataset: Dataset, folder: RunFolder) -> list[PlannedStep]:
    """The chosen steps of which `import_from` has files, each to be converted from them. Writes nothing.

    Raises
    ------
    ConfigError
        when there is nothing to import, or a result that was made here would be replaced without `replace=true`.
    """
    if config.import_from is None:
        raise ConfigError("action=import_official reads a folder of the official code and was given none: say which by "
                          "import_from=DIR")
    source, plan = user_path(config.import_from), []
    for name in selected(config):
        if name in FOLDERS and (ids := (module := Import(name, source)).ids(dataset)):
            identity = imported_identity(dataset, name, module.digest(ids))
            plan.append(PlannedStep(replace(BY_NAME[name], module=module), {"ids": ids}, identity, (), ABSENT, total=len(ids)))
            _find_state(config, dataset, folder, plan[-1])
    if not plan:
        raise ConfigError(f"import_from={source} has no file of an image of {dataset.name} for the chosen steps. Expected in it "
                          f"are {', '.join(str(official_file(Path(), name, 'ID')) for name in FOLDERS)}; an id of this data set "
                          f"is {dataset.lists['all'][0]!r}")
    return plan


def _find_state(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep) -> None:
    """Set what is to be done with a step that is imported."""
    manifest = folder.manifest(planned.name)
    current = manifest is not None and manifest["fingerprint"] == planned.fingerprint
    if manifest is not None and not current and "imported" not in manifest["identity"] and not config.replace:
        raise ConfigError(f"{planned.name} is finished in {folder.result(planned.name)} and would be replaced by what is "
                          "imported. Set replace=true to allow it, or name=NAME for another run")
    place = folder.result(planned.name) if current else folder.partial(planned.name, planned.fingerprint)
    planned.done = planned.total - len(unfinished(place, planned.lists["ids"], dataset))
    planned.damaged = folder.damaged_files(planned.name) if current else []
    planned.why = f"from {planned.step.module.source / FOLDERS[planned.name]}"
    if current and planned.done == planned.total and not planned.damaged and not folder.has_open_journal(planned.name):
        planned.state, planned.action = DONE, SKIP
    elif current or place.exists():
        planned.state, planned.action = PARTIAL, CONTINUE
    else:
        planned.state, planned.action = (STALE, RERUN) if manifest else (ABSENT, RUN)


def export_official(config: Any, dataset: Dataset, folder: RunFolder, chosen: Collection[str],
                    progress: Progress) -> list[Finding]:
    """Write what the run has of the `chosen` steps into `export_to`, as the official code would have written it.

    Returns a line for each kind of file. What an earlier call wrote of the same results is left as it is.

    Raises
    ------
    ConfigError
        before anything is written: for `data.max_side`, a run without finished results, too little room, or a folder that holds
        other results (`force=true` replaces them).
    """
    target = export_target(config, dataset, folder, "export_official")
    if dataset.max_side or dataset.min_side:
        key = "max_side" if dataset.max_side else "min_side"
        raise ConfigError(f"data.{key}={getattr(dataset, key)}: the maps are those of resized images, the official code "
                          "reads them as they are. Export a run that was made without it")
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
        raise ConfigError(f"{folder.path} has nothing to export that is up to date. Run it first, with the same keys")
    known = _check_target(config, target, done)
    _check_room(target, folder, done)
    for planned in done:
        # files of other results stay among those of these until all are replaced
        mixed = config.force and known.get(planned.name) != planned.fingerprint
        write_json(target / RECORD, {**known, planned.name: "mixed" if mixed else planned.fingerprint})
        report.append(_export(config, folder, target, planned, len(dataset.classes), progress))
        known[planned.name] = planned.fingerprint
        write_json(target / RECORD, known)
    return report


def _what(step: str) -> str:
    return NETWORKS[step][0] if step in NETWORKS else FOLDERS[step]


def _why_not(planned: PlannedStep, folder: RunFolder) -> str:
    """Why a step is not exported; empty where it is."""
    if planned.state != DONE:
        return f"is not up to date ({planned.why})" if planned.why else "has not been made"
    if planned.name in NETWORKS:
        facts = read_metadata(folder.result(planned.name) / WEIGHTS)
        if (facts.get("backbone"), facts.get("norm")) != ("resnet50", "frozen_batch"):
            return f"is a {facts.get('backbone')} with norm {facts.get('norm')}, the official network a resnet50 with batch norm"
    return ""


def _check_target(config: Any, target: Path, done: list[PlannedStep]) -> dict[str, str]:
    """The record of what an earlier export wrote; files of anything else are refused."""
    try:
        known = read_json(target / RECORD)
        known = known if isinstance(known, dict) else {}
    except ArtifactError:
        known = {}
    for planned in done:
        place = target / _what(planned.name)
        if not config.force and known.get(planned.name) != planned.fingerprint and (
                any(place.iterdir()) if place.is_dir() else place.exists()):
            raise ConfigError(f"{place} is there and was not written from these results. Set force=true to replace it, or choose "
                              "another folder with export_to=DIR")
    return known


def _check_room(target: Path, folder: RunFolder, done: list[PlannedStep]) -> None:
    """Refuse an export for which there is no room: the official maps are float32 at full size."""
    lines = [line for planned in done if planned.name in MAPS for line in Lines(folder.result(planned.name)).values()]
    needed = sum(4 * len(line["classes"]) * line["height"] * line["width"] * (1 + 1 / 16) for line in lines)
    there = sum(path.stat().st_size for name in MAPS.values() for path in (target / name).glob("*.npy"))
    free = shutil.disk_usage(next(path for path in (target, *target.resolve().parents) if path.exists())).free
    if needed - there > free:
        raise ConfigError(f"export_to={target} has {free / 2**30:.1f} GiB free, the maps need {needed / 2**30:.1f} GiB. Choose "
                          "another place, or leave maps out with make_cam_pass=false or make_lpcam_pass=false")


def _export(config: Any, folder: RunFolder, target: Path, planned: PlannedStep, n_classes: int, progress: Progress) -> Finding:
    """Write the files of one step that are not there yet."""
    name, source = planned.name, folder.result(planned.name)
    if name in NETWORKS:
        file, layout = NETWORKS[name]
        write_network(target / file, read_tensors(source / WEIGHTS), layout)
        return Finding(file, 1, None, f"from {name}")
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
    if step not in MAPS:
        read = Labels(source, n_classes)
        return lambda path, image_id: write_label(path, read(image_id))
    maps = Maps(source)

    def write(path: Path, image_id: str) -> None:
        cam, high_res = (maps.map(image_id, resolution).numpy() for resolution in ("strided", "full"))
        write_maps(path, OfficialMaps(np.array(maps.classes(image_id), np.int64), cam, high_res), lpcam=step == "make_lpcam")
    return write
