"""The run folder `outputs/NAME`: the working and result folders of steps.

A step that is made for the first time or made again works in `STEP.partial-FINGERPRINT`, which replaces `STEP` only when it is
complete. A step with some missing images works in `STEP`.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import IMPORTED
from pipeline.runfolder.claims import LOCKS, Claims, Owner
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.inference import FAILED
from steps.runtime.journal import INDEX, JOURNALS, file_sum, kept_in
from steps.runtime.packs import DAMAGED, discard, set_aside
from steps.runtime.schedule import STATE
from steps.step import IMAGES
from wsss.errors import ArtifactError, ConfigError
from wsss.files import TEMPORARY, are_plain_names, file_sizes, refuse_links, remove_temporary, storage, sync_folder, sync_names

MANIFEST = "manifest.json"
CHECKSUM = "checksum"   # of a manifest or run.json: the CRC-32 of its other values, so that a changed digit changes no plan
MANIFEST_KEYS = {"fingerprint", "identity", "sources",
                 "files", "result", "images", "made", "device", "seconds", "disk_mb", "peak_memory_mb"}
WORK = "work.json"      # in a partial folder: the identity of the result
RUN = "run.json"        # marks a run folder and names its data set
FORMAT = 2              # of a run folder; raised when older ones cannot be read


class RunFolder:
    """The paths and states below `outputs/NAME`."""

    def __init__(self, path: Path, inside: bool = False):
        self.path, self.inside = path, inside   # inside: it may be inside another run, as in a sweep
        self.claims = Claims(path)

    def result(self, step: str) -> Path:
        return self.path / step

    def partial(self, step: str, fingerprint: str) -> Path:
        return self.path / f"{step}.partial-{fingerprint[:12]}"

    def partials(self, step: str) -> list[Path]:
        """The partial folders of a step, with any settings."""
        return sorted(self.path.glob(f"{step}.partial-*"))

    def manifest(self, step: str) -> dict | None:
        """The manifest of a finished step; None if it is not finished.

        Raises ArtifactError if it is damaged; nothing is overwritten.
        """
        path = self.result(step) / MANIFEST
        if not path.parent.exists() or path.parent.is_dir() and not any(path.parent.iterdir()):
            return None
        manifest, reason = None, "it does not exist, but its folder is not empty"
        if path.exists():
            try:
                manifest, reason = read_json(path), "keys are missing"
            except ArtifactError as error:
                reason = str(error.__cause__)
        if isinstance(manifest, dict) and not _is_whole(manifest):
            manifest, reason = None, "its checksum is not that of its values"
        valid = isinstance(manifest, dict) and MANIFEST_KEYS <= manifest.keys() and isinstance(manifest["files"], dict)
        valid = valid and isinstance(manifest["identity"], dict) and all(
            isinstance(state, list) and len(state) == 2 for state in manifest["files"].values())
        if valid and not are_plain_names(manifest["files"]):
            valid, reason = False, "its files are outside the folder"
        if valid and manifest.get("step", step) != step:
            valid, reason = False, f"it is that of {manifest['step']}"
        if not valid:
            raise ArtifactError(f"{path} is not a valid manifest ({reason}). Nothing was changed. Restore it, or move the folder "
                                f"(mv {path.parent} {path.parent}.kept): the same command then makes the step again")
        return manifest

    def recorded(self, step: str) -> list[dict]:
        """The recorded identities of a step: of its result and of its partial folders."""
        manifest = self.manifest(step)
        works = [self.begun(path) for path in self.partials(step)]
        return ([manifest["identity"]] if manifest else []) + [identity for identity in works if identity]

    def imported(self, step: str) -> str | None:
        """The digest of the files that a finished "images" step was imported from; None if it was not imported."""
        manifest = self.manifest(step) if BY_NAME[step].KIND == IMAGES else None
        return manifest["identity"].get(IMPORTED) if manifest else None

    def begun(self, partial: Path) -> dict | None:
        """The identity recorded in a partial folder; None if there is none."""
        try:
            identity = read_json(partial / WORK)["identity"]
        except (ArtifactError, KeyError, TypeError):
            return None
        return identity if isinstance(identity, dict) else None

    def has_open_journal(self, step: str) -> bool:
        """Whether a finished step was interrupted before its journal was merged into the index."""
        return (self.result(step) / JOURNALS).exists()

    def damaged_files(self, step: str) -> list[str]:
        """The files of a finished step, except those of single images, that are missing or have another size than recorded.

        The state of a training is not checked: it may be deleted after the training.
        """
        sizes, files = file_sizes(self.result(step)), (self.manifest(step) or {"files": {}})["files"]
        return [name for name, (size, _) in files.items() if sizes.get(name) != size]

    def is_started(self) -> bool:
        """Whether it contains anything except locks."""
        return any(entry.name != LOCKS for entry in self.path.iterdir())

    def check_data(self, data: dict[str, Any]) -> None:
        """Raise ConfigError if the folder is not a run folder, or belongs to another data set.

        Raises ConfigError that names both data sets.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file, so {self.path} cannot be a run folder. Choose another run with name=NAME, "
                                  "or another place with outputs=DIR")
            if path != self.path and (path / RUN).exists() and not self.inside:
                raise ConfigError(f"{self.path} is inside the run {path}. Choose another name=NAME")
        self.check_format()
        known = self._data()
        if known is None:   # run.json is missing or damaged: use the manifests
            classes = [manifest["identity"]["data"]["classes"] for name in BY_NAME if (manifest := self.manifest(name))]
            others = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCKS) if self.path.is_dir() else []
            if others and data["classes"] not in classes:
                raise ConfigError(f"{self.path} is not a run folder: it has no valid {RUN}, but contains "
                                  f"{', '.join(others[:3])}. Choose another run with name=NAME or place with outputs=DIR")
            return
        different = [f"{key} {known.get(key)!r} there, {data[key]!r} here" for key in ("kind", "name", "classes")
                     if known.get(key) != data[key]]
        if different:
            raise ConfigError(f"{self.path} was made from another data set, {known.get('name')} in {known.get('root')}: "
                              f"{'; '.join(different)}. Choose another run with name=NAME, or use that data set")

    def check_format(self) -> None:
        """Raise ConfigError if another version of this program wrote the run."""
        if self._data() is None:   # run.json is missing or damaged
            return
        written = read_json(self.path / RUN).get("format", 1)
        if written != FORMAT:
            raise ConfigError(f"{self.path} was written by another version of this program (format {written}, here {FORMAT}), so "
                              "its results cannot be used here. Make them again in a new run, name=NAME, or use that version")

    def _data(self) -> dict[str, Any] | None:
        """The recorded data set; None if it is missing or invalid."""
        try:
            marker = read_json(self.path / RUN)
            data = marker["data"] if _is_whole(marker) else None
        except (ArtifactError, KeyError, TypeError, AttributeError):
            return None
        return data if isinstance(data, dict) and {"kind", "name", "root", "classes"} <= data.keys() else None

    def open(self, data: dict[str, Any]) -> None:
        """Mark the folder as a run folder of this data set."""
        if self._data() is None:
            _write_whole(self.path / RUN, {"format": FORMAT, "data": data})

    def begin(self, step: str, folder: Path, identity: dict, damaged: Iterable[str]) -> None:
        """Prepare `folder` for work: create it and delete temporary and damaged files."""
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            refuse_links(folder)
            remove_temporary(folder)
            for name in damaged:
                if name != INDEX:   # its readable lines are still used
                    discard(folder / name)
            set_aside(folder / WORK)
        if folder != self.result(step):
            write_json(folder / WORK, {"step": step, "identity": identity})

    def share(self, step: str, folder: Path, identity: dict) -> None:
        """Prepare `folder` for one shard while other processes work in it."""
        if folder.exists():
            refuse_links(folder)
        if folder != self.result(step) and self.begun(folder) != identity:
            write_json(folder / WORK, {"step": step, "identity": identity})

    def finish(self, step: str, folder: Path, manifest: dict) -> None:
        """Make `folder` the result of `step`; an older result is deleted only now."""
        with storage(folder):
            for name in [WORK, FAILED, *(name for name in file_sizes(folder) if name.endswith(DAMAGED))]:
                discard(folder / name)
        state = {"state": file_sum(folder / STATE)} if (folder / STATE).is_file() else {}
        with storage(folder):
            sync_folder(folder)
        _write_whole(folder / MANIFEST, {**manifest, "step": step, "files": _other_files(folder), **state})
        result, replaced = self.result(step), self.path / f"{step}.replaced"
        with storage(result):
            sync_folder(folder)
            if folder == result:
                return
            shutil.rmtree(replaced, ignore_errors=True)
            if result.exists():
                os.rename(result, replaced)
            os.rename(folder, result)
            sync_names(self.path)   # an older result is deleted when the new one is on the disk
        shutil.rmtree(replaced, ignore_errors=True)

    def recover(self, steps: Iterable[str]) -> None:
        """Complete every `finish` that was interrupted between its two renames, except of steps that other processes make now.

        Call it while planning.
        """
        others = [claim for claim in self.claims.living() if claim.owner != Owner.me()]
        busy = {step for claim in others for step, _, _ in claim.makes}
        if not others:   # nobody else writes beside the steps; what a killed write left there is of no use
            with storage(self.path):
                for path in [*self.path.glob(TEMPORARY), *self.claims.folder.glob(TEMPORARY)]:
                    path.unlink(missing_ok=True)
        for step in steps:
            if step in busy:
                continue
            complete = [folder for folder in self.partials(step) if (folder / MANIFEST).exists()]
            if complete and not self.result(step).exists():
                with storage(self.path):
                    os.rename(complete[0], self.result(step))
            if self.result(step).exists():
                shutil.rmtree(self.path / f"{step}.replaced", ignore_errors=True)


def _write_whole(path: Path, values: dict) -> None:
    write_json(path, {**values, CHECKSUM: _checksum(json.loads(json.dumps(values)))})


def _checksum(values: dict) -> int:
    return zlib.crc32(json.dumps({key: value for key, value in values.items() if key != CHECKSUM}, sort_keys=True).encode())


def _is_whole(values: dict) -> bool:
    """Whether no value has changed since it was written; older files have no checksum."""
    return values.get(CHECKSUM, found := _checksum(values)) == found


def _other_files(folder: Path) -> dict[str, list[int]]:
    """name -> [size, checksum] of every file that is neither in a journal line nor a pack."""
    names = {name for name in file_sizes(folder) if DAMAGED not in name} - {MANIFEST, STATE}   # of what is not ours, neither
    names.difference_update(kept_in(folder))
    return {name: file_sum(folder / name) for name in sorted(names)}
