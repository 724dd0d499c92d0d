"""Whether time per image and memory are independent of the number of images: `python -m benchmarks.growth [--images 100 2000]`.

The inference steps on pictures of differing sizes in float32. Each number of images has its own process; time is processor time,
memory the peak of the whole process.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.harness import CPU, in_child, machine
from benchmarks.pictures import draw_dataset
from benchmarks.setting import N_CLASSES, Run, scratch
from pipeline.cluster.machine import peak_memory, reset_peak_memory
from steps import cam_to_ir_label, eval_cam, make_cam, make_lpcam, make_sem_seg_labels
from steps.runtime.concurrency import available_cores
from steps.runtime.memory import release

STEPS = (make_cam, make_lpcam, eval_cam, cam_to_ir_label, make_sem_seg_labels)
WARM_UP = 10   # images before the measurement
SIDES = (100, 168)
NORMS = {"resnet18": "group", "resnet50": "frozen_batch"}


def measured(n: int, threads: int, sides: Sequence[int] = SIDES,
             network: str = "resnet18") -> dict[str, tuple[float, float | None]]:
    """Processor seconds per image and MiB of each step for `n` images."""
    torch.set_num_threads(threads)
    draws = np.random.default_rng(0)
    sizes = [tuple(draws.integers(sides[0], sides[1] + 1, 2).tolist()) for _ in range(n)]
    run, found = Run(draw_dataset(scratch(), n, N_CLASSES, sizes=sizes), network, NORMS[network]), {}
    for step in STEPS:
        run.run(step, run.dataset.lists["train"][:WARM_UP])
        release()
        reset_peak_memory(CPU)
        start = time.process_time()
        run.run(step)
        found[step.__name__.split(".")[-1]] = (time.process_time() - start) / n, peak_memory(CPU).get("host")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=[100, 2000], metavar=("FEW", "MANY"))
    parser.add_argument("--sides", type=int, nargs=2, default=SIDES, metavar=("LEAST", "MOST"))
    parser.add_argument("--network", choices=NORMS, default="resnet18")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    print(machine())
    few, many = (in_child(lambda n=n: measured(n, options.threads, options.sides, options.network)) for n in options.images)
    print("| step | {0:,} images, CPU s an image | {1:,} | ratio | {0:,} images, MiB | {1:,} | ratio |".format(*options.images))
    print("|---|---|---|---|---|---|---|")
    for step, (seconds, memory) in few.items():
        times, peaks = (seconds, many[step][0]), (memory, many[step][1])
        print(f"| {step} | {times[0]:.4f} | {times[1]:.4f} | {times[1] / times[0]:.2f} "
              f"| {peaks[0]:,.0f} | {peaks[1]:,.0f} | {peaks[1] / peaks[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
