"""The journal of a step: one line for each finished image, appended when its artifact is on disk.

A restarted step reads its journal and continues with the ids that are not in it. When all are done, the journals of
all shards are merged into `index.jsonl`, in the order of the step's list and without times, so that an interrupted
and an uninterrupted run leave identical bytes. A line has [size, CRC-32] of each file; for files in a pack
(`steps.runtime.packs`) also the byte at which the file begins, and the name of the pack. It ends with the CRC-32 of the rest of
it, "crc", which lines of older versions do not have.

A damaged line is skipped, so its image is made again; `problems` collects a message for each such line.
"""

import json
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from steps.runtime.packs import PACKS, OpenFiles, Sizes, close_pack, discard, pack_end, set_aside
from wsss.data.dataset import Dataset
from wsss.files import are_plain_names, replacing, storage, sync_folder, without_links
from wsss.reading import parse_json

INDEX, JOURNALS = "index.jsonl", "journals"
TAKEN = "taken"   # the journal of results reused from another run
_TAIL = 2**16     # bytes
_MOST = 2**62     # size of a file
_SECONDS, _PACK = re.compile(r', "seconds": [^,}]*'), re.compile(rb'"pack": "(packs/[^"\\/]+\.tar)"')
_CRC, _LAST_NUMBER = ', "crc": ', re.compile(r', "[^"]*": \d+}\s*$')
_DECODE = json.JSONDecoder().raw_decode
WHOLE, MISSING, BROKEN, CHANGED, CORRECTED, LACKING = "whole", "missing", "broken", "changed", "corrected", "lacking"


class Journal:
    """The journal of one shard in a step's folder: `journals/I-of-N.jsonl`, or `journals/NAME.jsonl`."""

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1), name: str = ""):
        self.path = folder / JOURNALS / f"{name or f'{shard[0]}-of-{shard[1]}'}.jsonl"
        with storage(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            set_aside(self.path)
            _drop_torn_line(self.path)
            self._file = open(self.path, "a", encoding="utf-8", opener=without_links)

    def add(self, image_id: str, placed: dict[str, Any], seconds: float, **facts: Any) -> None:
        """Record that the artifacts of `image_id` are complete; `placed`: their place, from `Writer.write`."""
        self.append({"id": image_id, **facts, "seconds": round(seconds, 4), **placed})

    def append(self, line: dict) -> None:
        """Append a line. Raises StorageError if the disk is full; an incomplete line is skipped by readers."""
        text = json.dumps({key: value for key, value in line.items() if key != "crc"}, ensure_ascii=False)
        with storage(self.path):
            self._file.write(f"{text[:-1]}{_CRC}{_crc(text)}}}\n")
            self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:   # the disk is full; `append` has raised already
            pass


def file_sum(path: Path) -> list[int]:
    """[size in bytes, CRC-32] of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return [size, checksum]


def unfinished(folder: Path, ids: Sequence[str], dataset: Dataset, read_images: bool = True,
               problems: list[str] | None = None, added: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The ids without a complete artifact in the folder of an "images" step, in order, with the reason.

    "missing": not made yet; "broken": a file is missing, has another size than recorded or was renamed as damaged; "changed":
    the image or its labels have changed since; "corrected": its mask that was corrected by hand (compared with what the line
    says); "lacking": only kinds of results of `added` (`steps.step.added`) are missing or were made otherwise. Without
    `read_images` only the labels are compared, and whether there is such a mask.
    Finished images are not kept in memory: a million images take seconds and little memory.
    """
    found, packed = dict.fromkeys(ids, MISSING), Sizes(folder)
    for line in journal_lines(folder, problems):
        state = _state(line, folder, packed, dataset, read_images)
        if state is WHOLE and added and lacking(line, added):
            state = LACKING
        if state is WHOLE:
            found.pop(line["id"], None)
        else:
            found[line["id"]] = state
    return {image_id: found[image_id] for image_id in ids if image_id in found} if found else found


def lacking(line: dict, added: Mapping[str, Any]) -> list[str]:
    """The kinds of results of `added` (`steps.step.added`) that an image lacks, or that were made otherwise."""
    known = line.get("added", {})
    return [kind for kind, by in added.items() if known.get(kind, {}).get("by") != by]


def _state(line: dict, folder: Path, packed: Sizes, dataset: Dataset, read_images: bool) -> str:
    image_id = line["id"]
    try:
        if "pack" in line:
            if not packed.hold(line):
                return BROKEN
        else:
            for name, (size, _) in line["files"].items():
                found = os.stat(f"{folder}/{name}")
                if found.st_size != size or not stat.S_ISREG(found.st_mode):
                    return BROKEN
    except OSError:
        return BROKEN
    if line["classes"] != list(dataset.labels.get(image_id, ())):
        return CHANGED
    if ("correction" in line) != (image_id in dataset.corrections):
        return CORRECTED
    if read_images and "correction" in line and line["correction"] != dataset.digest_of_correction(image_id):
        return CORRECTED
    if read_images and image_id in dataset.image_files and line["source"] != dataset.digest_of_image(image_id):
        return CHANGED
    return WHOLE


def journal_lines(folder: Path, problems: list[str] | None = None) -> Iterator[dict]:
    """The lines of the index and of all journals of a folder; of several lines with the same id the last is valid."""
    for path in journal_files(folder):
        yield from complete_lines(path, problems)


def journal_files(folder: Path) -> list[Path]:
    """The index and the journals of a folder in order of increasing priority: results reused from other runs first."""
    journals = sorted(folder.glob(f"{JOURNALS}/*.jsonl"), key=lambda path: (path.stem != TAKEN, path.name))
    return [path for path in (folder / INDEX, *journals) if path.is_file()]


class Lines(Mapping[str, dict]):
    """The line of each image of a step's folder, by id. Only its position is in memory, about 0.13 kB per id."""

    def __init__(self, folder: Path):
        self._files, self._names, self._places = OpenFiles(folder), [], {}   # a place: file, offset and length in one number
        for index, path in enumerate(journal_files(folder)):
            self._names.append(str(path.relative_to(folder)))
            self._files.read(self._names[-1], 0, 0)   # open it now, because it may be replaced later
            for line, offset, length in _placed_lines(path):
                self._places[line["id"]] = (index << 48 | offset) << 32 | length

    def __getitem__(self, image_id: str) -> dict:
        return parse_json(self._text(self._places[image_id]))

    def take(self, image_id: str) -> str:
        """Remove an image and return its line as written in the file."""
        return self._text(self._places.pop(image_id))

    def _text(self, place: int) -> str:
        place, length = place >> 32, place & 0xFFFFFFFF
        return self._files.read(self._names[place >> 48], place & (1 << 48) - 1, length).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places


def merge_journals(folder: Path, ids: Iterable[str]) -> int:
    """Write `index.jsonl` from all journals, `ids` first and in order; return the number of images in it.

    Packs named in the journals are completed; those that the index does not name any more are removed.
    """
    lines = Lines(folder)
    number = len(lines)
    for path in folder.glob(f"{JOURNALS}/*-of-*.jsonl"):
        if last := last_packed(path):
            close_pack(folder / last["pack"], pack_end(last))
    with replacing(folder / INDEX) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for image_id in chain(ids, [*lines]):
            if image_id in lines:
                file.write(_SECONDS.sub("", lines.take(image_id), count=1))
    with storage(folder):
        sync_folder(folder)   # what the index names must be there before the journals are gone
    shutil.rmtree(folder / JOURNALS, ignore_errors=True)
    packs = pack_names([folder / INDEX])
    for path in folder.glob(f"{PACKS}/*.tar") if not (folder / PACKS).is_symlink() else ():
        if f"{PACKS}/{path.name}" not in packs:
            discard(path)
    return number


def pack_names(paths: Iterable[Path]) -> set[str]:
    """The packs named in journals; the lines are not parsed further."""
    found: set[bytes] = set()
    for path in paths:
        if path.exists():
            with open(path, "rb") as file:
                found.update(match[1] for text in file if (match := _PACK.search(text)))
    return {name.decode("utf-8", "replace") for name in found}


def join_divisions(folder: Path, ids: Iterable[str], workers: int) -> None:
    """Merge the journals of another number of processes into the index, before `workers` processes write a journal each.

    Otherwise two journals could contain the same id, with no way to determine the later line.
    """
    if any(not path.name.endswith(f"-of-{workers}.jsonl") for path in folder.glob(f"{JOURNALS}/*.jsonl")):
        merge_journals(folder, ids)


def complete_lines(path: Path, problems: list[str] | None = None) -> Iterator[dict]:
    """The lines of a journal; an incomplete last line (the process was killed while writing it) is skipped."""
    return (line for line, _, _ in _placed_lines(path, problems))


def _placed_lines(path: Path, problems: list[str] | None = None) -> Iterator[tuple[dict, int, int]]:
    """The lines of a journal with their offsets and lengths in bytes."""
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):   # of a journal the process was killed; an index was written as a whole
                if problems is not None and path.name == INDEX:
                    problems.append(_problem(path, number))
                return
            if line := _parsed(raw):
                yield line, offset, len(raw)
            elif problems is not None:
                problems.append(_problem(path, number))
            offset += len(raw)


def _problem(path: Path, number: int) -> str:
    return f"{path}, line {number}, is not a journal line: the same command makes its image again"


def _parsed(raw: bytes) -> dict | None:
    """A journal line; None if it is invalid. Names and sizes are checked, because the run may be another user's."""
    try:
        text = raw.decode("utf-8", "replace")
        line, end = _DECODE(text)
        files, pack = line["files"], [line["pack"]] if "pack" in line else []
        valid = (not text[end:].strip() and _fits(text) and are_plain_names([line["id"], *files, *pack])
                 and pack == [name.decode() for name in _PACK.findall(raw)]
                 and isinstance(line["source"], str) and isinstance(line["classes"], list)
                 and all(isinstance(facts, dict) for facts in line.get("added", {}).values()))
        for place in files.values():   # size, checksum and, in a pack, where it begins
            valid = valid and [*map(type, place)] == [int] * (2 + len(pack)) and 0 <= min(place) <= max(place) < _MOST
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return line if valid else None


def _fits(text: str) -> bool:
    """Whether the rest of a line has the CRC-32 that it ends with. A line without one is of an older version."""
    body, found, crc = text.rpartition(_CRC)
    return int(crc.strip().removesuffix("}")) == _crc(body + "}") if found else not _LAST_NUMBER.search(text)


def _crc(text: str) -> int:
    """Of a line, as it will be in the index: without the time."""
    return zlib.crc32(_SECONDS.sub("", text, count=1).encode())


def kept_in(folder: Path) -> Iterator[str]:
    """Every file named in the lines of a folder: packs, and single files of images."""
    for path in journal_files(folder):
        yield from pack_names([path])
        yield from (name for line in complete_lines(path) if "pack" not in line for name in line["files"])


def last_packed(path: Path) -> dict | None:
    """The last line of a journal that names a pack."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        tail = [text for text in file.read().split(b"\n")[1:-1] if _PACK.search(text)]
    if last := next(filter(None, map(_parsed, reversed(tail))), None):
        return last
    for line in complete_lines(path):
        last = line if "pack" in line else last
    return last


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "r+b", opener=without_links) as file:
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
