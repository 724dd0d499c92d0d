"""CAM, LPCAM, random walk and mask of a single image outside the data set, with the networks of a finished run.

The steps themselves run in a temporary folder, on a data set of this one image. So the prediction for an image of the
run's own list equals the result in the run.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from steps import make_cam, make_lpcam
from steps.parts.prototypes import FILE
from steps.parts.refiner import recorded_refiner
from steps.parts.refining import Refining
from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.runtime.artifacts import Maps, write_array, write_json, write_label
from steps.runtime.context import StepContext
from steps.runtime.inference import ImagesFailed, failures
from steps.runtime.networks import load_classifier, network_input
from wsss.cams.maps import at_size
from wsss.data.dataset import Dataset
from wsss.data.images import read_image
from wsss.errors import WsssError
from wsss.overlays import overlay_map, overlay_mask, write_picture

ID = "image"   # of the only image in the data set
RECORD = "prediction.json"


@dataclass(frozen=True)
class FinishedRun:
    """The parts of a finished run that a prediction needs: the folder and the settings of each of its steps."""

    folders: Mapping[str, Path]       # step -> folder of its result
    settings: Mapping[str, Any]       # step -> its Settings
    precision: Mapping[str, str]      # step -> "float32" or "bf16"
    classes: tuple[str, ...]
    max_side: int | None
    min_side: int | None
    seed_maps: str                    # "cam" or "lpcam": the maps that are refined


@dataclass(frozen=True)
class Prediction:
    """The results for one image. Maps are None if the run does not have that step."""

    image: np.ndarray = field(repr=False)          # (H, W, 3) uint8 RGB, as shown
    classes: tuple[str, ...]                       # K names, in the order of the maps
    probabilities: dict[str, float]                # of every class of the run, from the classifier
    cam: np.ndarray = field(repr=False)            # (K, H, W) float32, each map in [0, 1]
    lpcam: np.ndarray | None = field(repr=False)   # the same
    walk: np.ndarray | None = field(repr=False)    # (K, H, W) float32 in [0, 1], divided by their common maximum; None: no walk
    mask: np.ndarray | None = field(repr=False)    # (H, W) uint8: 0 background, i + 1 for class i of the run
    threshold: dict[str, Any] | None               # the background threshold of the mask and its source


def predict(run: FinishedRun, image_file: Path, classes: Sequence[int] | None, class_threshold: float, device: torch.device,
            warn: Callable[[str], None] = lambda message: None) -> Prediction:
    """Compute the maps and the mask of a JPEG or PNG.

    `classes` are 0-based; None: those with a probability of the classifier above `class_threshold`.

    Raises
    ------
    DataError
        if the image cannot be read.
    WsssError
        if it is too large for the memory.
    """
    image = read_image(image_file)
    with tempfile.TemporaryDirectory() as temporary:
        work = _Work(run, image_file, Path(temporary), device, warn)
        probabilities = work.probabilities()
        if classes is None:
            classes = np.flatnonzero(probabilities > class_threshold).tolist()
        if not classes:
            best = int(probabilities.argmax())
            warn(f"{image_file}: no class has a probability above class_threshold={class_threshold:g} (the highest: "
                 f"{run.classes[best]}, {probabilities[best]:.2f}), so everything is background. Lower it, or set classes=[...]")
        maps = work.maps(tuple(sorted(classes)))
        walk, mask, chosen = work.mask() if "make_sem_seg_labels" in run.folders else (None, None, None)
    return Prediction(image, tuple(run.classes[i] for i in sorted(classes)),
                      {name: round(float(p), 4) for name, p in zip(run.classes, probabilities)},
                      maps["make_cam"], maps.get("make_lpcam"), walk, mask, chosen)


class _Work:
    """Runs the steps on one image."""

    def __init__(self, run: FinishedRun, image_file: Path, folder: Path, device: torch.device, warn: Callable[[str], None]):
        self.run, self.image_file, self.folder, self.device, self.warn = run, image_file, folder, device, warn
        self.dataset = self._dataset(())

    def probabilities(self) -> np.ndarray:
        """Probabilities (C,) of the classifier for the whole image, as in the validation of train_cam."""
        context = self._context("train_cam", {"train_cam": self.run.folders["train_cam"]})
        classifier = load_classifier(context)
        with torch.inference_mode(), context.runtime.autocast():
            return classifier(network_input(context, classifier, ID)).float().sigmoid()[0].cpu().numpy()

    def maps(self, classes: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The maps (K, H, W) at the size of the image, by step."""
        self.dataset = self._dataset(classes)
        result = {}
        if "make_lpcam" in self.run.folders:
            (self.folder / "make_lpcam").mkdir()
            shutil.copyfile(self.run.folders["make_lpcam"] / FILE, self.folder / "make_lpcam" / FILE)   # instead of clustering
        for step in (make_cam, make_lpcam):
            name = step.__name__.rpartition(".")[2]
            if name not in self.run.folders:
                continue
            try:
                step.run(self._context(name, {"train_cam": self.run.folders["train_cam"], "make_cam": self.folder / "make_cam"}))
            except ImagesFailed as error:
                raise WsssError(f"{self.image_file}: {name} failed ({failures(self.folder / name)[ID]}). Use a smaller image, "
                                "or fix the cause") from error
            maps = Maps(self.folder / name).map(ID, "full", self.device)
            result[name] = at_size(maps, self.dataset.size(ID)).cpu().numpy()
        return result

    def mask(self) -> tuple[np.ndarray | None, np.ndarray, dict[str, Any]]:
        """The walked maps (K, H, W), None if the run's refiner has no walk; the mask (H, W); the refiner, the background
        threshold and its source."""
        networks = {name: self.run.folders[name] for name in ("train_irn",) if name in self.run.folders}
        inputs = {**networks, **{name: self.folder / name for name in ("make_cam", "make_lpcam")}}
        chosen = read_chosen(self.run.folders["make_sem_seg_labels"] / THRESHOLD)
        context, refiner = self._context("make_sem_seg_labels", inputs), recorded_refiner(
            chosen, self.run.folders["make_sem_seg_labels"] / THRESHOLD)
        refining = Refining(replace(context, settings=replace(context.settings, refiner=refiner)))
        mask, kept = refining(ID, refiner, chosen["threshold"])
        walk = refining.walk.soft(kept["walk"], ID, self.dataset.size(ID)).cpu().numpy() if refiner.walks else None
        return walk, mask, {key: chosen[key] for key in ("threshold", "source", "refiner")}

    def _dataset(self, classes: tuple[int, ...]) -> Dataset:
        return Dataset(name="image", root=self.image_file.parent, classes=self.run.classes,
                       lists={"train": (ID,), "val": (), "all": (ID,)}, labels={ID: classes},
                       image_files={ID: self.image_file.name}, max_side=self.run.max_side, min_side=self.run.min_side)

    def _context(self, step: str, inputs: Mapping[str, Path]) -> StepContext:
        return StepContext(settings=self.run.settings[step], dataset=self.dataset, folder=self.folder / step, inputs=inputs,
                           lists={"ids": (ID,), "val": (), "prototypes": ()}, seed_maps=self.run.seed_maps, device=self.device,
                           precision=self.run.precision[step], warn=self.warn)


def write_prediction(prediction: Prediction, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write KIND_CLASS.png (the map on the image) and KIND.npy for each kind of map, mask.png, mask_overlay.png, mask.npy,
    and prediction.json, which includes `facts`. It is written last: if it exists, the folder is complete.
    """
    arrays = {kind: getattr(prediction, kind) for kind in ("cam", "lpcam", "walk", "mask")}
    arrays = {kind: array for kind, array in arrays.items() if array is not None}
    for kind, array in arrays.items():
        if kind != "mask":
            for name, values in zip(prediction.classes, array):
                write_picture(folder / f"{kind}_{_safe(name)}.png", overlay_map(prediction.image, values))
        write_array(folder / f"{kind}.npy", array)
    if prediction.mask is not None:
        write_label(folder / "mask.png", prediction.mask)
        write_picture(folder / "mask_overlay.png", overlay_mask(prediction.image, prediction.mask))
    write_json(folder / RECORD, {**facts, "classes": list(prediction.classes), "probabilities": prediction.probabilities,
                                 "threshold": prediction.threshold,
                                 "arrays": {kind: list(array.shape) for kind, array in arrays.items()}})


def _safe(name: str) -> str:
    """The name of a class as a unique part of a file name: "a/b" is `a%2Fb`."""
    return "".join(character if character.isalnum() else quote(character, safe="") for character in name)
