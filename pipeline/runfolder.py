"""The run folder `outputs/NAME`: where a step works, where its result lies, and how the one becomes the other.

A step that is made for the first time, or anew, works in `STEP.partial-FINGERPRINT`, which takes the place of `STEP` when
it is complete: what was finished stays until its replacement is. A step that only lacks some images works in `STEP`.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steps.artifacts import read_json, write_json
from steps.journal import is_whole, read_journals
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
        if not isinstance(manifest, dict) or not {"fingerprint", "identity"} <= manifest.keys():
            raise ArtifactError(f"{path} is not a manifest of this project. Move the folder {path.parent} away; the next "
                                "run makes the step anew")
        return manifest

    def finished_ids(self, folder: Path) -> set[str]:
        """The ids of an "images" step whose files are all there with their recorded sizes."""
        if not folder.exists():
            return set()
        return {image_id for image_id, line in read_journals(folder).items() if is_whole(folder, line)}

    def finish(self, step: str, folder: Path, manifest: dict) -> None:
        """Make the work in `folder` the result of `step`; an older result goes only now."""
        write_json(folder / MANIFEST, manifest)
        result = self.result(step)
        if folder == result:
            return
        replaced = self.path / f"{step}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if result.exists():
            os.rename(result, replaced)
        os.rename(folder, result)
        shutil.rmtree(replaced, ignore_errors=True)

    def recover(self, step: str) -> None:
        """Complete a `finish` that was interrupted between its two renamings."""
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
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise WsssError(f"{self.path} is in use by process {file.read().strip() or '?'}. Wait for it, or choose "
                                "another run with name=NAME") from error
            file.truncate(0)
            file.write(f"{os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield


def directory_size(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
