"""A folder of masks that were corrected by hand: `ID.png`, in the size of the image, with the mask values of `Dataset`."""

import os
from pathlib import Path

from wsss.data.dataset import Dataset
from wsss.data.images import image_size
from wsss.data.messages import did_you_mean, format_size, refuse
from wsss.errors import DataError


def find_corrections(folder: Path, dataset: Dataset, check: bool = True) -> dict[str, str]:
    """id -> file, for `Dataset.corrections`, sorted. With `check` their sizes are compared with those of the images; their values
    are checked when they are read (`Dataset.correction`).

    Raises DataError if the folder cannot be read or has no mask, or a mask has no image or another size.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(".png") and not name.startswith("."))
    except OSError as error:
        raise DataError(f"data.corrections={folder} cannot be read ({error.strerror or error}); expected a folder of corrected "
                        "masks ID.png: check its name, or leave it out") from error
    if not names:
        raise DataError(f"data.corrections={folder} has no mask; expected ID.png, with the id of an image: write it with "
                        "action=import, or leave it out")
    found, problems = {}, []
    for name in names:
        image_id, path = name[:-len(".png")], folder / name
        found[image_id] = str(path.absolute())
        if image_id not in dataset.image_files:
            problems.append(f"{name} has no image{did_you_mean(image_id, dataset.image_files)}; rename or remove it")
        elif check and (size := image_size(path)) != (expected := dataset.size(image_id)):
            problems.append(f"{name} is {format_size(size)} but its image is {format_size(expected)} as shown; save it in that "
                            "size")
    refuse(f"corrected masks {folder}", problems)
    return found
