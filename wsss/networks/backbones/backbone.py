"""The interface of all backbones."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wsss.data.images import Normalisation

EARLY_STRIDE = 8   # of the last early stage


class Block(NamedTuple):
    """What is known of a block of a transformer.

    Attributes:
        attention: after its softmax, (B, heads, n, n) with the class token and the cells in row-major order.
        features: (B, D, h, w), what `features` would be if the block were the last one. With gradients enabled they are a
            function of `attention`, which is a leaf of the graph.
    """

    attention: Tensor
    features: Tensor


class Backbone(nn.Module):
    """A network without its classifier.

    Attributes:
        facts: what builds it again, as JSON values: the name of its method, its settings and its norm (`BackboneMethod.new`).
        name: in messages.
        norm: "frozen_batch" or "group": of the layers that are batch norm in the original network.
        channels, strides: of the outputs of `stages`. AlexNet's have up to one cell less than the side over the stride.
        feature_channels, feature_stride: of the output of `features`.
        normalisation: of its input.
    """

    facts: dict[str, Any]
    name: str
    norm: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    feature_channels: int
    feature_stride: int
    normalisation: Normalisation

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to what the network's own classifier pools, after its norm and activation:
        (B, D, ceil(H/s), ceil(W/s)) with D = `feature_channels` and s = `feature_stride`."""

    @abstractmethod
    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W), normalised, to the outputs of the stages, fine to coarse, each (B, channels[i], ceil(H/s),
        ceil(W/s)) with s = strides[i]."""

    def activated_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `stages`, of a network whose blocks begin with norm and activation after those of the next block."""
        return self.stages(x)

    @property
    @abstractmethod
    def stage_modules(self) -> tuple[nn.Module, ...]:
        """The modules whose outputs are `stages`, fine to coarse. The last one's output is that of `features`: it is added if the
        last stage is another one."""

    def as_map(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """The output of a stage module as (B, D, h, w), for images of `size` (H, W). It may be in another layout, such as
        the tokens of a transformer."""
        return output

    def attention(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The attention of each block of a transformer after its softmax, (B, heads, n, n) with the class token and the cells in
        row-major order; None for other networks."""
        return tuple(block.attention for block in self.blocks(x)) or None

    def blocks(self, x: Tensor) -> tuple[Block, ...]:
        """The blocks of a transformer whose attention is between all cells, first to last; none for other networks."""
        return ()

    def early_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the layers up to the first stage of stride 8: layer2 of a ResNet. Without such a stage it is
        that of the greatest stride below 8, or the first stage if all are coarser: the first quarter of the blocks of a ViT of
        stride 14 or 16."""
        number = self.strides.index(max((stride for stride in self.strides if stride <= EARLY_STRIDE), default=self.strides[0]))
        probe = next(self.parameters()).new_zeros(1, 3, 64, 64)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        training = self.training
        with torch.enable_grad():
            reached = torch.autograd.grad(self.eval().stages(probe)[number].sum(), parameters, allow_unused=True)
        self.train(training)
        return [parameter for parameter, gradient in zip(parameters, reached, strict=True) if gradient is not None]

    def stem_parameters(self) -> list[nn.Parameter]:
        """The trained parameters that AffinityNet does not train: those of the blocks at stride 2 of a ResNet-38; none by
        default."""
        return []

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn at the rate of a classifier's head, such as those without ImageNet weights; none by default."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        """As `features`."""
        return self.features(x)


class StagedBackbone(Backbone):
    """A backbone that consists of its stages, one after another; the output of the last one is the features.

    stage_modules: from (B, 3, H, W) to stage 1, from there to stage 2, and so on. channels, strides: of their outputs, which have
    grids of ceil(side / stride). normalisation: of the images.
    """

    def __init__(self, stage_modules: Sequence[nn.Module], channels: tuple[int, ...], strides: tuple[int, ...],
                 normalisation: Normalisation):
        super().__init__()
        self.layers = nn.ModuleList(stage_modules)
        self.channels, self.strides, self.normalisation = channels, strides, normalisation
        self.feature_channels, self.feature_stride = channels[-1], strides[-1]

    def features(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return tuple(found)

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers)
