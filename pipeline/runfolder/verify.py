"""`action=verify`: read every artifact of a run, check its checksum and content, and rename broken ones."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import IMPORTED
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import File, quarantine
from steps.runtime.journal import INDEX, file_sum, journal_lines
from steps.runtime.packs import OpenFiles
from steps.runtime.schedule import STATE
from steps.step import IMAGES, TRAINING
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, StorageError, WsssError
from wsss.files import refuse_links

NOT_FINISHED = "not finished"


@dataclass
class Verified:
    """The result of checking one step."""

    name: str
    read: int                        # files
    broken: dict[str, str]           # file -> what is wrong
    note: str = ""                   # why the step was not or not fully checked
    needs_replace: bool = False      # a training without its last state, which must be trained again

    def __str__(self) -> str:
        return f"{self.name:<20} {self.note or f'{self.read} files read, {len(self.broken)} broken'}"

    @property
    def ok(self) -> bool:
        return not self.broken and self.note in ("", NOT_FINISHED)


def verify_step(folder: RunFolder, name: str, dataset: Dataset, tick: Callable[[int, int], None]) -> Verified:
    """Read and check every artifact of a finished step.

    Sizes and checksums are compared with the index and the manifest, then the step's own reader checks shape, type,
    range and finiteness. A broken file is renamed to `FILE.damaged`, so that the next run makes only this file again. A broken
    member of a pack is copied into `packs/`, with the same effect.
    """
    result, row = Verified(name, 0, {}), BY_NAME[name]
    try:
        manifest = folder.manifest(name)
        if manifest is None:
            return Verified(name, 0, {}, NOT_FINISHED)
        place, reader = folder.result(name), row.reader
        refuse_links(place)   # what is broken is renamed
        problems: list[str] = []
        lines = list(journal_lines(place, problems)) if row.KIND == IMAGES else []
        for problem in problems:
            where, _, remedy = problem.rpartition(": ")
            result.broken[where] = remedy
        for file, recorded in manifest["files"].items():
            if file == INDEX and problems:   # it is not renamed: its readable lines are still used
                continue
            if not _check(result, place / file, recorded) and file == INDEX:
                lines = []   # they may be those of another step: no file is judged by them
        if "state" in manifest and os.path.lexists(place / STATE):   # it may be deleted after the training
            _check(result, place / STATE, manifest["state"])
        if IMPORTED in manifest["identity"] and lines:
            reader = row.OFFICIAL.reader
        read, packs = _reader(result, reader, place, len(dataset.classes)), OpenFiles(place)
        for number, line in enumerate(lines, start=1):
            ok = [_check(result, packs.of(line, file), recorded) for file, recorded in line["files"].items()]
            if read and all(ok):
                _try(result, place, lambda image_id=line["id"]: read(image_id))
            tick(number, len(lines))
    except StorageError as error:
        return Verified(name, 0, {}, str(error))
    except ArtifactError as error:
        result.note = str(error)
        quarantine(error)
    result.needs_replace = (row.KIND == TRAINING and bool(result.broken) and IMPORTED not in manifest["identity"]
                            and not (folder.result(name) / STATE).exists())
    return result


def _reader(result: Verified, reader: Callable, place: Path, n_classes: int) -> Callable[[str], Any] | None:
    """The step's reader of one image; None if there is none, or if the files it needs are broken."""
    if result.broken:
        return None
    made: list[Callable] = []
    _try(result, place, lambda: made.append(reader(place, n_classes)))
    return made[0] if made else None


def _check(result: Verified, path: File, recorded: list[int]) -> bool:
    """Compare size and checksum of a file; rename it if they differ."""
    result.read += 1
    try:
        found = file_sum(path)
    except OSError as error:
        wrong = ArtifactError(f"{path} cannot be read ({error.strerror})", damaged=path)
        wrong.__cause__ = error   # it says whether the file may be intact
        _note(result, path, wrong)
        return False
    except ArtifactError as error:   # raised by a broken member of a pack
        _note(result, path, error)
        return False
    if found != list(recorded)[:2]:
        _note(result, path, ArtifactError(f"{path} is not what was written: size and checksum are {found}, not {list(recorded)}",
                                          damaged=path))
    else:
        return True
    return False


def _try(result: Verified, place: Path, read: Callable[[], Any]) -> None:
    try:
        read()
    except WsssError as error:
        _note(result, place, error)


def _note(result: Verified, path: File, error: WsssError) -> None:
    named = getattr(error, "damaged", None) or path
    quarantine(error)
    result.broken[str(named)] = str(error).removeprefix(f"{named} ")
