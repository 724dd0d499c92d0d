"""The journal of a step: one line for each finished image, appended when its artifact lies on the disk.

A step that is killed reads its journal and goes on with the ids that are not in it. When all are done, the journals of
all shards are merged into `index.jsonl`, in the order of the step's list and without times, so that an interrupted
and an undisturbed run leave identical bytes.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsss.errors import ArtifactError
from wsss.files import write_text

INDEX = "index.jsonl"


class Journal:
    """The journal of one shard in a step's folder: `journal-I-of-N.jsonl`."""

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)):
        self.folder = folder
        self.path = folder / f"journal-{shard[0]}-of-{shard[1]}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)
        self._file = open(self.path, "a", encoding="utf-8")

    def add(self, image_id: str, files: Iterable[Path], seconds: float, **facts: Any) -> None:
        """Record that the artifacts `files` of `image_id` are complete."""
        contents = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}
        line = {"id": image_id, **facts, "seconds": round(seconds, 4),
                "files": {name: [len(content), zlib.crc32(content)] for name, content in contents.items()}}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def is_whole(folder: Path, line: dict | None, source: str) -> bool:
    """Whether an image is finished: its files are there with the recorded sizes, made from the image and label `source`."""
    if line is None or line["source"] != source:
        return False
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in line["files"].items())
    except OSError:
        return False


def read_journals(folder: Path) -> dict[str, dict]:
    """All finished images of a step's folder: id -> line, the index first and later lines winning."""
    lines: dict[str, dict] = {}
    for path in [folder / INDEX, *sorted(folder.glob("journal-*-of-*.jsonl"))]:
        if path.exists():
            for line in _complete_lines(path):
                lines[line["id"]] = line
    return lines


def merge_journals(folder: Path, ids: Iterable[str]) -> int:
    """Write `index.jsonl` from all journals, `ids` first and in their order; return the number of images in it."""
    lines = read_journals(folder)
    ordered = [lines.pop(image_id) for image_id in ids if image_id in lines] + list(lines.values())
    for line in ordered:
        line.pop("seconds", None)
    write_text(folder / INDEX, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered))
    for path in folder.glob("journal-*-of-*.jsonl"):
        path.unlink()
    return len(ordered)


def _complete_lines(path: Path) -> list[dict]:
    """The lines of a journal; a torn last line (the process was killed while writing it) does not count."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise ArtifactError(f"{path}: not a journal ({error}). Its artifacts are untouched; move the file away and run "
                            "the step again with force=true to make them anew") from error


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
