"""Storage of the artifacts of images: single files (`artifacts.layout=files`), or packs (`packed`).

The contents are the same bytes, and fingerprints do not depend on the layout: the journal line of an image has the place of its
files, so one folder may contain both. Steps write bytes by name with a `Writer` and read through a `Store`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from steps.runtime.journal import Lines, journal_files, last_packed, pack_names
from steps.runtime.packs import PACKS, Member, OpenFiles, Pack, free_name, is_own, pack_end, set_aside
from wsss.errors import ArtifactError
from wsss.files import storage, write_bytes


class Layout(Enum):
    files = "files"     # a file for each artifact of an image
    packed = "packed"   # a tar for each process that works on a step


@dataclass
class ArtifactSettings:
    """`artifacts.`: the values are in `conf/config.yaml`."""

    layout: Layout


class Writer(Protocol):
    """Writes the files of images."""

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        """Write the files of an image, by name; return their place for the journal line."""

    def close(self) -> None: ...


class FileWriter:
    """Writes single files, each whole or not at all, flushed to disk."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        for name, content in contents.items():
            with storage(self.folder / name):
                set_aside(self.folder / name)
            write_bytes(self.folder / name, content)
        return {"files": {name: [len(content), crc32(content)] for name, content in contents.items()}}

    def close(self) -> None:
        pass


class PackWriter:
    """Writes into the pack of worker `I-of-N`, continued where its journal ends, or into a new pack."""

    def __init__(self, folder: Path, journal: Path):
        self.folder, self.journal = folder, journal
        self._pack: Pack | None = None

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        pack = self._pack = self._pack or self._begin()
        files = {name: [len(content), crc32(content), pack.add(name, content)] for name, content in contents.items()}
        return {"files": files, "pack": pack.name}

    def close(self) -> None:
        if self._pack:
            self._pack.close()

    def _begin(self) -> Pack:
        last = last_packed(self.journal)
        if last and is_own(self.folder / last["pack"], pack_end(last)):
            return Pack(self.folder, last["pack"], pack_end(last))
        return Pack(self.folder, free_name(f"{PACKS}/{self.journal.stem}.tar", pack_names(journal_files(self.folder))))


def writer(layout: Layout, folder: Path, journal: Path) -> Writer:
    return PackWriter(folder, journal) if layout is Layout.packed else FileWriter(folder)


class Store:
    """The artifacts of a step's images, in either layout; `index`: the journal line of each image."""

    def __init__(self, folder: Path):
        self.folder, self.index, self._packs = folder, Lines(folder), OpenFiles(folder)

    def checked(self, image_id: str, name: str) -> bytes:
        """The bytes of a file of an image. Raises ArtifactError if they are not those that were written."""
        path, recorded = self.file(image_id, name), self.index[image_id]["files"][name][:2]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror or error}). The same command makes it again") from error
        if [len(content), crc32(content)] != recorded:
            raise ArtifactError(f"{path} is not what was written: size and checksum are {[len(content), crc32(content)]}, not "
                                f"{recorded}. The same command makes it again", damaged=path)
        return content

    def file(self, image_id: str, name: str) -> Path | Member:
        """A file of an image, for `read_bytes` and the readers of `steps.runtime.artifacts`."""
        return self._packs.of(self.index.get(image_id, {}), name)
