"""`action=predict`: what a finished run makes of any image. The run's own manifests say how it was made."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import require_finished
from steps.parts.prediction import RECORD, FinishedRun
from steps.parts.refiner import Refiner
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError
from wsss.files import storage

NEEDED = ("train_cam", "make_cam")
STEPS = (*NEEDED, "make_lpcam", "train_irn", "make_sem_seg_labels")
FOLDER = "predictions"


def finished_run(config: Any, folder: RunFolder) -> FinishedRun:
    """The steps of a run that a prediction goes through, each with the settings it was made with.

    Settings that a step has got since it was made are those of `config`.

    Raises
    ------
    ConfigError
        when the run has no finished classifier or no CAMs.
    """
    require_finished(folder, NEEDED, "predict")
    manifests = {step: manifest for step in STEPS if (manifest := folder.manifest(step))}
    for step in ("make_lpcam", "make_sem_seg_labels"):   # what was imported was not made by this run's networks
        if "imported" in manifests.get(step, {"identity": {}})["identity"]:
            del manifests[step]
    seed_maps = seeds_of(manifests.get("make_sem_seg_labels"))
    refined = manifests.get("make_sem_seg_labels", {"result": {}})["result"].get("refiner", "none")
    needed = {"make_lpcam" if seed_maps == "lpcam" else "make_cam", *["train_irn"] * Refiner(refined).walks}
    if not needed <= manifests.keys():
        manifests.pop("make_sem_seg_labels", None)
    data = manifests["make_cam"]["identity"]["data"]
    return FinishedRun(
        folders={step: folder.result(step) for step in manifests},
        settings={step: made_with(getattr(config, step), manifest["settings"]) for step, manifest in manifests.items()},
        precision={step: manifest["precision"] for step, manifest in manifests.items()},
        classes=tuple(data["classes"]), max_side=data["max_side"], min_side=data.get("min_side"), seed_maps=seed_maps)


def seeds_of(manifest: dict[str, Any] | None) -> str:
    """The maps that make_sem_seg_labels spread, by its manifest: "lpcam" or "cam"."""
    return "lpcam" if manifest and "make_lpcam" in manifest["identity"].get("reads", {}) else "cam"


def made_with(settings: Any, recorded: dict[str, Any]) -> Any:
    """The `settings` of a step with the values that stand in its manifest."""
    known = {item.name for item in fields(settings)}
    values = {key: value for key, value in recorded.items() if key in known}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), values))


def class_indices(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """0-based classes by their names. Raises ConfigError for a name that the run does not know."""
    for name in names:
        if name not in classes:
            raise ConfigError(f"classes: the run knows no class {name!r}{did_you_mean(name, classes)} (allowed: "
                              f"{', '.join(classes)})")
    return sorted({classes.index(name) for name in names})


def empty_folder(run: RunFolder, image: Path) -> Path:
    """Where the prediction of an image is written: `predictions/FILE` of the run, without that of an earlier call."""
    folder = run.path / FOLDER / image.name
    if (folder / RECORD).exists():
        with storage(folder):
            shutil.rmtree(folder)
    return folder
