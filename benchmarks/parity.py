"""What a device computes against what the CPU computes, in float32, stage by stage; part of `python -m benchmarks.gpu`.

Every stage has the inputs that the CPU made, so that differences do not add up. The gradients of a stage are divided by the
greatest of them.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.crf import CLASSES, sample_image
from benchmarks.harness import CPU, greatest_difference, share_of_unequal
from benchmarks.random_walk import maps_and_edge
from benchmarks.setting import N_CLASSES, Run, backbone, classifier, drawn
from benchmarks.training import samples
from steps import cam_to_ir_label, make_cam, make_lpcam, make_sem_seg_labels
from steps.runtime.artifacts import Maps
from steps.runtime.networks import to_train
from wsss.cams.clustering import kmeans
from wsss.data.images import read_mask
from wsss.networks.irn import IRN
from wsss.refinement.affinity import affinity_losses
from wsss.refinement.crf import DenseCRF, unary_from_labels
from wsss.refinement.walk import random_walk

Compute = Callable[[torch.device], list[Tensor]]


@dataclass
class Parity:
    """The greatest difference of a stage, and whether a second call on the device gave the same bits (None: not tried)."""

    stage: str
    unit: str
    difference: float
    limit: float            # a greater difference is a failure
    same_bits: bool | None = None


def parity(device: torch.device, quick: bool) -> dict:
    """{"rows": a `Parity` for each stage, "failures": the stages beyond their limit or with other bits the second time}."""
    rows = [*_steps(device, quick), *(_compared(device, *stage) for stage in _stages(quick))]
    failures = [f"{row.stage}: difference {row.difference:.2g}, expected at most {row.limit:.2g}" for row in rows
                if not row.difference <= row.limit]
    failures += [f"{row.stage}: a second call gave other bits" for row in rows if row.same_bits is False]
    return {"rows": [asdict(row) for row in rows], "failures": failures}


def _steps(device: torch.device, quick: bool) -> Iterator[Parity]:
    """Four steps with their files."""
    dataset = drawn(1 if quick else 4, (64, 80) if quick else (375, 500), per_image=2)
    runs = [Run(dataset, "resnet18" if quick else "resnet50", device=each) for each in (CPU, device)]
    ids = dataset.lists["train"]

    def folders(step: ModuleType) -> list:
        ours = runs[1].run(step)
        kept = shutil.copytree(ours, ours.with_name(f"{ours.name}_on_device"))
        shutil.rmtree(ours)
        shutil.copytree(expected := runs[0].run(step), ours)   # for the next stages
        return [expected, kept]

    for step in (make_cam, make_lpcam):
        name, places = step.__name__.rpartition(".")[2], folders(step)
        for resolution in ("strided", "full"):
            maps = [[Maps(place).at(image_id, resolution) for image_id in ids] for place in places]
            yield Parity(f"{name}, {resolution} maps", "of a maximum of 1, through float16", greatest_difference(*maps), 5e-3)
    for step in (cam_to_ir_label, make_sem_seg_labels):
        name, places = step.__name__.rpartition(".")[2], folders(step)
        labels = [torch.from_numpy(np.concatenate([read_mask(place / f"{image_id}.png").ravel() for image_id in ids]))
                  for place in places]
        yield Parity(f"{name}, labels", "share of the pixels", share_of_unequal(*labels), 1e-3)


def _stages(quick: bool) -> Iterator[tuple[str, str, float, Compute]]:
    """(stage, unit, limit, what it computes on a device)."""
    size = (64, 80) if quick else (375, 500)
    maps, edge = maps_and_edge(*size, 2)
    yield "random walk", "of maps in [0, 1]", 1e-5, lambda device: [random_walk(maps.to(device), edge.to(device))]
    image, seeds = sample_image(3)

    def crf(device: torch.device) -> list[Tensor]:
        return [DenseCRF(image.to(device)).inference(unary_from_labels(seeds.to(device), CLASSES + 1))]   # both labellings
    yield "dense CRF", "of a probability", 1e-2, crf
    features = torch.rand(2000, 64, generator=torch.Generator().manual_seed(0)) ** 4

    def clustered(device: torch.device) -> list[Tensor]:
        return [kmeans(features.to(device), 6, generator=np.random.default_rng(0)).centers]
    yield "k-means", "of features in [0, 1]", 1e-4, clustered
    images, labels = samples(2, 80 if quick else 256)
    grid = torch.randint(4, (2, *[side // 4 for side in images.shape[2:]]), generator=torch.Generator().manual_seed(0))
    for name, network, loss in _trainings(labels, torch.tensor([0, 3, 7, 255])[grid]):
        yield f"gradients of {name}", "of the greatest gradient", 1e-2, _gradients(network, loss, images)


def _trainings(labels: Tensor, grid: Tensor) -> Iterator[tuple[str, torch.nn.Module, Callable]]:
    yield ("the classifier", classifier(backbone("resnet18"), N_CLASSES),
           lambda network, x: F.multilabel_soft_margin_loss(network(x), labels.to(x.device)))
    yield ("the classifier with group norm", classifier(backbone("resnet18", "group"), N_CLASSES),
           lambda network, x: F.multilabel_soft_margin_loss(network(x), labels.to(x.device)))
    yield ("IRN", IRN(copy.deepcopy(backbone("resnet18")), seed=1),
           lambda network, x: affinity_losses(*network(x), grid.to(x.device)).total)


def _gradients(network: torch.nn.Module, loss: Callable, images: Tensor) -> Compute:
    def compute(device: torch.device) -> list[Tensor]:
        here = copy.deepcopy(network).train()
        here = here.to(device) if isinstance(here, IRN) else to_train(here, device)
        loss(here, images.to(device)).backward()
        gradients = [parameter.grad for parameter in here.parameters() if parameter.grad is not None]
        return [gradient / max(float(each.abs().max()) for each in gradients) for gradient in gradients]
    return compute


def _compared(device: torch.device, stage: str, unit: str, limit: float, compute: Compute) -> Parity:
    first, second = compute(device), compute(device)
    same_bits = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return Parity(stage, unit, greatest_difference(compute(CPU), first), limit, same_bits)
