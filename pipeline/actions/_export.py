"""What the export actions share: the target folder, and the masks of a finished step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME
from pipeline.plan.lists import dataset_of
from pipeline.plan.plan import survey
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import Labels
from steps.runtime.journal import unfinished
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


def finished_masks(config: Any, dataset: Dataset, folder: RunFolder, command: str, step: str, split: str,
                   ids: tuple[str, ...]) -> Labels:
    """Reads the masks of a step. Raises ConfigError if they are stale, or do not cover the `ids` of the list `split`; names the
    `command` that makes them."""
    title = BY_NAME[step].MASKS[""]
    planned = {planned.name: planned for planned in survey(config, dataset, folder)}.get(step)
    manifest = folder.manifest(step)
    if planned is None or manifest is None or manifest["fingerprint"] != planned.fingerprint:
        why = planned.why if planned and planned.why else "the step is not finished"
        raise ConfigError(f"{folder.path} has no {title} of this configuration ({why}). Make them first: {command}")
    if missing := unfinished(folder.result(step), ids, dataset_of(config, dataset, step)):
        raise ConfigError(f"the {title} cover {len(ids) - len(missing)} of the {len(ids)} ids of the list {split} (first "
                          f"missing: {next(iter(missing))!r}). Make the others first: {command} {step}.split={split}")
    return Labels(folder.result(step), len(dataset.classes))
