"""The interface of all backbones."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from wsss.data.images import Normalisation


class Backbone(nn.Module):
    """A module whose `forward(x, detach_after_layer2)` returns the features before its classifier's pooling, at stride 16.

    `stages`: (B, 3, H, W) to the inputs of IRN's branches, fine to coarse, each (B, channels[i], ceil(H/s), ceil(W/s)) with
    s = strides[i]. feature_channels: of `forward`. norm: "frozen_batch" or "group".
    """

    name: str
    norm: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    feature_channels: int
    normalisation: Normalisation
    stages: Callable[[Tensor], tuple[Tensor, ...]]

    @property
    @abstractmethod
    def stage_modules(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs are `stages`, fine to coarse. The last one's output is that of `forward`: it is added if the
        last stage is another one."""
