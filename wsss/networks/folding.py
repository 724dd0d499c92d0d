"""Batch norm taken into the convolution before it, found by the flow of data and not by the order of definition."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SIDE = 64   # pixels of the image that is sent through


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Takes the batch norms of a network in evaluation mode into the convolutions before them, in place: the same results but for
    rounding, with fewer passes over memory. For a network that is neither trained nor saved any more.

    An image (1, 3, 64, 64) is sent through `network(x)`. Folded is a batch norm that reads what a convolution made and nothing
    else reads or returns, where both are called once; all others stay as they are. The activation inside timm's batch norm stays.
    """
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in _pairs(network):
        network.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        network.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
    return network


class _Reads(TorchDispatchMode):
    """Counts how often operations read each tensor, also where they write it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()   # by id

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.counts.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        return operation(*args, **(kwargs or {}))


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions with the batch norm that alone reads what they make."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return []
    reads = _Reads()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}      # id of a tensor -> the convolution that made it, and the tensor
    read: list[tuple[nn.BatchNorm2d, Tensor]] = []      # batch norms and what they read

    def makes(module: nn.Conv2d, args: tuple, output: Tensor) -> None:
        made[id(output)] = module, output   # kept, so that the id is not given to another
        del reads.counts[id(output)]        # of a tensor that had the id before
    hooks = [module.register_forward_hook(makes) for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(lambda module, args: read.append((module, args[0]))) for norm in norms]
    try:
        weight = next(network.parameters())
        with torch.no_grad(), reads:
            output = network(torch.zeros(1, 3, _SIDE, _SIDE, dtype=weight.dtype, device=weight.device))
        reads.counts.update(map(id, tree_leaves(output)))
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(module for module, _ in [*made.values(), *read])
    pairs = [(made[id(tensor)][0], norm) for norm, tensor in read if id(tensor) in made and reads.counts[id(tensor)] == 1]
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]
