"""train_recam, train_amn, train_psa: a training iteration of ours against a bare forward and backward of the same network.

Ours has the loss, the optimiser's step and the checks of the training loop besides. There should be at most a tenth more.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import CPU, Case
from benchmarks.setting import N_CLASSES, backbone
from benchmarks.training import STEPS, our_step, samples
from steps.runtime.memory import keep_heap
from steps.runtime.networks import to_train
from wsss.families import from_facts
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.amn import AMN, balanced_loss, pixel_counts
from wsss.refinement.feature_affinity import feature_affinity_losses

Loss = Callable[..., dict[str, Tensor]]


def _case(network: nn.Module, loss: Loss, batch: tuple[Tensor, ...], inputs: int, precision: str, device: torch.device) -> Case:
    """`loss`: of the network and a batch. `inputs`: the number of tensors of the batch that the network reads."""
    keep_heap()
    batch = tuple(tensor.to(device) for tensor in batch)
    bare = to_train(copy.deepcopy(network), device).train()
    mine = to_train(network, device).train()
    backbone_parameters, head = mine.parameter_groups()
    trained = [parameter for parameter in backbone_parameters if parameter.requires_grad]

    def forward_and_backward() -> Tensor:
        for _ in range(STEPS):
            bare.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output = bare(*batch[:inputs])
            output.float().sum().backward()
        return output.detach()
    ours = our_step(mine, ((trained, 1.0), (head, 10.0)), lambda *tensors: loss(mine, *tensors[:-1]), batch, precision)
    images = batch[0]
    return Case(f"{images.shape[2]}x{images.shape[3]}, batch {len(images)}", ours, forward_and_backward,
                against="a bare forward and backward", form=f"{precision}, channels last", per=len(images) * STEPS)


def _regions(batch: int, side: int) -> Tensor:
    """Labels (batch, side, side): background, two classes and ignored."""
    draw = torch.Generator().manual_seed(1)
    regions = F.interpolate(torch.randn(batch, 4, 6, 6, generator=draw), side, mode="bicubic").argmax(1)
    return torch.tensor([0, 3, 7, 255])[regions].byte()


def _sizes(quick: bool, crop: int = 512) -> tuple[int, int]:
    return (2, crop // 2) if quick else (4, crop)


def recam_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop, also of the next two."""
    method = from_facts("classifier", {"method": "recam", "weight": 1.0, "map_weights": "product"})
    network = method.new(copy.deepcopy(backbone()), N_CLASSES, seed=1)
    return _case(network, method.losses, samples(*(sizes or _sizes(quick))), 1, precision, device)


def amn_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    batch, crop = sizes or _sizes(quick)
    network = AMN(copy.deepcopy(backbone()), N_CLASSES, (6, 12, 18, 24), 0.1, seed=1)

    def loss(network: AMN, images: Tensor, classes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": balanced_loss(network(images, classes).float(), labels, 0.4, pixel_counts(labels))}
    return _case(network, loss, (*samples(batch, crop), _regions(batch, -(-crop // 16))), 2, precision, device)


def psa_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    batch, crop = sizes or _sizes(quick, 448)
    resnet38 = from_facts("backbone", {"method": "resnet38"}).new("frozen_batch", seed=7)
    for parameter in resnet38.stem_parameters():
        parameter.requires_grad_(False)
    network = AffinityNet(resnet38, seed=1)

    def loss(network: AffinityNet, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": feature_affinity_losses(network(images).float(), labels).total}
    return _case(network, loss, (samples(batch, crop)[0], _regions(batch, crop // 8)), 1, precision, device)


CASES = {"train_recam": recam_case, "train_amn": amn_case, "train_psa": psa_case}
BENCHMARKS = {f"{name}{ending}": partial(case, precision=precision) for name, case in CASES.items()
              for ending, precision in (("", "float32"), ("_bf16", "bf16"))}
