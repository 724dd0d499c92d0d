"""The run folder `outputs/NAME`: where a step works, where its result lies, and how the one becomes the other.

A step that is made for the first time, or anew, works in `STEP.partial-FINGERPRINT`, which takes the place of `STEP` when
it is complete: what was finished stays until its replacement is. A step that only lacks some images works in `STEP`.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from steps.artifacts import read_json, write_json
from steps.journal import is_whole, read_journals
from steps.training import STATE
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, WsssError

MANIFEST = "manifest.json"


class RunFolder:
    """Paths and states below `outputs/NAME`."""

    def __init__(self, path: Path):
        self.path = path

    def result(self, step: str) -> Path:
        return self.path / step

    def partial(self, step: str, fingerprint: str) -> Path:
        return self.path / f"{step}.partial-{fingerprint[:12]}"

    def manifest(self, step: str) -> dict | None:
        """The manifest of a finished step; None where there is none.

        Raises
        ------
        ArtifactError
            when it is damaged: it is named and nothing is overwritten.
        """
        path = self.result(step) / MANIFEST
        if not path.exists():
            return None
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not {"fingerprint", "identity", "files"} <= manifest.keys():
            raise ArtifactError(f"{path} is not a manifest of this project. Move the folder {path.parent} away; the next "
                                "run makes the step anew")
        return manifest

    def unfinished(self, folder: Path, ids: tuple[str, ...], dataset: Dataset) -> list[str]:
        """The ids that have no complete artifact in the folder of an "images" step."""
        lines = read_journals(folder) if folder.exists() else {}
        return [image_id for image_id in ids if not is_whole(folder, lines.get(image_id), dataset.digest_of_image(image_id))]

    def has_open_journal(self, step: str) -> bool:
        """Whether a finished step was completed in place and killed before its journal was merged into the index."""
        return any(self.result(step).glob("journal-*-of-*.jsonl"))

    def damaged_files(self, step: str) -> list[str]:
        """The files of a finished step, besides those of single images, that are not there with their recorded sizes.

        The state of a training does not count: it may be deleted once the training is finished.
        """
        folder, files = self.result(step), (self.manifest(step) or {"files": {}})["files"]
        return [name for name, size in files.items() if not (folder / name).exists() or (folder / name).stat().st_size != size]

    def finish(self, step: str, folder: Path, manifest: dict) -> None:
        """Make the work in `folder` the result of `step`; an older result goes only now."""
        write_json(folder / MANIFEST, {**manifest, "files": _other_files(folder)})
        result = self.result(step)
        if folder == result:
            return
        replaced = self.path / f"{step}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if result.exists():
            os.rename(result, replaced)
        os.rename(folder, result)
        shutil.rmtree(replaced, ignore_errors=True)

    def recover(self, steps: Iterable[str]) -> None:
        """Complete every `finish` that was interrupted between its two renamings."""
        for step in steps:
            self._recover(step)

    def _recover(self, step: str) -> None:
        complete = [folder for folder in self.path.glob(f"{step}.partial-*") if (folder / MANIFEST).exists()]
        if complete and not self.result(step).exists():
            os.rename(complete[0], self.result(step))
        if self.result(step).exists():
            shutil.rmtree(self.path / f"{step}.replaced", ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: a second process on the same folder is refused, a dead one leaves no lock behind.

        Raises
        ------
        WsssError
            when another process works in the folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "a+", encoding="utf-8")
        except OSError as error:
            raise WsssError(f"{self.path} cannot be written ({error.strerror}). Choose another place with outputs=DIR") from error
        with file:
            if not _lock(file):
                file.seek(0)
                raise WsssError(f"{self.path} is in use by process {file.read().strip() or '?'}. Wait for it, or choose "
                                "another run with name=NAME")
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield


def _lock(file: IO[str]) -> bool:
    """Take the lock, waiting a little for one whose owner is dead: its loader processes end some seconds after it."""
    for _ in range(80):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            file.seek(0)
            pid, _, node = file.read().strip().partition(" on ")
            if node != os.uname().nodename or Path("/proc", pid).exists():
                return False
            time.sleep(0.1)
    return False


def _other_files(folder: Path) -> dict[str, int]:
    """Name and size of every file that no journal line stands for."""
    journaled = {name for line in read_journals(folder).values() for name in line["files"]}
    return {name: path.stat().st_size for path in sorted(folder.rglob("*"))
            if path.is_file() and (name := path.relative_to(folder).as_posix()) not in {*journaled, MANIFEST, STATE}}


def directory_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
