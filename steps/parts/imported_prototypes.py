"""Prototypes that make_lpcam is given (`make_lpcam.prototypes`) instead of clustering: a `prototypes.npz` of another run, or the
folder with the two files that the official code saves, `class_ceneters.pt` (sic) and `class_context.pt`."""

import hashlib
from pathlib import Path

import numpy as np

from steps.runtime.model import ModelSettings
from wsss.errors import DataError, WeightsError
from wsss.files import user_path
from wsss.networks.facts import file_sha256

NEEDED = ("center", "class_index", "is_background", "kept")   # the arrays of a prototypes.npz that maps are made from


def digest_of_imported(given: str) -> str:
    """SHA-256 of the file, or of those of the two official files. Raises DataError for a missing one."""
    digests = []
    for path in _files(given):
        try:
            digests.append(file_sha256(path))
        except WeightsError as error:
            from wsss.official import PROTOTYPE_FILES

            raise DataError(f"make_lpcam.prototypes={given}: there is no readable file {path}; expected a prototypes.npz, or a "
                            f"folder with {' and '.join(PROTOTYPE_FILES)}. Correct the name") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def check_imported(given: str, n_classes: int, model: ModelSettings) -> None:
    """Read given prototypes before any work and make sure that they fit the classes and the network. Raises DataError."""
    import torch

    from wsss.networks.backbones.build import new_backbone


    with torch.device("meta"):
        dimension = new_backbone(model.backbone.value, model.norm).feature_channels
    read_imported(given, n_classes, dimension)


def read_imported(given: str, n_classes: int, dimension: int) -> dict[str, np.ndarray]:
    """The arrays of `prototypes.npz` (see `steps.parts.prototypes`) of given prototypes, for features of `dimension` numbers.

    Raises DataError when they cannot be read, are not finite, or are of other classes or features.
    """
    from wsss.official import read_prototypes

    paths = _files(given)
    if len(paths) == 1:
        try:
            with np.load(paths[0], allow_pickle=False) as file:
                arrays = dict(file)
            center, class_index, is_background, kept = (arrays[name] for name in NEEDED)
            good = (center.ndim == 2 and center.dtype.kind == "f" and class_index.dtype.kind in "iu"
                    and is_background.dtype == kept.dtype == bool
                    and class_index.shape == is_background.shape == kept.shape == center.shape[:1])
        except MemoryError:
            raise
        except Exception as error:   # a damaged archive raises almost anything
            raise DataError(f"make_lpcam.prototypes={given} is damaged or no prototypes.npz ({type(error).__name__}: {error}). "
                            "Take it from the folder make_lpcam of a finished run") from error
        if not good:
            raise DataError(f"make_lpcam.prototypes={given} does not hold center (n, D), class_index, is_background and kept "
                            "(n,) as make_lpcam writes them. Take it from the folder make_lpcam of a finished run")
    else:
        arrays = read_prototypes(user_path(given))
        center, class_index = arrays["center"], arrays["class_index"]
    classes = int(class_index.max(initial=-1)) + 1
    if classes > n_classes or len(paths) > 1 and classes != n_classes:   # a class without image has no centre in a file of ours
        raise DataError(f"make_lpcam.prototypes={given} is of {classes} classes, the data set has {n_classes}. Give prototypes "
                        "of this data set")
    if center.shape[1] != dimension:
        raise DataError(f"make_lpcam.prototypes={given} holds features of {center.shape[1]} numbers, the network's have "
                        f"{dimension}. Set model.backbone to the one that they were made with")
    if not np.isfinite(center).all():
        raise DataError(f"make_lpcam.prototypes={given} holds numbers that are not finite. Make the prototypes again")
    return arrays


def _files(given: str) -> list[Path]:
    path = user_path(given)
    if not path.is_dir():
        return [path]
    from wsss.official import PROTOTYPE_FILES

    return [path / name for name in PROTOTYPE_FILES]
