"""The instances of an image: found with IRN and the walk, or read from the files of the step that found them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.runtime.artifacts import File, Maps, read_arrays
from steps.runtime.context import StepContext
from steps.runtime.networks import load_irn, network_input
from steps.runtime.store import Store
from wsss.errors import ArtifactError
from wsss.finite import require_finite
from wsss.refinement.instances import (
    Detections,
    detect_instances,
    group_pixels,
    nothing_detected,
    refine_centroids,
    walk_instances,
)


class Instances:
    """Finds the instances of images."""

    def __init__(self, context: StepContext):
        self.context, self.maps, self.irn = context, Maps(context.input("seeds")), load_irn(context)

    def __call__(self, image_id: str) -> Detections:
        context, settings, classes = self.context, self.context.settings, self.maps.classes(image_id)
        facts, size = self.maps.facts(image_id), context.dataset.size(image_id)
        if not classes:
            return nothing_detected(size)
        with torch.inference_mode():
            batch = network_input(context, self.irn, image_id, flip=True)   # (2, 3, H, W)
            with context.runtime.autocast():
                edge, displacement = self.irn.edge_and_displacement(batch, settings.pad_to or 0)
            require_finite(torch.cat([edge.flatten(), displacement.flatten()]), "the values of IRN's edge map and displacement")
            field = displacement.float().cpu().numpy()   # (2, h, w)
            groups = group_pixels(refine_centroids(field, settings.centroid_iterations), field, settings.group_threshold)
            seeds = self.maps.at(image_id, "strided", context.runtime.device)   # (C, h, w)
            strength, owner = walk_instances(
                seeds, groups, edge.float(), (facts["height"], facts["width"]), size, beta=settings.beta,
                exp_times=settings.exp_times, radius=settings.radius)
        return detect_instances(strength, owner, classes, int(groups.max()) + 1, background=settings.bg_threshold,
                      min_area=settings.min_area)


def instance_reader(folder: Path, n_classes: int) -> Callable[..., Detections]:
    """Return a function that reads and checks the instances of an image. `size` (H, W) defaults to the recorded one."""
    store = Store(folder)
    read_chosen(folder / THRESHOLD)

    def read(image_id: str, size: Sequence[int] = ()) -> Detections:
        size = size or [store.index[image_id][side] for side in ("height", "width")]
        return read_instances(store.file(image_id, f"{image_id}.npz"), size, n_classes)
    return read


def read_instances(path: File, size: Sequence[int], n_classes: int) -> Detections:
    """Read the instances of an image of `size` (H, W).

    Raises ArtifactError if the file is missing, damaged, of another size, or contains impossible values.
    """
    arrays = read_arrays(path, ("score", "class", "label"))
    score, classes, label = (arrays[name] for name in ("score", "class", "label"))
    good = (score.dtype == np.float32 and classes.dtype == np.int64 and label.dtype.kind == "u" and score.ndim == 1
            and classes.shape == score.shape and label.shape == tuple(size) and ((score >= 0) & (score <= 1)).all()
            and ((classes >= 0) & (classes < n_classes)).all()
            and np.array_equal(np.unique(label[label != 0]), np.arange(1, len(score) + 1)))
    if not good:
        raise ArtifactError(f"{path} does not hold instances of an image of {tuple(size)} with {n_classes} classes. Delete it; "
                            "the same command makes it again", damaged=path)
    return Detections(score, classes, label)
