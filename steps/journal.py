"""The journal of a step: one line for each finished image, appended when its artifact lies on the disk.

A step that is killed reads its journal and goes on with the ids that are not in it. When all are done, the journals of
all shards are merged into `index.jsonl`, in the order of the step's list and without times, so that an interrupted
and an undisturbed run leave identical bytes. A line has [size, CRC-32] of each file; where they lie in a pack
(`steps.packs`), also the byte at which the file begins, and the pack's name.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steps.packs import PACKS, Sizes, close_pack, pack_end
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError
from wsss.files import replacing, storage

INDEX, JOURNALS = "index.jsonl", "journals"
_TAIL = 2**16   # bytes
WHOLE, MISSING, BROKEN, CHANGED = "whole", "missing", "broken", "changed"


class Journal:
    """The journal of one shard in a step's folder: `journals/I-of-N.jsonl`."""

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)):
        self.folder = folder
        self.path = folder / JOURNALS / f"{shard[0]}-of-{shard[1]}.jsonl"
        with storage(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(self.path)
            self._file = open(self.path, "a", encoding="utf-8")

    def add(self, image_id: str, placed: dict[str, Any], seconds: float, **facts: Any) -> None:
        """Record that the artifacts of `image_id` are complete; `placed`: what `steps.store` says of where they lie."""
        self.append({"id": image_id, **facts, "seconds": round(seconds, 4), **placed})

    def append(self, line: dict) -> None:
        """Add a whole line. Raises StorageError when the disk is full; a torn line does not count."""
        with storage(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:   # what a full disk did not take; `append` has said so
            pass


def file_sum(path: Path) -> list[int]:
    """[size in bytes, CRC-32] of a file."""
    return content_sum(path.read_bytes())


def content_sum(content: bytes) -> list[int]:
    return [len(content), zlib.crc32(content)]


def unfinished(folder: Path, ids: Sequence[str], dataset: Dataset, photographs: bool = True) -> dict[str, str]:
    """The ids that have no complete artifact in the folder of an "images" step, in their order, with the reason.

    "missing": not made yet; "broken": a file is gone, has another size than recorded or was put away as damaged; "changed":
    the photograph or its labels are no longer those it was made from. Without `photographs` these are not read, only labels
    compared.
    Nothing is kept of what is finished: a million images take seconds and little memory.
    """
    found, packed = dict.fromkeys(ids, MISSING), Sizes(folder)
    for line in journal_lines(folder):
        state = _state(line, folder, packed, dataset, photographs)
        if state is WHOLE:
            found.pop(line["id"], None)
        else:
            found[line["id"]] = state
    return {image_id: found[image_id] for image_id in ids if image_id in found} if found else found


def _state(line: dict, folder: Path, packed: Sizes, dataset: Dataset, photographs: bool) -> str:
    image_id = line["id"]
    try:
        if "pack" in line:
            if not packed.hold(line):
                return BROKEN
        else:
            for name, (size, _) in line["files"].items():
                if os.stat(f"{folder}/{name}").st_size != size:
                    return BROKEN
    except OSError:
        return BROKEN
    if line["classes"] != list(dataset.labels.get(image_id, ())):
        return CHANGED
    if photographs and image_id in dataset.image_files and line["source"] != dataset.digest_of_image(image_id):
        return CHANGED
    return WHOLE


def journal_lines(folder: Path) -> Iterator[dict]:
    """The lines of the index and of all journals of a folder; for an id with several lines the last one counts."""
    for path in journal_files(folder):
        yield from complete_lines(path)


def journal_files(folder: Path) -> list[Path]:
    """The index and the journals of a folder, in the order in which they count."""
    return [path for path in (folder / INDEX, *sorted(folder.glob(f"{JOURNALS}/*.jsonl"))) if path.exists()]


def read_journals(folder: Path) -> dict[str, dict]:
    """All finished images of a step's folder: id -> line."""
    return {line["id"]: line for line in journal_lines(folder)}


def merge_journals(folder: Path, ids: Iterable[str]) -> int:
    """Write `index.jsonl` from all journals, `ids` first and in their order; return the number of images in it.

    Packs that the journals name are ended; those that no line names are removed.
    """
    lines: dict[str, str] = {}
    ends: dict[str, int] = {}   # of every pack
    grown: set[str] = set()     # packs that the journals name
    for path in journal_files(folder):
        for line in complete_lines(path):
            if "pack" in line:
                ends[line["pack"]] = max(pack_end(line), ends.get(line["pack"], 0))
                if path.name != INDEX:
                    grown.add(line["pack"])
            line.pop("seconds", None)
            lines[line["id"]] = json.dumps(line, ensure_ascii=False) + "\n"
    for pack in grown:
        close_pack(folder / pack, ends[pack])
    number = len(lines)
    with replacing(folder / INDEX) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines.pop(image_id) for image_id in ids if image_id in lines)
        file.writelines(lines.values())
    shutil.rmtree(folder / JOURNALS, ignore_errors=True)
    for path in folder.glob(f"{PACKS}/*.tar"):
        if f"{PACKS}/{path.name}" not in ends:
            path.unlink()
    return number


def join_divisions(folder: Path, ids: Iterable[str], workers: int) -> None:
    """Before `workers` processes write a journal each: put into the index what another number of them has left.

    Else two journals could have a line of one id, and nothing would say which is the later.
    """
    if any(not path.name.endswith(f"-of-{workers}.jsonl") for path in folder.glob(f"{JOURNALS}/*.jsonl")):
        merge_journals(folder, ids)


def complete_lines(path: Path) -> Iterator[dict]:
    """The lines of a journal; a torn last line (the process was killed while writing it) does not count."""
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith("\n"):
                return
            try:
                line = json.loads(text)
                line["id"], line["source"], line["classes"], line["files"].items()   # noqa: B018
                if "pack" in line:
                    pack_end(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ArtifactError(f"{path}, line {number}, is no journal line ({error!r}). The artifacts beside it are "
                                    "untouched. Move the file away; the same command makes them anew", damaged=path) from error
            yield line


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _TAIL)
            file.seek(start)
            if found := file.read(end - start).rfind(b"\n") + 1:
                end = start + found
                break
            end = start
        if end != size:
            file.truncate(end)
