"""Reuse the results of steps of other runs (`reuse_from=[RUN, ...]`) with equal fingerprints."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import differences, fingerprint
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import find_run
from steps.runtime.journal import (
    BROKEN,
    INDEX,
    TAKEN,
    Journal,
    journal_files,
    journal_lines,
    merge_journals,
    pack_names,
    unfinished,
)
from steps.runtime.packs import discard, free_name, remove_damaged
from steps.runtime.schedule import STATE
from steps.step import IMAGES
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.files import storage
from wsss.reading import open_inside


@dataclass(frozen=True)
class Donor:
    """A run to reuse from; `covers`: the number of images that it has of the step."""

    folder: RunFolder
    covers: int = 0


def open_donors(config: Any) -> list[Donor]:
    """The runs of `reuse_from`, each a name below `outputs` or a folder.

    Raises ConfigError if a run does not exist or is the current one.
    """
    donors = []
    for run in config.reuse_from:
        path = find_run("reuse_from", run, config.outputs, finished=True)
        if path == config.folder.resolve():
            raise ConfigError(f"reuse_from: {run!r} is this run itself ({config.folder}). Leave it out, or choose another run "
                              "with name=NAME")
        donors.append(Donor(folder := RunFolder(path)))
        folder.check_format()
    return donors


def refuse_incompatible_runs(donors: list[Donor], identities: Mapping[str, dict]) -> None:
    """Raise ConfigError if no step of a run can be reused; it names the first step that differs, and how."""
    for donor in donors:
        differ = {}
        for name, identity in identities.items():
            manifest = donor.folder.manifest(name)
            if manifest is not None and manifest["fingerprint"] == fingerprint(identity):
                break
            if manifest is not None:
                differ[name] = differences(manifest["identity"], identity)
        else:
            name = next(iter(differ), None)
            how = f"{name} differs first: {'; '.join(differ[name][:4])}" if name else "it has finished none of these steps"
            raise ConfigError(f"reuse_from: no step can be reused from {donor.folder.path}: {how}. Undo the "
                              "difference, or leave the run out")


def find_donor(donors: list[Donor], step: str, wanted: str, ids: tuple[str, ...] | None, dataset: Dataset,
               added: Mapping[str, Any]) -> Donor | None:
    """The first run with the complete step of fingerprint `wanted`; for an "images" step at least one image suffices, and the
    kinds of results that are `added` may be missing."""
    for donor in donors:
        manifest = donor.folder.manifest(step)
        if manifest is None or manifest["fingerprint"] != wanted or donor.folder.damaged_files(step):
            continue
        if BY_NAME[step].KIND != IMAGES:
            return Donor(donor.folder, covers=manifest["made"]["total"])
        if len(unfinished(donor.folder.result(step), ids, dataset)) < len(ids):
            return Donor(donor.folder, len(ids) - len(unfinished(donor.folder.result(step), ids, dataset, added=added)))
    return None


def take_over(donor: RunFolder, step: str, into: Path, ids: tuple[str, ...], dataset: Dataset) -> dict:
    """Link the finished files of a step from `donor` into the folder `into`; return the donor's manifest.

    Files are hard links if the file system allows it, else copies. This is safe because artifacts are never changed in place.
    """
    source, manifest = donor.result(step), donor.manifest(step)
    names = [name for name in manifest["files"] if name != INDEX] + [STATE] * (source / STATE).exists()
    with storage(into):
        for name in names:
            _link(source, name, into / name)
        if BY_NAME[step].KIND == IMAGES:
            merge_journals(into, ids)
            missing, incomplete = unfinished(into, ids, dataset), unfinished(source, ids, dataset)
            used, packs = pack_names(journal_files(into)), {}
            journal = Journal(into, name=TAKEN)
            for line in journal_lines(source):
                if line["id"] not in missing or line["id"] in incomplete:
                    continue
                if pack := line.get("pack"):
                    if pack not in packs:
                        packs[pack] = free_name(pack, used)
                        used.add(packs[pack])
                        _link(source, pack, into / packs[pack])
                    line["pack"] = packs[pack]
                else:
                    for name in line["files"]:
                        _link(source, name, into / name)
                journal.append(line)
                if missing[line["id"]] == BROKEN:
                    for name in line["files"]:
                        remove_damaged(into, name)
            journal.close()
    return manifest


def _link(folder: Path, name: str, target: Path) -> None:
    """Link or copy the file `name` of a folder. Raises DataError if it is a link out of the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    discard(target)
    with open_inside(folder, name) as file:
        try:
            # what was opened, whatever has its name now; Python follows a symbolic link only where a descriptor is passed, too
            os.link(f"/proc/self/fd/{file.fileno()}", target, src_dir_fd=file.fileno(), follow_symlinks=True)
        except OSError:
            with open(target, "xb") as copy:
                shutil.copyfileobj(file, copy)
                os.fsync(copy.fileno())
