"""Pictures of a training: the network's output for a few images. No random draws, so the training does not change."""

import numpy as np
import torch

from steps.runtime.artifacts import Labels
from steps.runtime.context import StepContext
from steps.runtime.networks import network_input
from wsss.cams.cam import class_activation_maps
from wsss.cams.method import CamMethod
from wsss.classifiers.classifier import Classifier
from wsss.errors import ConfigError
from wsss.networks.irn import IRN
from wsss.overlays import overlay_map, overlay_mask
from wsss.resize import resize

SHOWN = 4   # images


def cam_pictures(context: StepContext, classifier: Classifier) -> dict[str, np.ndarray]:
    """By image id, from val if there is such a list: the image and the CAM of each class present, side by side. Of a classifier
    without CAM its maps by the method of the run, if that fits it, else the image alone.

    Leaves the classifier in evaluation mode.
    """
    classifier.eval()
    found, weights, method = {}, classifier.class_weights(), _other_method(context, classifier)
    for image_id in (context.lists["log"] or context.ids)[:SHOWN]:
        image, classes = context.dataset.image(image_id), list(context.dataset.labels[image_id])
        with torch.inference_mode(), context.runtime.autocast():
            if weights is not None:
                features = classifier.features(network_input(context, classifier, image_id)).float()
                maps = class_activation_maps(features, weights[classes])   # (1, K, h, w)
            elif method is not None:
                pair = network_input(context, classifier, image_id, flip=True)
                maps = method.maps(classifier, classifier.features, pair, classes)[:1]
            else:
                maps = torch.zeros(1, 0, 1, 1)
        found[image_id] = np.concatenate([image, *(overlay_map(image, _fit(values, image)) for values in maps[0])], axis=1)
    return found


def _other_method(context: StepContext, classifier: Classifier) -> CamMethod | None:
    """The method of the run's maps for a classifier without CAM; None: it has CAM, or the method does not fit it."""
    method: CamMethod = context.methods["cam"]
    try:
        if classifier.class_weights() is None:
            method.check(classifier)
            return method
    except ConfigError:
        pass
    return None


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
