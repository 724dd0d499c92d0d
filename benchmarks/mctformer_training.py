"""train_cam of MCTformer-V2: the bare forward and backward pass of its network (DeiT-S, 224 px) against our training step, which
also updates the weights."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import multilabel_soft_margin_loss

from benchmarks.harness import CPU, Case, greatest_difference
from benchmarks.setting import N_CLASSES
from benchmarks.training import RATE, STEPS, our_step, samples
from steps.runtime.memory import keep_heap
from steps.runtime.schedule import OptimizerName
from wsss.classifiers.class_tokens import ClassAndCellTokens
from wsss.classifiers.mctformer import MCTformer
from wsss.families import from_facts

METHOD = MCTformer(cell_head=True)
# A low rate, so that the loss stays that of the first step
SETTINGS = SimpleNamespace(optimizer=OptimizerName.adamw, lr=RATE * 1e-3, weight_decay=0.05)


def mctformer_case(quick: bool, precision: str = "float32", network: str = "deit_small_patch16_224",
                   sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop."""
    keep_heap()
    batch, crop = sizes or ((2, 96) if quick else (8, 224))
    images, labels = (tensor.to(device) for tensor in samples(batch, crop))
    backbone = from_facts("backbone", {"method": "timm", "network": network, "output_stride": None}).new("frozen_batch")
    theirs = METHOD.new(backbone, N_CLASSES).to(device)
    mine = copy.deepcopy(theirs)

    def loss(images: Tensor, labels: Tensor, total: None) -> dict[str, Tensor]:
        return METHOD.losses(mine, images, labels)
    ours = our_step(mine, tuple(METHOD.groups(mine, 1.0)), loss, (images, labels), precision, settings=SETTINGS)
    return Case(f"{crop}x{crop}, batch {batch}", ours, bare(theirs.train(), images, labels, precision), greatest_difference,
                "the bare forward and backward; difference: of the loss", precision, batch * STEPS)


def bare(net: ClassAndCellTokens, images: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    """The forward and backward pass in the precision of ours, which returns the loss."""
    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            tokens, features = net.both(images)
            logits = tokens.mean(2).float(), net.cells(features).float().mean((2, 3))
            loss = torch.stack([multilabel_soft_margin_loss(each, labels) for each in logits]).sum()
        net.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()
    return lambda: torch.stack([step() for _ in range(STEPS)])


BENCHMARKS = {"train_mctformer": mctformer_case, "train_mctformer_bf16": lambda quick: mctformer_case(quick, "bf16")}
