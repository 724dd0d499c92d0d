"""The work of `action=features`: the features of the crops of each image, the arrays, the table, the scores of a linear SVM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.actions._crops import BOX, FOUND, FULL, Box, cropped, largest_box, largest_of
from pipeline.actions._finished import FinishedSteps
from pipeline.actions._folder import opened, remove_changed
from pipeline.actions._prediction import classifier_of
from pipeline.cluster.machine import prepared_process
from pipeline.order import BY_NAME
from pipeline.plan.fingerprint import frame_of
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import reading, require_finished
from pipeline.segmentation import run_of
from steps.runtime.artifacts import encode_array, read_array, write_array, write_json
from steps.runtime.context import StepContext, settings_of
from steps.runtime.datasets import open_dataset
from steps.runtime.inference import Made, for_each_image
from steps.runtime.journal import Lines, merge_journals, unfinished
from steps.runtime.networks import feature_function, load_classifier, logit_function
from steps.runtime.schedule import WEIGHTS
from steps.runtime.store import Layout
from wsss.cams.maps import at_size
from wsss.cams.method import multi_scale_maps
from wsss.data.dataset import Dataset
from wsss.data.images import normalise, resize_image, scaled_size
from wsss.errors import ConfigError
from wsss.files import user_path, write_text
from wsss.metrics.linear_svm import svm_score
from wsss.networks.facts import file_sha256
from wsss.text import aligned, csv_text

WORK = "features"   # in messages, and as the name of the work in the claim on `out`
RECORD, TABLE, SVM = "features.json", "features.csv", "svm.json"
TITLES = {FULL: "whole image", BOX: "ground-truth box", FOUND: "box found"}


def features(pipeline: Any) -> int:
    """Make the features of both lists and score the SVM. Raises WsssError, ImagesFailed if some images could not be read."""
    config, console, run = pipeline.config, pipeline.console, run_of(pipeline)
    settings, out = config.features, user_path(config.out)
    if out.resolve() in (run.path.resolve(), *run.path.resolve().parents):
        raise ConfigError(f"out={out} is the folder of the run or holds it ({run.path}). Choose another folder with out=DIR")
    finished = FinishedSteps.read(config, run, BY_NAME)
    trained = classifier_of(finished, ())
    if trained is None:
        require_finished(run, [next(row.name for row in BY_NAME.values() if row.classify)], "features")
    dataset = open_dataset(config.data)
    lists = _lists(dataset, settings)
    with reading(run, {trained}, console.warning):
        context = _context(finished, trained, dataset, out, pipeline)
        maker = FeatureMaker(context, config, finished.manifests[trained]["identity"]["data"])
    with (prepared_process(config.threads, pipeline.device), pipeline.signals(),
          opened(out, _record(maker, finished, trained, run), console.warning, RECORD, WORK)):
        console.start(WORK)
        ids = [image_id for each in lists.values() for image_id in each]
        remove_changed(out)
        if BOX in settings.crops:
            _remove_other_boxes(out, ids, dataset)
        to_do = len(unfinished(out, ids, maker.context.dataset))
        for_each_image(replace(maker.context, lists={"ids": tuple(ids)}), maker)
        merge_journals(out, ids)
        arrays = write_features(out, lists, dataset, maker.classes, settings.crops)
        rows = [_score(crop, arrays[crop], lists, dataset, config) for crop in settings.crops]
        write_json(out / SVM, rows)
    for line in table(rows):
        console.result(line)
    console.result(f"{len(ids)} images, {to_do} of them now. features_CROP.npy, {TABLE} and {SVM} are in {out}/")
    return 0


def _lists(dataset: Dataset, settings: Any) -> dict[str, tuple[str, ...]]:
    """The ids of the list to train on and of that to test on. Raises ConfigError if they cannot be used."""
    found = {"train": dataset.list_ids(settings.train), "test": dataset.list_ids(settings.test)}
    if both := set(found["train"]) & set(found["test"]):
        raise ConfigError(f"features.test={settings.test!r} contains {len(both)} images of features.train={settings.train!r}, on "
                          "which the SVM is trained. Choose lists without common images")
    for name, ids in found.items():
        if unknown := [image_id for image_id in ids if image_id in dataset.unlabelled]:
            raise ConfigError(f"features.{name}={getattr(settings, name)!r} has {len(unknown)} images without labels, for "
                              f"example {unknown[0]!r}, expected labels: the SVM learns them. Choose another list")
        if BOX in settings.crops and not dataset.has_boxes(ids):
            lacking = sum(image_id not in dataset.box_lists for image_id in ids)
            raise ConfigError(f"features.crops contains {BOX}, but {lacking} of the {len(ids)} images of features.{name}="
                              f"{getattr(settings, name)!r} have no ground-truth boxes in {dataset.root}. Add them, or leave out "
                              f"{BOX}")
    return found


def _context(finished: FinishedSteps, trained: str, dataset: Dataset, out: Path, pipeline: Any) -> StepContext:
    """The context that reads the classifier; its data set has the images of this call and the size that the network works on."""
    manifest = finished.manifests[trained]
    data = manifest["identity"]["data"]
    framed = replace(dataset, max_side=data["max_side"], min_side=data.get("min_side"),
                     levels=dataset.levels or data.get("range"))
    runtime = replace(pipeline.runtime(progress=pipeline.progress(WORK), warn=pipeline.console.warning), layout=Layout.files,
                      shard=(0, 1), prepared=False, precision=manifest["precision"])
    return finished.context(trained, framed, {"ids": ()}, runtime, {"classifier": (trained,)}, out)


def _record(maker: FeatureMaker, finished: FinishedSteps, trained: str, run: RunFolder) -> dict[str, Any]:
    """What the features of an image depend on besides the image, and where it is."""
    settings, dataset = maker.settings, maker.context.dataset
    return {"run": str(run.path.resolve()), "data": str(dataset.root.resolve()), "crops": list(settings.crops),
            "size": settings.size,
            **({"share": settings.share, "cam": settings_of(maker.method.facts)} if FOUND in settings.crops else {}),
            "precision": maker.context.runtime.precision, **frame_of(dataset),
            "weights_sha256": file_sha256(finished.folder.result(trained) / WEIGHTS), "classes": list(maker.classes)}


def _remove_other_boxes(out: Path, ids: Sequence[str], dataset: Dataset) -> None:
    """Delete the features of images that had another ground-truth box, so that they are made again."""
    lines = Lines(out)
    for image_id in (image_id for image_id in ids if image_id in lines):
        box = largest_of(dataset.boxes(image_id)[0])
        if lines[image_id]["boxes"].get(BOX) != (None if box is None else list(box)):
            (out / f"images/{image_id}.npy").unlink(missing_ok=True)


class FeatureMaker:
    """Makes the features (crops, D) of one image. `classes`: those of the classifier; `method`: makes the map of a box found."""

    def __init__(self, context: StepContext, config: Any, data: Mapping[str, Any]):
        self.context, self.settings, self.method = context, config.features, config.cam
        self.classes = tuple(data["classes"])
        own = replace(context, dataset=replace(context.dataset, classes=self.classes))
        self.net = load_classifier(own, self.method.gradients and FOUND in self.settings.crops)
        self._features, self._logits = feature_function(context, self.net), logit_function(context, self.net)
        if FOUND in self.settings.crops:
            self.method.check(self.net)

    def __call__(self, image_id: str) -> Made:
        dataset, image = self.context.dataset, self.context.dataset.full_image(image_id)
        boxes: dict[str, Box | None] = {FULL: None}
        facts: dict[str, Any] = {}
        if BOX in self.settings.crops:
            boxes[BOX] = largest_of(dataset.boxes(image_id)[0])
        if FOUND in self.settings.crops:
            facts["found_class"], boxes[FOUND] = self._found(image_id, image.shape[:2])
        long_side = max(dataset.working_size(image_id))
        rows = [self._pooled(self._resized(cropped(image, boxes[crop]), long_side)) for crop in self.settings.crops]
        facts["boxes"] = {crop: box for crop, box in boxes.items() if box is not None}
        return {f"images/{image_id}.npy": encode_array(np.stack(rows))}, facts

    def _resized(self, image: np.ndarray, long_side: int) -> np.ndarray:
        size = self.settings.size
        return resize_image(image, (size, size) if size else scaled_size(image.shape[:2], long_side / max(image.shape[:2])))

    def _pooled(self, image: np.ndarray) -> np.ndarray:
        """The mean (D,) float32 of the features of an image over its cells."""
        pixels = normalise(image, self.context.runtime.device, self.net.backbone.normalisation)
        with torch.inference_mode():
            return self._features(pixels[None]).mean((2, 3))[0].cpu().numpy()

    def _found(self, image_id: str, size: tuple[int, int]) -> tuple[int, Box | None]:
        """The class that the classifier finds most probable, and the box around its map's greatest part, in the image's frame."""
        image, device = self.context.dataset.image(image_id), self.context.runtime.device
        with torch.inference_mode():
            best = int(self._logits(normalise(image, device, self.net.backbone.normalisation)[None])[0].argmax())
        maps = multi_scale_maps(self.method, self.net, self._features, image, [best], [1.0], device,
                                self.net.backbone.normalisation)
        return best, largest_box(at_size(maps[0].float(), size)[0].cpu().numpy(), self.settings.share)


def write_features(out: Path, lists: Mapping[str, Sequence[str]], dataset: Dataset, found_of: Sequence[str],
                   crops: Sequence[str]) -> dict[str, np.ndarray]:
    """Write `features_CROP.npy` and the table of their rows; return the arrays (N, D), first the list to train on.

    `found_of`: the names of the classifier's classes.
    """
    lines = Lines(out)
    sides = [f"{crop}_{side}" for crop in (BOX, FOUND) for side in ("x0", "y0", "x1", "y1")]
    rows: list[Sequence[object]] = [("id", "list", "classes", "found_class", *sides)]
    for name, ids in lists.items():
        for image_id in ids:
            boxes, best = lines[image_id]["boxes"], lines[image_id].get("found_class")
            shown = ";".join(dataset.classes[index] for index in dataset.labels[image_id])
            rows.append((image_id, name, shown, "" if best is None else found_of[best],
                         *(side for crop in (BOX, FOUND) for side in boxes.get(crop, [""] * 4))))
    write_text(out / TABLE, csv_text(rows))
    stacked = np.stack([read_array(out / f"images/{image_id}.npy", WORK) for ids in lists.values() for image_id in ids])
    arrays = {crop: np.ascontiguousarray(stacked[:, number]) for number, crop in enumerate(crops)}
    for crop, array in arrays.items():
        write_array(out / f"features_{crop}.npy", array)
    return arrays


def _score(crop: str, array: np.ndarray, lists: Mapping[str, Sequence[str]], dataset: Dataset, config: Any) -> dict[str, Any]:
    labels = np.stack([dataset.label_vector(image_id) for ids in lists.values() for image_id in ids])
    settings, number = config.features, len(lists["train"])
    found = svm_score(array[:number], labels[:number], array[number:], labels[number:], settings.c, settings.folds, config.seed)
    return {"crop": crop, **found.as_dict(), "train": settings.train, "train_images": number, "test": settings.test,
            "test_images": len(array) - number, "features": array.shape[1], "folds": settings.folds}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores as text, in percent."""
    first = rows[0]
    cells = [(TITLES[row["crop"]], f"{100 * row['score']:.1f}", f"{100 * row['validation']:.1f}", f"{row['c']:g}")
             for row in rows]
    return [f"linear SVM on {first['features']} features: {first['measure']} in percent, trained on {first['train_images']} "
            f"images of {first['train']}, tested on {first['test_images']} of {first['test']}",
            *aligned([("features of", "test", "cross-validation", "C"), *cells])]
