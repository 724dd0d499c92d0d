"""The dense CRF of both thresholds of an image: pydensecrf, which the official code calls, against ours, on one core each.

Without pydensecrf (the README says how it is built) only ours is measured.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F

from benchmarks.harness import Case, share_of_unequal
from benchmarks.pictures import drawn_mask, picture
from wsss.crf import crf_labels


def _case(height: int, width: int, classes: int = 2) -> Case:
    mask = drawn_mask(height, width, range(classes), seed=3)
    image = torch.from_numpy(picture(mask, seed=3))
    coarse = torch.from_numpy(mask % 255).float()[None, None]
    rough = [F.interpolate(F.interpolate(coarse, scale_factor=1 / cells), (height, width)).long()[0, 0] for cells in (16, 24)]
    seeds = torch.stack(rough)                                # (2, H, W): rough seeds of the objects
    official = None
    if find_spec("pydensecrf"):
        def official() -> torch.Tensor:
            return crf_labels(image, seeds, classes + 1, backend="pydensecrf")
    against = "pydensecrf; difference: share of pixels" if official else "pydensecrf is not installed"
    return Case(f"{height}x{width}, {classes + 1} labels, 2 thresholds", lambda: crf_labels(image, seeds, classes + 1), official,
                share_of_unequal, against, "float32")


BENCHMARKS = {"dense_crf": lambda quick: _case(375, 500), "dense_crf_all_cores": lambda quick: _case(375, 500)}
ONE_THREAD = {"dense_crf"}
