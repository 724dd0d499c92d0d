"""What the networks of the eight steps compute, and the GPU hours that follow: `python -m benchmarks.operations [--tflops N]`.

Counts multiplications and additions of the passes by torch's counter, on the meta device, for images of 375x500 and the recipe of
LPCAM on VOC. Hours are operations divided by the rate that is given, so a projection: `benchmarks.voc_scale` measures. Dense CRF,
random walk, k-means and reading are not in it.
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling import SIZES
from pipeline.config import compose, typed
from wsss.data.images import scaled_size
from wsss.networks.classifier import Classifier
from wsss.networks.irn import IRN
from wsss.networks.resnet import resnet

IMAGE = (375, 500)


def operations(overrides: tuple[str, ...] = ("experiment=lpcam_voc12", "data.root=.")) -> dict[str, float]:
    """GFLOP an image, all epochs of a training together, by step."""
    config = typed(compose(overrides))
    with torch.device("meta"):
        classifier = Classifier(resnet(config.model.backbone.value, "frozen_batch"), 20)
        irn = IRN(resnet(config.model.backbone.value, "frozen_batch").requires_grad_(False))

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
            "make_lpcam": maps + of(classifier.features, 1, IMAGE),       # the features that are clustered
            "train_irn": config.train_irn.epochs * of(irn.train(), 1, crop["train_irn"], backward=True),
            "make_sem_seg_labels": of(irn.eval().edge_map, 2, IMAGE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tflops", type=float, help="what a GPU is taken to do, in 10^12 operations a second")
    parser.add_argument("--images", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    found = operations()
    for step, gflop in found.items():
        print(f"{step:20} {gflop:8,.0f} GFLOP an image")
    together = sum(found.values())
    print(f"{'together':20} {together:8,.0f} GFLOP an image")
    for images in options.images if options.tflops else ():
        print(f"{images:,} images: {together * images / options.tflops / 3.6e6:,.1f} GPU hours at {options.tflops:g} TFLOP/s")


if __name__ == "__main__":
    main()
