"""Folding of batch norms into the preceding convolutions, which are found by data flow and not by order of definition."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SIDE = 64   # pixels of the probe image


_known: dict[str, list[tuple[str, str]]] = {}   # key -> the names of the pairs


def fold_batch_norm(network: nn.Module, key: str | None = None) -> nn.Module:
    """Fold the batch norms of a network in evaluation mode into the preceding convolutions, in place: the same results up to
    rounding, with fewer passes over memory. Use it only for a network that is no longer trained or saved.

    A probe image (1, 3, 64, 64) goes through `network(x)`. A batch norm is folded if its input is the output of a convolution
    that nothing else reads or returns, and both are called once; others are unchanged, also of a module that computes the weights
    of its convolution from others. timm's fused activation is kept.

    With `key`, which stands for the layers of the network, the probe image goes through the first network of each key only.
    """
    names = {module: name for name, module in network.named_modules()}
    pairs = _known.get(key) if key is not None else None
    if pairs is None:
        pairs = [(names[conv], names[norm]) for conv, norm in _pairs(network)]
    if key is not None:
        _known[key] = pairs
    for conv, norm in pairs:
        convolution: Any = network.get_submodule(conv)
        layer: Any = network.get_submodule(norm)
        if not isinstance(layer, nn.BatchNorm2d):
            continue   # folded before
        network.set_submodule(conv, fuse_conv_bn_eval(convolution, layer))
        network.set_submodule(norm, getattr(layer, "act", nn.Identity()))
    return network


class _Reads(TorchDispatchMode):
    """`counts`: how often operations read each tensor, including in-place writes. `weights`: of the convolution that made a
    tensor. All by id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.weights: dict[int, int] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.counts.update(id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        output = operation(*args, **(kwargs or {}))
        if operation is torch.ops.aten.convolution.default:
            self.weights[id(output)] = id(args[1])
        return output


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the batch norm that is the only reader of its output."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return []
    reads = _Reads()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}      # id of a tensor -> the convolution that returned it, and the tensor
    read: list[tuple[nn.BatchNorm2d, Tensor]] = []      # batch norms and their inputs

    def makes(module: nn.Conv2d, args: tuple, output: Tensor) -> None:
        if reads.weights.get(id(output)) != id(module.weight):
            return   # such as weight standardisation
        made[id(output)] = module, output   # keep a reference, so that the id is not reused
        del reads.counts[id(output)]        # the count of an earlier tensor with this id
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
