"""train_cam: an iteration of the official loop (`step/train_cam.py`: NCHW, float32, sequential) against ours."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from benchmarks.harness import CPU, REPEATS, Case, greatest_difference
from benchmarks.setting import N_CLASSES, backbone, scratch
from steps.runtime.context import StepContext
from steps.runtime.memory import keep_heap
from steps.runtime.networks import to_train
from steps.runtime.training import OptimizerName, Schedule, make_optimizer, train_step
from wsss.classifiers.plain import Classifier

RATE, STEPS = 1e-3, 1   # a low rate, because the weights are random and the loss must stay finite over all repetitions
SETTINGS = SimpleNamespace(optimizer=OptimizerName.sgd, lr=RATE, momentum=1e-4, weight_decay=1e-4)


def context(precision: str) -> StepContext:
    return StepContext(settings=None, dataset=None, lists={"ids": ()}, folder=scratch(), inputs={}, precision=precision)


def our_step(module: torch.nn.Module, groups: tuple, loss: Callable, batch: tuple, precision: str) -> Callable[[], torch.Tensor]:
    """A training iteration of the pipeline on a prepared batch, which returns the loss."""
    optimizer, schedule = make_optimizer(SETTINGS, *groups), Schedule("bench", 1, len(batch[0]), lambda step, total: 1.0, 1)
    module.train()
    return lambda: torch.stack([train_step(context(precision), schedule, module, optimizer, loss, [batch])["loss"]
                                for _ in range(STEPS)])


def samples(batch: int, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(batch, 3, 32, 32, generator=draw), crop, mode="bicubic")
    return images, (torch.rand(batch, N_CLASSES, generator=draw) < 0.1).float()


def _classifier() -> Classifier:
    return Classifier(copy.deepcopy(backbone()), N_CLASSES, seed=1).train()


def _our_step(mine: Classifier, images: torch.Tensor, labels: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    mine = to_train(mine, CPU)
    return our_step(mine, ((mine.parameter_groups()[0], 1.0), (mine.parameter_groups()[1], 10.0)),
                    lambda x, y, total: {"loss": F.multilabel_soft_margin_loss(mine(x).float(), y)}, (images, labels), precision)


def _sizes(quick: bool) -> tuple[int, int]:
    return (2, 256) if quick else (4, 512)


def _case(quick: bool, precision: str = "float32") -> Case:
    keep_heap()   # for both forms; train_cam_memory measures its effect
    batch, crop = _sizes(quick)
    images, labels = samples(batch, crop)
    theirs, mine = _classifier(), _classifier()
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
    return Case(f"{crop}x{crop}, batch {batch}", _our_step(mine, images, labels, precision), official, greatest_difference,
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


BENCHMARKS = {"train_cam": _case, "train_cam_bf16": lambda quick: _case(quick, "bf16"),
              "train_cam_memory": _memory_case, "train_cam_memory_bf16": lambda quick: _memory_case(quick, "bf16")}
