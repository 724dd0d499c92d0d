"""Make the maps and the mask of your own image, `image=FILE`, with a finished run.

The settings come from the run's manifests; the data set is not needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pipeline.cluster.machine import prepare_process
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import reading, require_finished
from steps.parts.refiner import recorded_refiner
from steps.runtime.context import require
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError
from wsss.files import storage, user_path

if TYPE_CHECKING:   # they import torch
    from steps.parts.prediction import FinishedRun, Prediction

NEEDED = ("train_cam", "make_cam")
STEPS = (*NEEDED, "make_lpcam", "train_irn", "make_sem_seg_labels")
FOLDER = "predictions"


@dataclass
class Settings:
    image: str | None            # the image file
    classes: list[str]           # in that image; empty: the classes that the classifier predicts
    class_threshold: float       # a class is predicted if its probability is above this


def check(config: Any) -> None:
    require(config.image is not None, "image", None, "an image file: image=FILE")


def do(pipeline: Any, image: str | Path, classes: Sequence[str] = ()) -> Prediction:
    """CAM, LPCAM, random walk and mask of a JPEG or PNG, from this finished run. Writes nothing.

    `classes` are names; if empty, the classes whose predicted probability is above `class_threshold`.

    Raises ConfigError, DataError if the run, a class or the image does not exist.
    """
    from steps.parts.prediction import predict

    config, warn = pipeline.config, pipeline.console.warning
    require(0 <= config.class_threshold < 1, "class_threshold", config.class_threshold, "a probability in [0, 1)")
    pipeline.require_run()
    finished = finished_run(config, pipeline.folder)
    indices = class_indices(classes, finished.classes) or None
    prepare_process(config.threads, pipeline.device)
    with reading(pipeline.folder, finished.folders, warn):
        return predict(finished, user_path(image), indices, config.class_threshold, pipeline.device, warn)


def run(pipeline: Any) -> int:
    from steps.parts.prediction import RECORD, write_prediction

    config, say, image = pipeline.config, pipeline.console.result, user_path(pipeline.config.image)
    prediction = do(pipeline, image, config.classes)
    folder = empty_folder(pipeline.folder, image, RECORD)
    write_prediction(prediction, folder, {
        "image": str(image.resolve()), "run": str(pipeline.folder.path.resolve()),
        "classes_by": "the command line" if config.classes else f"the classifier, above {config.class_threshold:g}"})
    likely = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:5]
    say(f"classes: {', '.join(prediction.classes) or 'none'} (by the classifier: "
        f"{', '.join(f'{name} {p:.2f}' for name, p in likely)}; class_threshold {config.class_threshold:g})")
    if prediction.mask is None:
        say(f"no mask: {pipeline.folder.path} has no finished make_sem_seg_labels")
    else:
        threshold = prediction.threshold
        say(f"background threshold of the mask: {threshold['threshold']:.2f} ({threshold['source']})")
    say(f"Maps, mask, their pictures and {RECORD} are in {folder}/")
    return 0


def finished_run(config: Any, folder: RunFolder) -> FinishedRun:
    """The steps of a run that a prediction uses, each with its recorded settings.

    Settings that were added to a step later are those of `config`.

    Raises ConfigError if the run has no finished classifier or no CAMs.
    """
    from steps.parts.prediction import FinishedRun

    require_finished(folder, NEEDED, "predict")
    manifests = {step: manifest for step in STEPS if (manifest := folder.manifest(step))}
    for step in ("make_lpcam", "make_sem_seg_labels"):   # imported results were not made by this run's networks
        if "imported" in manifests.get(step, {"identity": {}})["identity"]:
            del manifests[step]
    seed_maps = seeds_of(manifests.get("make_sem_seg_labels"))
    if masks := manifests.get("make_sem_seg_labels"):
        walks = recorded_refiner(masks["result"], folder.result("make_sem_seg_labels")).walks
        if not {"make_lpcam" if seed_maps == "lpcam" else "make_cam", *["train_irn"] * walks} <= manifests.keys():
            del manifests["make_sem_seg_labels"]
    data = manifests["make_cam"]["identity"]["data"]
    return FinishedRun(
        folders={step: folder.result(step) for step in manifests},
        settings={step: made_with(getattr(config, step), manifest["settings"]) for step, manifest in manifests.items()},
        precision={step: manifest["precision"] for step, manifest in manifests.items()},
        classes=tuple(data["classes"]), max_side=data["max_side"], min_side=data.get("min_side"), seed_maps=seed_maps)


def seeds_of(manifest: dict[str, Any] | None) -> str:
    """The seed maps of make_sem_seg_labels, from its manifest: "lpcam" or "cam"."""
    return "lpcam" if manifest and "make_lpcam" in manifest["identity"].get("reads", {}) else "cam"


def made_with(settings: Any, recorded: dict[str, Any]) -> Any:
    """The `settings` of a step with the values of its manifest."""
    known = {item.name for item in fields(settings)}
    values = {key: value for key, value in recorded.items() if key in known}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), values))


def class_indices(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """0-based class indices of names. Raises ConfigError if the run has no such class."""
    for name in names:
        if name not in classes:
            raise ConfigError(f"classes: the run has no class {name!r}{did_you_mean(name, classes)} (allowed: "
                              f"{', '.join(classes)})")
    return sorted({classes.index(name) for name in names})


def empty_folder(run: RunFolder, image: Path, record: str) -> Path:
    """The folder of the prediction of an image, `predictions/FILE` of the run; an earlier prediction is deleted."""
    folder = run.path / FOLDER / image.name
    if (folder / record).exists():
        with storage(folder):
            shutil.rmtree(folder)
    return folder
