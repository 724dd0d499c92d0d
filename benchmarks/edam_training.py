"""train_cam with classifier=edam: a training step against the bare forward and backward of its network (train_edam), and against
the official form with one transformer after another (train_edam_loop; `network/resnet38_EDAM_cls.py`)."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import CPU, Case, greatest_difference
from benchmarks.setting import N_CLASSES, backbone
from benchmarks.training import RATE, STEPS, our_step, samples
from steps.runtime.memory import keep_heap
from steps.runtime.networks import to_train
from wsss.classifiers.collaborative import CollaborativeClassifier, positions
from wsss.classifiers.edam import EDAM

METHOD = EDAM(hidden=128, heads=2, feed_forward=512, dropout=0.0, side=46)   # without dropout, so that the losses are equal


def _network(device: torch.device) -> CollaborativeClassifier:
    return to_train(METHOD.new(copy.deepcopy(backbone()), N_CLASSES, seed=1), device)


def _pairs(quick: bool, sizes: tuple[int, int] | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (P, 2, 3, S, S) and labels (P, 2, C)."""
    pairs, crop = sizes or ((1, 128) if quick else (2, 256))
    images, labels = samples(2 * pairs, crop)
    return images.unflatten(0, (pairs, 2)).to(device), labels.unflatten(0, (pairs, 2)).to(device)


def _ours(images: Tensor, labels: Tensor, precision: str) -> Callable[[], Tensor]:
    mine = _network(images.device)
    groups = tuple(METHOD.groups(mine, 10.0))
    return our_step(mine, groups, lambda x, y, total: METHOD.losses(mine, x, y), (images, labels), precision)


def _case(quick: bool, precision: str, sizes: tuple[int, int] | None, device: torch.device,
          other: Callable[[CollaborativeClassifier, Tensor, Tensor], Tensor], against: str, steps: bool) -> Case:
    """`other`: the loss of the other form. `steps`: whether it has an optimiser, too."""
    keep_heap()
    images, labels = _pairs(quick, sizes, device)
    theirs = _network(device).train()
    groups = [{"params": parameters, "lr": RATE * factor} for parameters, factor in METHOD.groups(theirs, 10.0)]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=1e-4, weight_decay=1e-4)

    def bare() -> Tensor:
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = other(theirs, images, labels)
            loss.backward()
            if steps:
                optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)
    size = f"{images.shape[-1]}x{images.shape[-1]}, {len(images)} pairs"
    return Case(size, _ours(images, labels, precision), bare, greatest_difference if steps else None, against,
                f"{precision}, channels last", 2 * len(images) * STEPS)


def edam_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the pairs and the crop."""
    return _case(quick, precision, sizes, device, lambda net, x, y: METHOD.losses(net, x, y)["loss"],
                 "the forward and backward alone", steps=False)


def loop_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the pairs and the crop."""
    def loss(net: CollaborativeClassifier, images: Tensor, labels: Tensor) -> Tensor:
        features = net.features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return F.binary_cross_entropy_with_logits(torch.stack([_logits(net, pair) for pair in features]).float(), labels)
    return _case(quick, precision, sizes, device, loss, "one pair and one transformer after another; difference: of the loss",
                 steps=True)


def _logits(net: CollaborativeClassifier, features: Tensor) -> Tensor:
    """The logits (2, C) of the features (2, D, h, w) of a pair."""
    masks, reduced = net.class_masks(features), net.reduction(features)
    places, found = positions(*features.shape[2:], net.side, reduced.flatten(2).transpose(1, 2)).to(reduced.dtype), []
    for index in range(net.n_classes):
        cells = (reduced * masks[:, index:index + 1]).flatten(2).transpose(1, 2)                     # (2, hw, d)
        tokens = (cells + places + net.segments[:2, None]).flatten(0, 1)                             # (2 hw, d)
        pooled = _transformer(net, index, tokens).unflatten(0, (2, -1)).mean(1)                      # (2, d)
        found.append((pooled @ net.outputs[index].T)[:, 0])
    return torch.stack(found, 1)


def _transformer(net: CollaborativeClassifier, index: int, x: Tensor) -> Tensor:
    """Tokens (T, d) through the transformer of one class."""
    block = net.transformers

    def linear(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, layer.weight[index], layer.bias[index])

    def norm(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return layer.weight[index] * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + layer.bias[index]
    y = norm(block.norm1, x)
    query, key, value = (linear(layer, y).unflatten(1, (block.heads, -1)).transpose(0, 1)
                         for layer in (block.query, block.key, block.value))
    attended = ((query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(-1) @ value).transpose(0, 1).flatten(1)
    x = x + linear(block.mix, attended)
    return x + linear(block.shrink, F.gelu(linear(block.expand, norm(block.norm2, x)), approximate="tanh"))


BENCHMARKS = {"train_edam": edam_case, "train_edam_bf16": lambda quick: edam_case(quick, "bf16"), "train_edam_loop": loop_case}
