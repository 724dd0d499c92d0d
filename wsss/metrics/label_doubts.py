"""Which image labels a classifier that did not train on the image contradicts."""

import numpy as np


def contradictions(probabilities: np.ndarray, labels: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """How much each label is contradicted: (N, C) float64 in [0, 1], 0 where it is not.

    `probabilities`: (N, C) in [0, 1], of a classifier that did not train on the image. `labels`: (N, C), 1 for each class
    present. `known`: (N, C), whether that classifier had an image of the class to learn from; others are not judged. None: all.

    A label contradicts by 1 - p if the class is labelled and by p if it is not.
    """
    doubt = np.where(labels > 0, 1 - probabilities, probabilities).astype(np.float64)
    return doubt if known is None else np.where(known, doubt, 0)


def halves(labels: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Split N images into two halves that have, as far as possible, as many images of each set of labels: (N,) of 0 and 1.

    `labels`: (N, C), 1 for each class present.
    """
    order = draws.permutation(len(labels))
    order = order[np.lexsort(labels[order].T)]   # stable: random among images with the same labels
    half = np.empty(len(labels), np.int64)
    half[order] = np.arange(len(labels)) % 2
    return half
