"""Segment a folder of photographs without labels, `images=DIR run=NAME out=DIR`; or make all maps of one, `image=FILE`.

The settings come from the manifests of a finished run; its data set is not needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.actions._finished import FinishedSteps
from pipeline.actions._network import NetworkSettings, check_run
from pipeline.cluster.machine import prepared_process
from pipeline.order import BY_NAME
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import reading, require_finished
from pipeline.segmentation import open_network, run_of
from steps.runtime.context import require
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError
from wsss.files import storage, user_path

if TYPE_CHECKING:   # they are slow to import
    import numpy as np
    from PIL import Image

    from pipeline.actions._prediction import Prediction

FOLDER = "predictions"


@dataclass
class Settings(NetworkSettings):
    images: str | None           # a folder of photographs
    image: str | None            # or one image file
    classes: list[str]           # in that image; empty: the classes that the classifier predicts
    class_threshold: float       # a class is predicted if its probability is above this


def check(config: Any) -> None:
    check_run(config)
    if config.images is None:
        require(config.image is not None, "image", None, "an image file: image=FILE; or a folder: images=DIR run=NAME out=DIR")
        require(not user_path(config.image).is_dir(), "image", config.image, "a file; for all images of a folder images=DIR "
                "run=NAME out=DIR")
        require(config.out is None, "out", config.out, "no value with image=FILE, whose results are in the run")
        return
    require(config.image is None, "image", config.image, f"no value with images={config.images}")
    require(config.out is not None, "out", None, "a folder for the masks: out=DIR")
    require(not config.classes, "classes", config.classes, "no value with images=DIR: the network finds the classes")
    require(config.shard is None, "shard", config.shard, "no value with images=DIR: one process segments the folder")


def do(pipeline: Any, image: str | Path | Image.Image | np.ndarray, classes: str | Sequence[str] = ()) -> Prediction:
    """The maps and the mask of one image, from this finished run. Writes nothing.

    `image`: an image file, a PIL image (of both the EXIF orientation is applied), or an array (H, W, 3) uint8 RGB.
    `classes`: a name or several; if empty, the classes whose predicted probability is above `class_threshold`.

    Raises ConfigError, DataError if the run, a class or the image does not exist; ArgumentError for another array or more than 8
    bits per channel.
    """
    from pipeline.actions._prediction import classifier_of, predict, predicted_steps

    config, warn = pipeline.config, pipeline.console.warning
    require(0 <= config.class_threshold < 1, "class_threshold", config.class_threshold, "a probability in [0, 1)")
    finished = FinishedSteps.read(config, run_of(pipeline), BY_NAME)
    steps = predicted_steps(finished)
    classifier = classifier_of(finished, steps)
    _check_steps(finished, classifier, steps)
    known = finished.manifests[steps[0]]["identity"]["data"]["classes"]
    classes = [classes] if isinstance(classes, str) else list(classes)
    for name in classes:
        if name not in known:
            raise ConfigError(f"classes: the run has no class {name!r}{did_you_mean(name, known)} (allowed: {', '.join(known)})")
    read = {classifier, *steps, *(source for name in steps for names in finished.sources(name).values() for source in names)}
    with prepared_process(config.threads, pipeline.device), reading(finished.folder, read, warn):
        return predict(finished, steps, classifier, image, classes, config.class_threshold, pipeline.runtime(warn=warn))


def run(pipeline: Any) -> int:
    return _image(pipeline) if pipeline.config.images is None else _folder(pipeline)


def _folder(pipeline: Any) -> int:
    from pipeline.actions import _folder as folder

    run, console = run_of(pipeline), pipeline.console
    images, out = folder.checked_folders(pipeline.config, run)
    files = folder.find_images(images, console.warning)
    network = open_network(pipeline, run, folder.WORK)
    with folder.opened(out, folder.record_of(network, images, run), console.warning), pipeline.signals():
        console.start(folder.WORK)
        made = folder.segment_folder(network, images, files, out, pipeline.progress(folder.WORK), console.warning)
    console.result(f"{len(files)} photographs, {made} of them segmented now. {folder.MASKS}/, {folder.OVERLAYS}/ and "
                   f"{folder.TABLE} are in {out}/")
    return 0


def _image(pipeline: Any) -> int:
    from pipeline.actions._prediction import RECORD, write_prediction

    config, say, image = pipeline.config, pipeline.console.result, user_path(pipeline.config.image)
    prediction, run = do(pipeline, image, config.classes), run_of(pipeline)
    folder = empty_folder(run, image, RECORD)
    write_prediction(prediction, folder, {
        "image": str(image.resolve()), "run": str(run.path.resolve()),
        "classes_by": "the command line" if config.classes else f"the classifier, above {config.class_threshold:g}"})
    likely = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:5]
    say(f"classes: {', '.join(prediction.classes) or 'none'} (by the classifier: "
        f"{', '.join(f'{name} {p:.2f}' for name, p in likely)}; class_threshold {config.class_threshold:g})")
    if prediction.mask is None:
        makers = ", ".join(row.name for row in BY_NAME.values() if row.MASKS)
        say(f"no mask: {run.path} lacks a finished {makers}, or what it reads")
    elif "threshold" in prediction.threshold:
        say(f"background threshold of the mask: {prediction.threshold['threshold']:.2f} ({prediction.threshold['source']})")
    say(f"Maps, mask, their pictures and {RECORD} are in {folder}/")
    return 0


def _check_steps(finished: FinishedSteps, classifier: str | None, steps: Sequence[str]) -> None:
    """Raise ConfigError if the run has no finished classifier, or no maps that can be made of another image."""
    rows = BY_NAME.values()
    needed = [next(row.name for row in rows if row.classify), next(row.name for row in rows if row.MAPS and row.reads)]
    if classifier is None or not steps:
        require_finished(finished.folder, needed, "predict")
        raise ConfigError(f"action=predict cannot make the maps of {finished.folder.path} for another image: they were imported. "
                          "Choose a run that made them with its own networks")


def empty_folder(run: RunFolder, image: Path, record: str) -> Path:
    """The folder of the prediction of an image, `predictions/FILE` of the run; an earlier prediction is deleted."""
    folder = run.path / FOLDER / image.name
    if (folder / record).exists():
        with storage(folder):
            shutil.rmtree(folder)
    return folder
