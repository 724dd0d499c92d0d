"""Import prototypes (the setting `prototypes`) instead of clustering: from a `prototypes.npz` of another run, or from the folder
with the two files of the official code, `class_ceneters.pt` (sic) and `class_context.pt`. `where`: the setting, for messages."""

import hashlib
from pathlib import Path

import numpy as np

from wsss.errors import DataError, WeightsError
from wsss.files import user_path
from wsss.networks.facts import file_sha256
from wsss.reading import read_npz

FILE = "prototypes.npz"   # in the folder of the step
NEEDED = ("center", "class_index", "is_background", "kept")   # the arrays of a prototypes.npz that the maps need


def digest_of_imported(source: str, where: str) -> str:
    """SHA-256 of the file, or of the digests of the two official files. Raises DataError for a missing file."""
    digests = []
    for path in _files(source):
        try:
            digests.append(file_sha256(path))
        except WeightsError as error:
            from wsss.official import PROTOTYPE_FILES

            raise DataError(f"{where}: there is no readable file {path}; expected a prototypes.npz, or a "
                            f"folder with {' and '.join(PROTOTYPE_FILES)}. Correct the name") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def check_imported(source: str, where: str, n_classes: int, dimension: int) -> None:
    """Check before any work that imported prototypes fit the classes and the network. Raises DataError."""
    read_imported(source, where, n_classes, dimension)


def read_imported(source: str, where: str, n_classes: int, dimension: int) -> dict[str, np.ndarray]:
    """The arrays of a `prototypes.npz` (see `steps.parts.prototypes`), for features (n, `dimension`).

    Raises DataError if they cannot be read, are not finite, or do not match the classes or the features.
    """
    from wsss.official import read_prototypes

    paths = _files(source)
    if len(paths) == 1:
        try:
            arrays = read_npz(paths[0])
            center, class_index, is_background, kept = (arrays[name] for name in NEEDED)
            good = (center.ndim == 2 and center.dtype.kind == "f" and class_index.dtype.kind in "iu"
                    and is_background.dtype == kept.dtype == bool
                    and class_index.shape == is_background.shape == kept.shape == center.shape[:1])
        except MemoryError:
            raise
        except Exception as error:   # a damaged archive raises almost anything
            raise DataError(f"{where} is damaged or not a prototypes.npz ({type(error).__name__}: "
                            f"{error}). Use the prototypes.npz of a finished run") from error
        if not good:
            raise DataError(f"{where} does not hold center (n, D), class_index, is_background and kept (n,). "
                            "Use the prototypes.npz of a finished run")
    else:
        arrays = read_prototypes(user_path(source))
        center, class_index = arrays["center"], arrays["class_index"]
    classes = int(class_index.max(initial=-1)) + 1
    if classes > n_classes or len(paths) > 1 and classes != n_classes:   # in prototypes.npz a class without images has no centre
        raise DataError(f"{where} has {classes} classes, the data set has {n_classes}. Use prototypes of "
                        "this data set")
    if center.shape[1] != dimension:
        raise DataError(f"{where} has features of dimension {center.shape[1]}, the network has dimension "
                        f"{dimension}. Choose the backbone of the prototypes by backbone=NAME")
    if not np.isfinite(center).all():
        raise DataError(f"{where} holds numbers that are not finite. Make the prototypes again")
    return arrays


def _files(source: str) -> list[Path]:
    path = user_path(source)
    if not path.is_dir():
        return [path]
    from wsss.official import PROTOTYPE_FILES

    return [path / name for name in PROTOTYPE_FILES]
