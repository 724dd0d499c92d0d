"""Whether time an image and memory stay flat as images become more: sizes of the embedded data set, ResNet-18.

"official" is the same step with few images, "ours" with many: their ratio is to be 1.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from benchmarks.harness import Case
from benchmarks.pictures import draw_dataset
from benchmarks.setting import N_CLASSES, Run, scratch
from steps import cam_to_ir_label, eval_cam, make_cam, make_lpcam, make_sem_seg_labels
from wsss.data.dataset import Dataset

FEW, MANY, QUICK = 100, 2000, (20, 100)
STEPS = (make_cam, make_lpcam, eval_cam, cam_to_ir_label, make_sem_seg_labels)


def varied(n: int) -> Dataset:
    """`n` pictures with sides from 100 to 168 pixels, as the embedded data set has them."""
    draws = np.random.default_rng(0)
    return draw_dataset(scratch(), n, N_CLASSES, sizes=[tuple(draws.integers(100, 169, 2).tolist()) for _ in range(n)])


def _case(step: ModuleType, quick: bool) -> Case:
    few, many = QUICK if quick else (FEW, MANY)

    def work(n: int) -> Callable[[], None]:
        def prepare() -> Callable[[], None]:
            run = Run(varied(n), "resnet18", "group")
            for earlier in STEPS[:min(2, STEPS.index(step))]:       # the maps
                run.run(earlier)
            return lambda: run.run(step) and None
        return prepare
    return Case(f"100..168 px, {few} -> {many} images", work(many), work(few), against=f"the step with {few} images",
                form="float32, ResNet-18", per={"official": few, "ours": many}, once=True)


BENCHMARKS = {f"growth_{step.__name__.split('.')[-1]}": (lambda quick, step=step: _case(step, quick)) for step in STEPS}
NOT_QUICK = set(BENCHMARKS)
