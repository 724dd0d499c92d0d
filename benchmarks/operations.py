"""The operations of the networks of the eight steps, and the GPU hours they need: `python -m benchmarks.operations [--tflops N]`.
With `--launches` instead the number of operations launched on a GPU where arithmetic is not the limit, by torch's dispatcher.

Multiplications and additions are counted by torch's counter on the meta device, for images of 375x500 and the recipe of LPCAM on
VOC. Hours are operations divided by the rate `--tflops`, so a projection; `benchmarks.voc_scale` measures. Dense CRF, random
walk, k-means and reading are not included.
"""

import argparse
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import SIZES
from benchmarks.setting import backbone
from pipeline.config import compose, typed
from wsss.data.images import scaled_size
from wsss.networks.folding import fold_batch_norm
from wsss.networks.irn import IRN
from wsss.refinement import walk
from wsss.refinement.affinity import affinity_losses, edge_to_affinity
from wsss.refinement.crf import crf_labels

IMAGE = (375, 500)


def operations(overrides: tuple[str, ...] = ("experiment=lpcam_voc12", "data.root=.")) -> dict[str, float]:
    """GFLOP per image by step, for a training over all epochs."""
    config = typed(compose(overrides))
    with torch.device("meta"):
        classifier = config.classifier.new(config.backbone.new(), 20)
        irn = IRN(config.backbone.new().requires_grad_(False))

    def of(pass_, batch: int, size: tuple[int, int], backward: bool = False) -> float:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            outputs = pass_(torch.empty(batch, 3, *size, device="meta"))
            if backward:
                sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        return counter.get_total_flops() / 1e9
    crop = {step: (getattr(config, step).crop_size,) * 2 for step in ("train_cam", "train_irn")}
    maps = sum(of(classifier.features, 2, scaled_size(IMAGE, scale)) for scale in config.make_cam.scales)
    return {"train_cam": config.train_cam.epochs * of(classifier.train(), 1, crop["train_cam"], backward=True),
            "make_cam": maps,
            "make_lpcam": maps + of(classifier.features, 1, IMAGE),       # the features to cluster
            "train_irn": config.train_irn.epochs * of(irn.train(), 1, crop["train_irn"], backward=True),
            "make_sem_seg_labels": of(irn.eval().edge_map, 2, IMAGE)}


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would launch: all except views and allocations."""

    number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.number += not (operation.is_view or operation.__name__.startswith(("empty", "_unsafe_view", "new_empty")))
        return operation(*args, **(kwargs or {}))


def launches() -> dict[str, int]:
    """Number of operations by task, in the forms for GPUs. They hardly depend on sizes, which are small here."""
    draw = torch.Generator().manual_seed(0)
    edge, maps = torch.rand(32, 40, generator=draw, dtype=torch.float64) ** 3, torch.rand(2, 1280, generator=draw).double()
    image, seeds = torch.randint(255, (40, 50, 3), generator=draw).byte(), torch.randint(3, (2, 40, 50), generator=draw)
    logits, displacement = torch.randn(1, 1, 32, 32, requires_grad=True), torch.randn(1, 2, 32, 32, requires_grad=True)
    labels = torch.randint(3, (1, 32, 32), generator=draw)
    classifier = fold_batch_norm(backbone().eval().requires_grad_(False))

    def walked(power: Callable) -> None:
        power(maps, walk._symmetric_steps(edge_to_affinity(edge, 5), edge, 10, edge.numel())[0])

    def by_rows(x: torch.Tensor, bands: list) -> None:
        walk._power_by_rows(x, *walk._as_rows(bands, edge.numel()), 256)

    def by_bands(x: torch.Tensor, bands: list) -> None:
        walk._power(x, bands, 256, edge.numel())
    work = {"random walk of an image, by rows (GPU)": lambda: walked(by_rows),
            "random walk of an image, by bands (CPU)": lambda: walked(by_bands),
            "dense CRF of an image, both thresholds": lambda: crf_labels(image, seeds, 3),
            "affinity losses of a training step, with their gradients":
                lambda: affinity_losses(logits, displacement, labels).total.backward(),
            "a forward pass of ResNet-50": lambda: classifier(torch.zeros(2, 3, 64, 64))}
    found = {}
    for name, do in work.items():
        with Launches() as count:
            do()
        found[name] = count.number
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tflops", type=float, help="what a GPU is taken to do, in 10^12 operations a second")
    parser.add_argument("--launches", action="store_true", help="count operations that a GPU is handed")
    parser.add_argument("--images", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    if options.launches:
        for name, number in launches().items():
            print(f"{name:60} {number:6,}")
        return
    found = operations()
    for step, gflop in found.items():
        print(f"{step:20} {gflop:8,.0f} GFLOP an image")
    together = sum(found.values())
    print(f"{'together':20} {together:8,.0f} GFLOP an image")
    for images in options.images if options.tflops else ():
        print(f"{images:,} images: {together * images / options.tflops / 3.6e6:,.1f} GPU hours at {options.tflops:g} TFLOP/s")


if __name__ == "__main__":
    main()
