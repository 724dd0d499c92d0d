"""The dense CRF of both thresholds of an image: pydensecrf, which the official code calls, against ours.

On one core each, and on all cores: the official code's processes, each with its own images, against our images in parallel.
Without pydensecrf (see the README for building it) only ours is measured.
"""

from importlib.util import find_spec
from multiprocessing import get_context

import torch
import torch.nn.functional as F

from benchmarks.harness import CPU, Case, share_of_unequal
from benchmarks.pictures import drawn_mask, picture
from benchmarks.training import context
from steps.runtime.concurrency import max_concurrent, ordered_map
from wsss.refinement.crf import crf_labels

HEIGHT, WIDTH, CLASSES = 375, 500, 2
SIZE = f"{HEIGHT}x{WIDTH}, {CLASSES + 1} labels, 2 thresholds"
AGAINST = "pydensecrf{}; difference: share of pixels" if find_spec("pydensecrf") else "pydensecrf is not installed"


def sample_image(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image (H, W, 3) and rough seeds (2, H, W) of its objects."""
    mask = drawn_mask(HEIGHT, WIDTH, range(CLASSES), seed=seed)
    coarse = torch.from_numpy(mask % 255).float()[None, None]
    rough = [F.interpolate(F.interpolate(coarse, scale_factor=1 / cells), (HEIGHT, WIDTH)).long()[0, 0] for cells in (16, 24)]
    return torch.from_numpy(picture(mask, seed=seed)), torch.stack(rough)


def _labels(backend: str, image: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return crf_labels(image, seeds, CLASSES + 1, backend=backend)


def crf_case(quick: bool, device: torch.device = CPU) -> Case:
    image = sample_image(3)
    here = [tensor.to(device) for tensor in image]
    official, against = (lambda: _labels("pydensecrf", *image)) if find_spec("pydensecrf") else None, AGAINST.format("")
    if official is None and device != CPU:
        official, against = (lambda: _labels("torch", *image)), "ours on the CPU; difference: share of pixels"
    return Case(SIZE, lambda: _labels("torch", *here), official, share_of_unequal, against, "float32")


def _pydensecrf(image: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return _labels("pydensecrf", *image)


def _all_cores(quick: bool) -> Case:
    images = 2 if quick else 4
    inputs = {str(seed): sample_image(seed) for seed in range(3, 3 + images)}

    def ours() -> torch.Tensor:
        at_once = max_concurrent(CPU, HEIGHT * WIDTH)
        made = ordered_map(context("float32"), lambda name: _labels("torch", *inputs[name]), inputs, at_once)
        return torch.stack([result() for _, result in made])
    official = None
    if find_spec("pydensecrf"):
        pool = get_context("fork").Pool(torch.get_num_threads(), torch.set_num_threads, (1,))

        def official() -> torch.Tensor:
            return torch.stack(pool.map(_pydensecrf, inputs.values(), chunksize=1))
    return Case(f"{SIZE}, {images} images", ours, official, share_of_unequal,
                AGAINST.format(", a process a core"), "float32", images, elsewhere=True)


BENCHMARKS = {"dense_crf": crf_case, "dense_crf_all_cores": _all_cores}
ONE_THREAD = {"dense_crf"}
