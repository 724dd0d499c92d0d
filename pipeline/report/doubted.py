"""The images whose labels action=check_labels doubts most, with a picture of each."""

import csv
from pathlib import Path
from typing import Any

from pipeline.actions._labels import FOLDER, HEADS, SHOWN, TABLE
from pipeline.report import thumbnails
from pipeline.runfolder.recorded import RecordedRun
from wsss.errors import ArtifactError

SIDE = 220   # pixels of the longer side of a picture


def table_path(run_folder: Path) -> Path:
    return run_folder / FOLDER / TABLE


def doubted(run: RecordedRun) -> list[dict[str, Any]]:
    """The first rows of the table, each with "picture"; none without a table. Images that are not there any more are left out."""
    path = table_path(run.folder.path)
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if set(HEADS) <= row.keys() and None not in row.values()]
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Make it again with action={FOLDER}, or move it away") from error
    rows = [row for row in rows if row["image"] in run.dataset.image_files][:SHOWN]
    return [{**row, "picture": thumbnails.image(run.dataset.image(row["image"]), SIDE)} for row in rows]
