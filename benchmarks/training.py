"""train_cam: an iteration of the official loop (`step/train_cam.py`: NCHW, float32, sequential) against ours.

train_cam_parts, train_irn_parts: an iteration of the default run with parts=4, the default, against parts=null.
"""

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import CPU, REPEATS, Case, greatest_difference
from benchmarks.setting import N_CLASSES, backbone, classifier, scratch
from pipeline.config import compose, typed
from steps.runtime.context import Runtime, StepContext
from steps.runtime.memory import keep_heap
from steps.runtime.networks import freeze_early, to_train
from steps.runtime.schedule import OptimizerName, Schedule
from steps.runtime.training import make_optimizer, train_step
from wsss.classifiers.classifier import Classifier
from wsss.networks.irn import IRN
from wsss.refinement.affinity import affinity_losses, pair_counts

RATE, STEPS = 1e-3, 1   # a low rate, because the weights are random and the loss must stay finite over all repetitions
SETTINGS = SimpleNamespace(optimizer=OptimizerName.sgd, lr=RATE, momentum=1e-4, weight_decay=1e-4)


def context(precision: str, images: int = 0, device: torch.device = CPU) -> StepContext:
    runtime = Runtime(device=device, precision=precision)
    return StepContext("bench", None, None, {"ids": ("",) * images}, scratch(), runtime=runtime)


def our_step(module: torch.nn.Module, groups: tuple, loss: Callable, batch: tuple, precision: str, parts: int | None = None,
             counts: Callable = lambda *part: None, settings: Any = SETTINGS) -> Callable[[], torch.Tensor]:
    """A training iteration of the pipeline on a prepared batch, which returns the loss."""
    size = len(batch[0])
    optimizer, schedule = make_optimizer(settings, *groups), Schedule("bench", 1, size, lambda step, total: 1.0, 1, parts)
    device = next(module.parameters()).device
    where, cut = context(precision, size, device), [[tensor[part::parts or 1] for tensor in batch] for part in range(parts or 1)]
    module.train()
    step = partial(train_step, where, schedule, module, optimizer, loss, cut, counts)
    return lambda: torch.stack([step()["loss"].sum() for _ in range(STEPS)])


def samples(batch: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(batch, 3, 32, 32, generator=draw), crop, mode="bicubic")
    return images, (torch.rand(batch, N_CLASSES, generator=draw) < 0.1).float()


def _classifier() -> Classifier:
    return classifier(copy.deepcopy(backbone()), N_CLASSES).train()


def _our_step(mine: Classifier, images: torch.Tensor, labels: torch.Tensor, precision: str,
              device: torch.device = CPU) -> Callable[[], torch.Tensor]:
    mine = to_train(mine, device)
    return our_step(mine, ((mine.parameter_groups()[0], 1.0), (mine.parameter_groups()[1], 10.0)),
                    lambda x, y, total: {"loss": F.multilabel_soft_margin_loss(mine(x).float(), y)}, (images, labels), precision)


def _sizes(quick: bool) -> tuple[int, int]:
    return (2, 256) if quick else (4, 512)


def cam_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop."""
    keep_heap()   # for both forms; train_cam_memory measures its effect
    batch, crop = sizes or _sizes(quick)
    images, labels = (tensor.to(device) for tensor in samples(batch, crop))
    theirs, mine = _classifier().to(device), _classifier()
    groups = [{"params": params, "lr": RATE * factor} for params, factor in zip(theirs.parameter_groups(), (1, 10))]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=1e-4, weight_decay=1e-4)

    def official() -> torch.Tensor:
        losses = []
        for _ in range(STEPS):
            loss = F.multilabel_soft_margin_loss(theirs(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)
    ours = _our_step(mine, images, labels, precision, device)
    return Case(f"{crop}x{crop}, batch {batch}", ours, official, greatest_difference,
                "the official loop; difference: of the loss", f"float32, NCHW -> {precision}, channels last", batch * STEPS)


def _memory_case(quick: bool, precision: str = "float32") -> Case:
    """A training that returns freed memory to the system, the default, against one that keeps it."""
    batch, crop = _sizes(quick)

    def steps(prepare: Callable[[], None]) -> Callable[[], Callable[[], None]]:
        def ready() -> Callable[[], None]:
            prepare()
            step = _our_step(_classifier(), *samples(batch, crop), precision)
            step()
            return lambda: [step() for _ in range(REPEATS)] and None
        return ready
    return Case(f"{crop}x{crop}, batch {batch}", steps(keep_heap), steps(lambda: None), form=f"{precision}, channels last",
                against="ours, without keeping freed memory", per=batch * REPEATS, once=True)


def _parts_case(quick: bool, precision: str) -> Case:
    """train_cam of the default run."""
    keep_heap()
    images, labels = samples(8, 160)

    def step(parts: int | None) -> Callable[[], torch.Tensor]:
        mine = classifier(_light_backbone(), N_CLASSES)
        freeze_early(mine.backbone)
        mine = to_train(mine, CPU)
        backbone_parameters, head = mine.parameter_groups()

        def loss(x: torch.Tensor, y: torch.Tensor, total: None) -> dict[str, torch.Tensor]:
            return {"loss": F.multilabel_soft_margin_loss(mine(x).float(), y) * len(x) / len(images)}
        return our_step(mine, ((backbone_parameters, 1.0), (head, 10.0)), loss, (images, labels), precision, parts)
    return Case("160x160, batch 8", step(None), step(4), greatest_difference, "ours in 4 parts; difference: of the loss",
                f"{precision}, channels last", len(images) * STEPS)


def _irn_parts_case(quick: bool, precision: str) -> Case:
    """train_irn of the default run."""
    keep_heap()
    images, pairs = samples(4, 160)[0], {"radius": 10, "all_pairs": True}
    draw = torch.Generator().manual_seed(1)
    regions = F.interpolate(torch.randn(len(images), 4, 6, 6, generator=draw), 40, mode="bicubic").argmax(1)
    labels = torch.tensor([0, 3, 7, 255])[regions].byte()

    def step(parts: int | None) -> Callable[[], torch.Tensor]:
        mine = IRN(_light_backbone().eval().to(memory_format=torch.channels_last), seed=1)
        edge, displacement = mine.parameter_groups()
        return our_step(mine, ((edge, 1.0), (displacement, 10.0)),
                        lambda x, y, total: {"loss": affinity_losses(*mine(x), y, counts=total, **pairs).total},
                        (images, labels), precision, parts, lambda x, y: pair_counts(y, **pairs))
    return Case("160x160, batch 4", step(None), step(4), greatest_difference, "ours in 4 parts; difference: of the loss",
                f"{precision}, channels last", len(images) * STEPS)


def _light_backbone() -> torch.nn.Module:
    light = typed(compose([])).backbone   # that of the default run
    net = light.new()
    light.load(net)
    return net


PARTS = {"train_cam_parts": _parts_case, "train_irn_parts": _irn_parts_case}
BENCHMARKS = {**{f"{name}{ending}": partial(case, precision=precision) for name, case in PARTS.items()
                 for ending, precision in (("", "float32"), ("_bf16", "bf16"))},
              "train_cam": cam_case, "train_cam_bf16": lambda quick: cam_case(quick, "bf16"),
              "train_cam_memory": _memory_case, "train_cam_memory_bf16": lambda quick: _memory_case(quick, "bf16")}
