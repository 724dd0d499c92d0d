"""Guided backpropagation: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsss.cams.gradients import image_gradients
from wsss.classifiers.classifier import Classifier
from wsss.errors import ConfigError

_RELUS = {F.relu, F.relu_, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class _Guided(TorchFunctionMode):
    """In this context the gradient of a ReLU (or ReLU6) is 0 also where the gradient of its output is negative. It holds for this
    thread only, and changes no module. `found`: the number of ReLUs that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _RELUS:
            self.found += 1
            if output.requires_grad:
                output.register_hook(torch.relu)
        return output


def guided_gradients(net: Classifier, images: Tensor, classes: Sequence[int]) -> Tensor:
    """As `image_gradients`, by guided backpropagation: each ReLU passes on only positive gradients."""
    with _Guided():
        return image_gradients(net, images, classes)


def check_guided(net: Classifier, user: str) -> None:
    """Raise ConfigError, which names the `user`, if the network calls no ReLU."""
    probe = next(net.parameters()).new_zeros(1, 3, 64, 64)
    with _Guided() as guided, torch.no_grad():
        net(probe)
    if not guided.found:
        raise ConfigError(f"{user} needs a network with ReLUs, {net.backbone.name} has none. Choose one that has, such as "
                          "backbone=resnet50, or another method, such as cam=backprop")
