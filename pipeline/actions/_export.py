"""The target folder, shared by the export actions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runfolder.folder import RunFolder
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.files import user_path


@dataclass
class Settings:
    export_to: str | None        # the folder to write to


def export_target(config: Any, dataset: Dataset, folder: RunFolder, action: str) -> Path:
    """The folder `export_to`. Raises ConfigError if it is not set, is the data set or is inside the run."""
    if not config.export_to:
        raise ConfigError(f"action={action} needs a target folder: set export_to=DIR")
    target = user_path(config.export_to)
    if target.resolve() == dataset.root.resolve() or folder.path.resolve() in (target.resolve(), *target.resolve().parents):
        raise ConfigError(f"export_to={target} is the data set or the run itself. Choose another folder")
    return target
