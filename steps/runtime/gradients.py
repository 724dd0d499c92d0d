"""The gradients of a batch: the sum of those of its parts, with the same bits for any number of processes that share them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steps.runtime.context import Group

T = TypeVar("T")


def tree_sum(parts: int, part: Callable[[int, T | None], T], add: Callable[[T, T], T], first: int = 0, step: int = 1) -> T:
    """The sum of part `first`, `first + step`, ... below `parts`: the sum of every second of them plus the sum of the others.

    `part(number, None)` returns a part, `part(number, left)` the sum `left` plus a part, `add(left, right)` the sum of two sums.
    The calls and their order depend only on `parts`; at most log2(parts) + 1 sums exist at a time. Two, four, eight, ...
    processes that take turns in having the parts each have a whole branch.
    """
    if first + step >= parts:
        return part(first, None)
    left = tree_sum(parts, part, add, first, 2 * step)
    if first + 3 * step >= parts:   # a single part on the right
        return part(first + step, left)
    return add(left, tree_sum(parts, part, add, first + step, 2 * step))


@dataclass
class _Sum:
    owner: int                        # the rank of the process that has it
    gradients: list[Tensor | None]    # of each parameter; in the other processes tensors that are of no use

    @property
    def tensors(self) -> list[Tensor]:
        return [gradient for gradient in self.gradients if gradient is not None]


def sum_parts(group: Group, parameters: list[nn.Parameter], parts: int, backward: Callable[[int], None]) -> None:
    """Leave the sum of the gradients of all parts in the parameters of every process.

    `backward(number)` adds the gradients of a part to `.grad`; process r of R does the parts r, r + R, ...
    """
    def part(number: int, left: _Sum | None) -> _Sum:
        owner = number % group.size
        if left is not None and left.owner != owner:
            return add(left, part(number, None))
        if owner == group.rank:
            _set(parameters, left.gradients if left is not None else [None] * len(parameters))
            backward(number)
        return _Sum(owner, [parameter.grad for parameter in parameters])

    def add(left: _Sum, right: _Sum) -> _Sum:
        addends = right.tensors
        if left.owner != right.owner and group.rank in (left.owner, right.owner):
            addends = _copied(group, addends, right.owner, left.owner)
        if group.rank == left.owner:
            torch._foreach_add_(left.tensors, addends)
        return left

    whole = tree_sum(parts, part, add)
    if group.rank == whole.owner:
        _set(parameters, whole.gradients)
    if group.size > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_copy_(gradients, _copied(group, gradients, whole.owner, None))


class RunningStatistics:
    """The running statistics of the batch norm layers in training mode: those of a step are the mean of what its parts make of
    those before it, with the same bits for any number of processes. Each part is normalised by its own statistics."""

    def __init__(self, module: nn.Module):
        layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
        self._buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
        self._counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        self._before = [buffer.clone() for buffer in (*self._buffers, *self._counters)]
        self._made: dict[int, Tensor] = {}

    @contextmanager
    def of_part(self, number: int) -> Iterator[None]:
        """The forward pass of a part: it starts from the statistics before the step."""
        if self._buffers:
            torch._foreach_copy_([*self._buffers, *self._counters], self._before)
        yield
        if self._buffers:
            self._made[number] = _flat(self._buffers)

    def average(self, group: Group, parts: int) -> None:
        """Set the statistics after all parts of all processes."""
        if self._buffers:
            rows = torch.zeros(parts, sum(buffer.numel() for buffer in self._buffers), device=self._buffers[0].device)
            for number, made in self._made.items():
                rows[number] = made   # zeros are added between processes: exact
            torch._foreach_copy_(self._buffers, _like(group.sum(rows).mean(0), self._buffers))


def sum_grads(group: Group, parameters: list[nn.Parameter]) -> None:
    """Replace the gradients of each process by their sum, in an order that depends on the number of processes."""
    if group.size > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_copy_(gradients, _like(group.sum(_flat(gradients)), gradients))


def _copied(group: Group, gradients: list[Tensor], source: int, target: int | None) -> list[Tensor]:
    return _like(group.copy(_flat(gradients), source, target), gradients)


def _set(parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _like(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
