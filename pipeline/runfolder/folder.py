"""The run folder `outputs/NAME`: where a step works, where its result lies, and how the one becomes the other.

A step that is made for the first time, or anew, works in `STEP.partial-FINGERPRINT`, which takes the place of `STEP` when
it is complete: what was finished stays until its replacement is. A step that only lacks some images works in `STEP`.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME
from pipeline.runfolder.claims import LOCKS, Claims, Owner
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.inference import FAILED
from steps.runtime.journal import INDEX, JOURNALS, file_sum, kept_in
from steps.runtime.packs import DAMAGED
from steps.runtime.schedule import STATE
from wsss.errors import ArtifactError, ConfigError
from wsss.files import are_plain_names, file_sizes, remove_temporary, storage

MANIFEST = "manifest.json"
MANIFEST_KEYS = {"fingerprint", "identity", "files", "result", "images", "made", "device", "seconds", "disk_mb", "peak_memory_mb"}
WORK = "work.json"      # in a partial folder: the identity of what is made there
RUN = "run.json"        # marks a run folder and says which data set it is of


class RunFolder:
    """Paths and states below `outputs/NAME`."""

    def __init__(self, path: Path, inside: bool = False):
        self.path, self.inside = path, inside   # inside: it may lie in another run, as a member of a sweep does
        self.claims = Claims(path)

    def result(self, step: str) -> Path:
        return self.path / step

    def partial(self, step: str, fingerprint: str) -> Path:
        return self.path / f"{step}.partial-{fingerprint[:12]}"

    def partials(self, step: str) -> list[Path]:
        """The folders in which work on a step was begun, with any settings."""
        return sorted(self.path.glob(f"{step}.partial-*"))

    def manifest(self, step: str) -> dict | None:
        """The manifest of a finished step; None where there is none.

        Raises
        ------
        ArtifactError
            when it is damaged: it is named and nothing is overwritten.
        """
        path = self.result(step) / MANIFEST
        if not path.parent.exists() or path.parent.is_dir() and not any(path.parent.iterdir()):
            return None
        manifest, reason = None, "it is not there, but its folder is not empty"
        if path.exists():
            try:
                manifest, reason = read_json(path), "something is missing in it"
            except ArtifactError as error:
                reason = str(error.__cause__)
        sound = isinstance(manifest, dict) and MANIFEST_KEYS <= manifest.keys() and isinstance(manifest["files"], dict)
        if sound and not are_plain_names(manifest["files"]):
            sound, reason = False, "its files lie outside the folder"
        if not sound:
            raise ArtifactError(f"{path} is no manifest of this project ({reason}). Nothing was changed. Restore it, or put the "
                                f"folder away (mv {path.parent} {path.parent}.kept): the same command then makes the step anew")
        return manifest

    def recorded(self, step: str) -> list[dict]:
        """The identities that stand in the folder for a step: of its result and of what was begun."""
        manifest = self.manifest(step)
        works = [self.begun(path) for path in self.partials(step)]
        return ([manifest["identity"]] if manifest else []) + [identity for identity in works if identity]

    def imported(self, step: str) -> str | None:
        """The digest of the files that a finished "images" step was imported from; None where it was made here."""
        manifest = self.manifest(step) if BY_NAME[step].kind == "images" else None
        return manifest["identity"].get("imported") if manifest else None

    def begun(self, partial: Path) -> dict | None:
        """The identity of what is made in a partial folder; None where it does not say."""
        try:
            identity = read_json(partial / WORK)["identity"]
        except (ArtifactError, KeyError, TypeError):
            return None
        return identity if isinstance(identity, dict) else None

    def has_open_journal(self, step: str) -> bool:
        """Whether a finished step was completed in place and killed before its journal was merged into the index."""
        return (self.result(step) / JOURNALS).exists()

    def damaged_files(self, step: str) -> list[str]:
        """The files of a finished step, besides those of single images, that are not there with their recorded sizes.

        The state of a training does not count: it may be deleted once the training is finished.
        """
        sizes, files = file_sizes(self.result(step)), (self.manifest(step) or {"files": {}})["files"]
        return [name for name, (size, _) in files.items() if sizes.get(name) != size]

    def is_started(self) -> bool:
        """Whether anything but locks lies in it."""
        return any(entry.name != LOCKS for entry in self.path.iterdir())

    def check_data(self, data: dict[str, Any]) -> None:
        """Refuse a folder that is no run folder, or one of another data set.

        Raises
        ------
        ConfigError
            naming both data sets.
        """
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file, so {self.path} cannot be a run folder. Choose another run with name=NAME, "
                                  "or another place with outputs=DIR")
            if path != self.path and (path / RUN).exists() and not self.inside:
                raise ConfigError(f"{self.path} lies inside the run {path}, which would take it for a step. Choose another "
                                  "name=NAME")
        known = self._data()
        if known is None:   # no run.json, or a damaged one: the manifests say whose run it is
            classes = [manifest["identity"]["data"]["classes"] for name in BY_NAME if (manifest := self.manifest(name))]
            others = sorted(entry.name for entry in self.path.iterdir() if entry.name != LOCKS) if self.path.is_dir() else []
            if others and data["classes"] not in classes:
                raise ConfigError(f"{self.path} is no run folder: it has no sound {RUN}, but {', '.join(others[:3])}. Choose "
                                  "another run with name=NAME, or another place with outputs=DIR")
            return
        different = [f"{key} {known.get(key)!r} there, {data[key]!r} here" for key in ("kind", "name", "classes")
                     if known.get(key) != data[key]]
        if different:
            raise ConfigError(f"{self.path} was made from another data set, {known.get('name')} in {known.get('root')}: "
                              f"{'; '.join(different)}. Choose another run with name=NAME, or give the data set it was made from")

    def _data(self) -> dict[str, Any] | None:
        """What the folder says of its data set; None where it says nothing sensible."""
        try:
            data = read_json(self.path / RUN)["data"]
        except (ArtifactError, KeyError, TypeError):
            return None
        return data if isinstance(data, dict) and {"kind", "name", "root", "classes"} <= data.keys() else None

    def open(self, data: dict[str, Any]) -> None:
        """Make the folder a run folder of this data set."""
        if self._data() is None:
            write_json(self.path / RUN, {"data": data})

    def begin(self, step: str, folder: Path, identity: dict, damaged: Iterable[str]) -> None:
        """Make `folder` ready for work: as far as it is, without temporary and damaged files."""
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary(folder)
            for name in damaged:
                if name != INDEX:   # what can be read of it still counts
                    (folder / name).unlink(missing_ok=True)
        if folder != self.result(step):
            write_json(folder / WORK, {"step": step, "identity": identity})

    def share(self, step: str, folder: Path, identity: dict) -> None:
        """Make `folder` ready for work on one shard, while other processes work there too."""
        if folder != self.result(step) and self.begun(folder) != identity:
            write_json(folder / WORK, {"step": step, "identity": identity})

    def finish(self, step: str, folder: Path, manifest: dict) -> None:
        """Make the work in `folder` the result of `step`; an older result goes only now."""
        for name in [WORK, FAILED, *(name for name in file_sizes(folder) if name.endswith(DAMAGED))]:
            (folder / name).unlink(missing_ok=True)
        write_json(folder / MANIFEST, {**manifest, "files": _other_files(folder)})
        result = self.result(step)
        if folder == result:
            return
        replaced = self.path / f"{step}.replaced"
        with storage(result):
            shutil.rmtree(replaced, ignore_errors=True)
            if result.exists():
                os.rename(result, replaced)
            os.rename(folder, result)
        shutil.rmtree(replaced, ignore_errors=True)

    def recover(self, steps: Iterable[str]) -> None:
        """Complete every `finish` that was interrupted between its two renamings, but of steps that others make now."""
        busy = {step for claim in self.claims.living() if claim.owner != Owner.me() for step, _, _ in claim.makes}
        for step in steps:
            if step in busy:
                continue
            complete = [folder for folder in self.partials(step) if (folder / MANIFEST).exists()]
            if complete and not self.result(step).exists():
                with storage(self.path):
                    os.rename(complete[0], self.result(step))
            if self.result(step).exists():
                shutil.rmtree(self.path / f"{step}.replaced", ignore_errors=True)


def _other_files(folder: Path) -> dict[str, list[int]]:
    """[size, checksum] of every file that no journal line stands for, packs neither, by name."""
    names = set(file_sizes(folder)) - {MANIFEST, STATE}
    names.difference_update(kept_in(folder))
    return {name: file_sum(folder / name) for name in sorted(names)}
