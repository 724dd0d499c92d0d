"""Where a step keeps what it makes of an image: a file each (`artifacts.layout=files`), or in packs (`packed`).

The results are the same bytes, and no fingerprint knows the layout: the journal line of an image says where its files lie, so
one folder may hold both. Steps hand over bytes by name and read through a `Store`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from steps.runtime.journal import Lines, journal_files, last_packed, pack_names
from steps.runtime.packs import PACKS, Member, OpenFiles, Pack, free_name, is_own, pack_end
from wsss.files import write_bytes


class Layout(Enum):
    files = "files"     # a file for each artifact of an image
    packed = "packed"   # a tar for each process that works on a step


@dataclass
class ArtifactSettings:
    """`artifacts.`: the values stand in `conf/config.yaml`."""

    layout: Layout


class Writer(Protocol):
    """Takes the files of one image after the other."""

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        """Keep the files of an image, by their names; what the journal line says of where they lie."""

    def close(self) -> None: ...


class FileWriter:
    """A file each, whole or not at all, flushed to the disk."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, contents: Mapping[str, bytes]) -> dict[str, Any]:
        for name, content in contents.items():
            write_bytes(self.folder / name, content)
        return {"files": {name: [len(content), crc32(content)] for name, content in contents.items()}}

    def close(self) -> None:
        pass


class PackWriter:
    """All into the pack of worker `I-of-N`: where its journal ends, else a new one."""

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
    """What a step has made image by image, in either layout; `index`: the journal line of each image."""

    def __init__(self, folder: Path):
        self.folder, self.index, self._packs = folder, Lines(folder), OpenFiles(folder)

    def file(self, image_id: str, name: str) -> Path | Member:
        """Where a file of an image lies; to be read by `read_bytes` and by the readers of `steps.runtime.artifacts`."""
        return self._packs.of(self.index.get(image_id, {}), name)
