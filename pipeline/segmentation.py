"""The trained segmentation network of a run, for photographs that need no labels. From Python: `load_network`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.actions._finished import FinishedSteps, made_with
from pipeline.cluster.machine import prepared_process
from pipeline.order import BY_NAME, segmenting, sources
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import find_run, reading, require_finished
from steps.runtime.context import Runtime, StepContext, require, settings_of
from wsss.data.dataset import Dataset
from wsss.data.images import as_rgb

if TYPE_CHECKING:
    import torch
    from PIL import Image

ROLE = "network"   # of the trained network, in a step that segments images


class SegmentationNetwork:
    """The network of a run with the settings of its masks. A call segments one photograph of any size.

    Attributes
    ----------
    classes
        the names of the C classes: value i of a mask is `classes[i - 1]`, 0 is the background.
    settings
        of the masks: scales, mirror image, CRF, ...
    """

    def __init__(self, context: StepContext, threads: int | None):
        from steps.runtime.networks import in_precision, load_segmenter

        self.context, self.classes, self.settings = context, context.dataset.classes, context.settings
        self._threads, self._prepared = threads, partial(prepared_process, threads, context.runtime.device)
        network = load_segmenter(context)
        self._logits, self._normalisation = in_precision(context, network), network.backbone.normalisation

    def on(self, device: torch.device) -> SegmentationNetwork:
        """This network on a device; itself if it is there."""
        if device == self.context.runtime.device:
            return self
        return SegmentationNetwork(replace(self.context, runtime=replace(self.context.runtime, device=device)), self._threads)

    def __call__(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """The mask (H, W) uint8 of an image, in its size: 0 background, i for `classes[i - 1]`.

        `image`: an image file, a PIL image (of both the EXIF orientation is applied), or an array (H, W, 3) uint8 RGB.

        Raises DataError for a file that cannot be read, ArgumentError for another array or more than 8 bits per channel.
        """
        from wsss.segmenters.inference import segment

        array = as_rgb(image, self.context.dataset.levels, self.context.dataset.max_pixels)
        with self._prepared():
            return segment(self._logits, self.context.dataset.in_working_frame(array), array.shape[:2], self.settings,
                           self.context.runtime.device, self._normalisation)[""]

    def probabilities(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """The probabilities (C + 1, H, W) float32 of the labels, background first, in the size of the image: the mean over the
        scales and, if the settings say so, the mirror images, before the CRF. Of the whole image, so it needs 4 (C + 1) bytes for
        each of its pixels. Raises as a call.
        """
        from wsss.resize import resize
        from wsss.segmenters.inference import probabilities

        array = as_rgb(image, self.context.dataset.levels, self.context.dataset.max_pixels)
        with self._prepared():
            soft = probabilities(self._logits, self.context.dataset.in_working_frame(array), self.settings.scales,
                                 self.settings.flip, self.context.runtime.device, self._normalisation)
            return resize(soft, array.shape[:2]).cpu().numpy()


def load_network(run: str | Path, *overrides: str) -> SegmentationNetwork:
    """Load the trained segmentation network of a run: a run folder, or its name below `outputs`.

    `overrides` as on the command line: `"device=cpu"`, `"threads=4"`, `"outputs=DIR"`, or settings of the step that made the
    masks of the run (`"infer_seg.crf=false"`), which otherwise are those of the run. The masks equal those of `action=predict`
    with the same settings, byte for byte on one kind of device with the same number of threads. Torch's settings, such as the
    number of threads, are changed during a call only.

    Raises
    ------
    ConfigError
        if there is no such run, or it has no trained segmentation network.
    ArtifactError, BusyError
        if the network is damaged, or another process makes it now.
    """
    from pipeline.runner import Pipeline

    pipeline = Pipeline.compose(*overrides)
    return open_network(pipeline, _named(pipeline.config, str(run)), "predict")


def run_of(pipeline: Any) -> RunFolder:
    """The folder of the run that `run=` names or, without it, `name=`. Raises ConfigError if there is no such run."""
    config = pipeline.config
    if config.run is None:
        pipeline.require_run()
        return pipeline.folder
    return _named(config, config.run)


def _named(config: Any, run: str) -> RunFolder:
    folder = RunFolder(find_run("run", run, config.outputs, finished=True), inside=True)   # it may be of a sweep
    folder.check_format()
    return folder


def open_network(pipeline: Any, folder: RunFolder, action: str) -> SegmentationNetwork:
    """The trained network of a run, ready to segment. Raises as `load_network`."""
    threads = pipeline.config.threads
    finished, name = finished_network(pipeline.config, folder, action)
    with (prepared_process(threads, pipeline.device),
          reading(folder, {name, training_of(finished, name)}, pipeline.console.warning)):
        return SegmentationNetwork(network_context(finished, name, pipeline.overrides, pipeline.runtime()), threads)


def finished_network(config: Any, folder: RunFolder, action: str) -> tuple[FinishedSteps, str]:
    """The finished steps of a run, and its step that segments images; the step itself need not be finished.

    Of several the first whose network is trained: others are compared with it. Raises ConfigError if no network is trained.
    """
    finished, names = FinishedSteps.read(config, folder, BY_NAME), segmenting(BY_NAME)
    trained = [name for name in names if training_of(finished, name) in finished.manifests]
    if not trained:
        require_finished(folder, [training_of(finished, name) for name in names], action)
    return finished, trained[0]


def training_of(finished: FinishedSteps, name: str) -> str:
    """The step that trains the network that a step reads."""
    return _read(finished, name)[ROLE][0]


def _read(finished: FinishedSteps, name: str) -> dict[str, tuple[str, ...]]:
    return finished.sources(name) if name in finished.manifests else sources(finished.config, name)


def network_context(finished: FinishedSteps, name: str, overrides: tuple[str, ...], runtime: Runtime) -> StepContext:
    """The context of the step `name` on a data set without images: the classes and the limits of the size are those that its
    network was trained with, the settings those of its result, or `overrides` of the command line."""
    trained = finished.manifests[training_of(finished, name)]
    data = trained["identity"]["data"]
    dataset = Dataset(name="images", root=Path(), classes=tuple(data["classes"]), lists={"train": (), "val": (), "all": ()},
                      labels={}, image_files={}, max_side=data["max_side"], min_side=data.get("min_side"),
                      levels=data.get("range"), max_pixels=finished.max_pixels)
    runtime = replace(runtime, precision=trained["precision"])   # unless the step has one of its own
    context = finished.context(name, dataset, {"ids": ()}, runtime, _read(finished, name))
    words = [word.lstrip("+").partition("=")[0].split(".") for word in overrides]
    chosen = settings_of(getattr(finished.config, name))
    changed = {key: chosen[key] for step, key, *_ in (word for word in words if len(word) > 1) if step == name}
    require("split" not in changed, f"{name}.split", changed.get("split"), "no value: there is no list, only photographs")
    return replace(context, settings=made_with(context.settings, changed))
