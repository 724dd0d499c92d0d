"""The images of the steps that make confident labels of the seed maps, for IRN and for AffinityNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.runtime.artifacts import Maps
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from wsss.data.images import encode_mask, resize_mask

if TYPE_CHECKING:
    from torch import Tensor


def make_labels(context: StepContext, maps: Maps, label_of: Callable[[np.ndarray, Tensor, list[int]], Tensor]) -> None:
    """Write `ID.png` of each image of the step, in the size (H, W) of the network input: its mask corrected by hand, or
    `label_of(image, maps, classes)`, (H, W) uint8, from the image (H, W, 3) uint8 and the maps (K, H, W) of its classes."""
    dataset = context.dataset

    def make(image_id: str) -> Made:
        image = dataset.image(image_id)
        size: dict[str, Any] = {"height": image.shape[0], "width": image.shape[1]}
        if image_id in dataset.corrections:
            drawn = resize_mask(dataset.correction(image_id), image.shape[:2])
            return {f"{image_id}.png": encode_mask(drawn)}, {**size, "correction": dataset.digest_of_correction(image_id)}
        label = label_of(image, maps.at(image_id, "full", context.runtime.device), maps.classes(image_id))
        return {f"{image_id}.png": encode_mask(label.cpu().numpy())}, size

    for_each_image(context, make, cpu_parallel=True)
