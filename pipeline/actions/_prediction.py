"""The maps and the mask of a single image outside the data set, by the steps of a finished run.

The steps run in a temporary folder, on a data set of this one image. So the prediction for an image of the run's own list equals
the result in the run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.actions._finished import FinishedSteps
from pipeline.order import BY_NAME, main_masks
from steps.runtime.artifacts import Labels, Maps, write_array, write_json, write_label
from steps.runtime.context import Runtime, StepContext
from steps.runtime.inference import ImagesFailed, failures, with_fallback
from steps.step import IMAGES, TRAINING
from wsss.data.dataset import Dataset
from wsss.data.images import as_rgb
from wsss.errors import ArtifactError, WsssError
from wsss.families import FAMILIES, load_method
from wsss.files import user_path
from wsss.overlays import overlay_map, overlay_mask, write_picture
from wsss.text import safe_names

ID = "image"   # of the only image in the data set
RECORD = "prediction.json"


@dataclass(frozen=True)
class Prediction:
    """The results for one image, of the steps that the run has."""

    image: np.ndarray = field(repr=False)               # (H, W, 3) uint8 RGB, as shown
    classes: tuple[str, ...]                            # K names, in the order of the maps
    probabilities: dict[str, float]                     # of every class of the run, from the classifier
    maps: dict[str, np.ndarray] = field(repr=False)     # (K, H, W) float32 in [0, 1], by the step that made them; "walk": the
    #                                                     walked maps, divided by their common maximum, if there is a walk
    #                                                     (walk_STEP if several steps have one)
    mask: np.ndarray | None = field(repr=False)         # (H, W) uint8: 0 background, i + 1 for class i of the run; of the
    #                                                     segmentation network, if the run has one
    threshold: dict[str, Any] | None                    # how the mask was made: the background threshold, its source, ...


def predicted_steps(finished: FinishedSteps) -> list[str]:
    """The steps that run on the image: those that make maps or masks, and the steps of images that they read.

    A step is left out if the run lacks what it reads. So are scores, and results that were not computed from the images: they
    were imported, or are of a step that reads no other, or of a method with files of its own for each image of the run.
    """
    made: list[str] = []
    for name, manifest in finished.manifests.items():
        read = {source for names in manifest["sources"].values() for source in names}
        known = {source for source in finished.manifests if source in made or BY_NAME[source].KIND == TRAINING}
        if BY_NAME[name].KIND == IMAGES and read and read <= known and not _reads_own_files(manifest):
            made.append(name)
    wanted: set[str] = set()
    for name in reversed(made):
        if name in wanted or BY_NAME[name].MAPS or BY_NAME[name].MASKS:
            wanted |= {name, *(source for names in finished.sources(name).values() for source in names)}
    return [name for name in made if name in wanted]


def _reads_own_files(manifest: Mapping[str, Any]) -> bool:
    return any(load_method(family, manifest["identity"][family]["method"]).own_files
               for family in manifest["identity"].keys() & FAMILIES)


def classifier_of(finished: FinishedSteps, steps: Sequence[str]) -> str | None:
    """The training whose probabilities say which classes an image has: the first that `steps` read, or else the last of the run,
    which makes its maps.

    None if there is none.
    """
    read = [source for name in steps for names in finished.sources(name).values() for source in names]
    return next((name for name in (*read, *reversed(finished.manifests)) if BY_NAME[name].classify), None)


def predict(finished: FinishedSteps, steps: Sequence[str], classifier: str,
            image: str | Path | Image.Image | np.ndarray, names: Sequence[str], class_threshold: float,
            runtime: Runtime) -> Prediction:
    """Run `steps` on an image, as `pipeline.actions.predict.do` takes it.

    `names` of the classes in it; if empty, those with a probability of the step `classifier` above `class_threshold`.

    Raises
    ------
    DataError
        if the image cannot be read.
    WsssError
        if it is too large for the memory.
    """
    data = finished.manifests[steps[0]]["identity"]["data"]
    array = as_rgb(image, data.get("range"), finished.max_pixels)
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(image, (str, Path)):
            image_file = user_path(image)
        else:
            image_file = Path(temporary, "given.png")   # the steps read files
            Image.fromarray(array).save(image_file, compress_level=1)
        work = _Work(finished, image_file, Path(temporary), data, runtime)
        known, probabilities = work.data["classes"], work.probabilities(classifier)
        likely = np.flatnonzero(probabilities > class_threshold).tolist()
        classes = sorted({known.index(name) for name in names}) if names else likely
        if not classes:
            best = int(probabilities.argmax())
            runtime.warn(f"{image_file}: no class has a probability above class_threshold={class_threshold:g} (the highest: "
                         f"{known[best]}, {probabilities[best]:.2f}), so there are no maps, and a mask that is made from maps is "
                         "background. Lower it, or set classes=[...]")
        maps, mask, threshold = work.results(steps, tuple(classes))
    return Prediction(array, tuple(known[i] for i in classes),
                      {name: round(float(p), 4) for name, p in zip(known, probabilities)}, maps, mask, threshold)


class _Work:
    """Runs the steps on one image; `data`: the classes and the image size that the steps were made with."""

    def __init__(self, finished: FinishedSteps, image_file: Path, folder: Path, data: dict[str, Any], runtime: Runtime):
        self.finished, self.image_file, self.folder, self.data, self.runtime = finished, image_file, folder, data, runtime

    def probabilities(self, classifier: str) -> np.ndarray:
        """The probabilities (C,) of all classes, by a finished training."""
        context = self.finished.context(classifier, self._dataset(()), self._lists(classifier), self.runtime,
                                        {"classifier": (classifier,)})
        return BY_NAME[classifier].classify(context, ID)

    def results(self, steps: Sequence[str], classes: tuple[int, ...]) -> tuple[dict[str, np.ndarray], np.ndarray | None, Any]:
        """The maps (K, H, W), and the mask (H, W) of the step `main_masks` and how it was made."""
        dataset, mask, threshold, masking = self._dataset(classes), None, None, main_masks(steps)
        size, found = dataset.size(ID), []   # of maps: (name, step, maps)
        for name in steps:
            context = self._context(name, dataset)
            result, row = self._run(context), BY_NAME[name]
            if "" in row.MAPS:
                maps = Maps(context.folder).at(ID, size, self.runtime.device).cpu().numpy()
                found.append((name, name, maps))
            found += [(kind, name, maps) for kind, maps in row.soft(context, ID).items()]
            if name == masking:
                mask = Labels(context.folder, len(dataset.classes))(ID, size)
                threshold = {key: value for key, value in result.items() if not isinstance(value, (list, dict))}
        times = Counter(kind for kind, _, _ in found)
        named = {kind if times[kind] == 1 or kind == name else f"{kind}_{name}": maps for kind, name, maps in found}
        return named, mask, threshold

    def _run(self, context: StepContext) -> dict[str, Any]:
        """Run one step with the choices of the run, which are in the files that all images need."""
        row = BY_NAME[context.name]
        context.folder.mkdir()
        for file in row.COMMON:
            if not (source := self.finished.folder.result(context.name) / file).exists():
                raise ArtifactError(f"{source} does not exist. Run the step {context.name} first")
            shutil.copyfile(source, context.folder / file)
        try:
            return with_fallback(row.run, context)
        except ImagesFailed as error:
            raise WsssError(f"{self.image_file}: {context.name} failed ({failures(context.folder)[ID]}). Use a smaller image, or "
                            "fix the cause") from error

    def _context(self, name: str, dataset: Dataset) -> StepContext:
        return self.finished.context(name, dataset, self._lists(name), self.runtime, self.finished.sources(name),
                                     self.folder / name, self._place)

    def _place(self, name: str) -> Path | None:
        return self.finished.place(name) if BY_NAME[name].KIND == TRAINING else self.folder / name

    def _lists(self, name: str) -> dict[str, tuple[str, ...]]:
        """The image as "ids"; nothing is chosen or clustered again."""
        return {**dict.fromkeys(self.finished.manifests[name]["lists"], ()), "ids": (ID,)}

    def _dataset(self, classes: tuple[int, ...]) -> Dataset:
        return Dataset(name="image", root=self.image_file.parent, classes=tuple(self.data["classes"]),
                       lists={"train": (ID,), "val": (), "all": (ID,)}, labels={ID: classes},
                       image_files={ID: self.image_file.name}, max_side=self.data["max_side"], min_side=self.data.get("min_side"),
                       levels=self.data.get("range"), max_pixels=self.finished.max_pixels)


def write_prediction(prediction: Prediction, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write NAME_CLASS.png (the map on the image) and NAME.npy for all maps, mask.png, mask_overlay.png, mask.npy, and
    prediction.json, which includes `facts`; its "pictures" has the classes by their part of the file names. It is written last:
    if it exists, the folder is complete.
    """
    in_names = safe_names(prediction.classes)
    arrays = {**prediction.maps, **({} if prediction.mask is None else {"mask": prediction.mask})}
    for name, maps in prediction.maps.items():
        for in_name, values in zip(in_names, maps):
            write_picture(folder / f"{name}_{in_name}.png", overlay_map(prediction.image, values))
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", array)
    if prediction.mask is not None:
        write_label(folder / "mask.png", prediction.mask)
        write_picture(folder / "mask_overlay.png", overlay_mask(prediction.image, prediction.mask))
    write_json(folder / RECORD, {**facts, "classes": list(prediction.classes), "probabilities": prediction.probabilities,
                                 "threshold": prediction.threshold, "pictures": dict(zip(in_names, prediction.classes)),
                                 "arrays": {name: list(array.shape) for name, array in arrays.items()}})
