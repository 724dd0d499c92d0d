"""Pictures of a training: the network's output for a few images. No random draws, so the training does not change."""

import numpy as np
import torch

from steps.runtime.artifacts import Labels
from steps.runtime.context import StepContext
from steps.runtime.networks import network_input
from wsss.cams.cam import class_activation_maps
from wsss.classifiers.classifier import Classifier
from wsss.networks.irn import IRN
from wsss.overlays import overlay_map, overlay_mask
from wsss.resize import resize

SHOWN = 4   # images


def cam_pictures(context: StepContext, classifier: Classifier) -> dict[str, np.ndarray]:
    """By image id, from val if there is such a list: the image and the map of each class present, side by side: that of the
    network itself, else CAM, else none.

    Leaves the classifier in evaluation mode.
    """
    classifier.eval()
    found, weights = {}, classifier.class_weights()
    for image_id in (context.lists["log"] or context.ids)[:SHOWN]:
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        with torch.inference_mode(), context.runtime.autocast():
            features = classifier.features(network_input(context, classifier, image_id)).float()
            own, shown = classifier.own_maps(features), torch.empty(0, 1, 1)
            if own is not None:
                shown = own[0, classes].float()
            elif weights is not None:
                shown = class_activation_maps(features, weights[classes])[0]   # (K, h, w)
        found[image_id] = np.concatenate([image, *(overlay_map(image, _fit(values, image)) for values in shown)], axis=1)
    return found


def edge_pictures(context: StepContext, irn: IRN) -> dict[str, np.ndarray]:
    """By image id: the image, its training label and the edge map, side by side. Leaves IRN in evaluation mode."""
    irn.eval()
    found, read = {}, Labels(context.input("labels"), len(context.dataset.classes))
    for image_id in context.ids[:SHOWN]:
        image = context.dataset.image(image_id)
        label = read(image_id, image.shape[:2])
        with torch.inference_mode(), context.runtime.autocast():
            edge = irn.edge_map(network_input(context, irn, image_id, flip=True)).float()   # (1, h, w)
        found[image_id] = np.concatenate([image, overlay_mask(image, label), overlay_map(image, _fit(edge[0], image))], axis=1)
    return found


def _fit(values: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """A map (h, w) at the size of its image, divided by its maximum."""
    resized = resize(values, image.shape[:2])
    return (resized / resized.max().clamp_min(1e-8)).cpu().numpy()
