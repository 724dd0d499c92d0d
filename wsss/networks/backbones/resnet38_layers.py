"""The layers of the wide ResNet-38 (`wsss.networks.backbones.resnet38`), under the names of AffinityNet's `resnet38d.py`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wsss.data.images import IMAGENET
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.resnet_layers import norm_layer

Norm = Callable[[int], nn.Module]


class ResBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice. The shortcut is a 1x1 convolution after the first ReLU where the shape changes."""

    def __init__(self, inputs: int, middle: int, outputs: int, norm: Norm, stride: int = 1, dilations: tuple[int, int] = (1, 1)):
        super().__init__()
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = _convolution(inputs, middle, 3, stride, dilations[0])
        self.bn_branch2b1 = norm(middle)
        self.conv_branch2b1 = _convolution(middle, outputs, 3, 1, dilations[1])
        if inputs != outputs or stride != 1:
            self.conv_branch1 = _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(first) if hasattr(self, "conv_branch1") else x
        return shortcut + self.conv_branch2b1(torch.relu(self.bn_branch2b1(self.conv_branch2a(first))))


class Bottleneck(nn.Module):
    """Norm, ReLU and a convolution, three times: 1x1, 3x3 and 1x1, with dropout of channels before the second and the third."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, dilation: int, dropout: float):
        super().__init__()
        self.bn_branch2a = norm(inputs)
        self.conv_branch2a = _convolution(inputs, outputs // 4, 1)
        self.bn_branch2b1, self.dropout_2b1 = norm(outputs // 4), nn.Dropout2d(dropout)
        self.conv_branch2b1 = _convolution(outputs // 4, outputs // 2, 3, 1, dilation)
        self.bn_branch2b2, self.dropout_2b2 = norm(outputs // 2), nn.Dropout2d(dropout)
        self.conv_branch2b2 = _convolution(outputs // 2, outputs, 1)
        self.conv_branch1 = _convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.bn_branch2a(x))
        second = self.dropout_2b1(torch.relu(self.bn_branch2b1(self.conv_branch2a(first))))
        third = self.dropout_2b2(torch.relu(self.bn_branch2b2(self.conv_branch2b1(second))))
        return self.conv_branch1(first) + self.conv_branch2b2(third)


class ResNet38(Backbone):
    """The stages are the outputs of b3, b4 and b5, before the norm that the next block begins with, and the features. b2 is none,
    because the branches of IRN begin at stride 4.

    width: of the first convolution; 64 is the published network, less is for tests. relu: after the last norm. With frozen batch
    norm its scale and shift are not trained, as there, nor the layers `frozen`.
    """

    strides = (4, 8, 8, 8)
    feature_stride = 8
    normalisation = IMAGENET

    def __init__(self, norm: str, width: int = 64, relu: bool = True, frozen: Sequence[str] = ()):
        super().__init__()
        layer = norm_layer(norm)
        two, four, eight, sixteen = (width * factor for factor in (2, 4, 8, 16))
        self.channels, self.feature_channels = (four, eight, sixteen, 4 * sixteen), 4 * sixteen
        self.conv1a = _convolution(3, width, 3)
        for name, blocks, inputs, channels in (("b2", 3, width, two), ("b3", 3, two, four), ("b4", 6, four, eight)):
            self.add_module(name, ResBlock(inputs, channels, channels, layer, stride=2))
            for number in range(1, blocks):
                self.add_module(f"{name}_{number}", ResBlock(channels, channels, channels, layer))
        self.b5 = ResBlock(eight, eight, sixteen, layer, dilations=(1, 2))
        self.b5_1, self.b5_2 = (ResBlock(sixteen, eight, sixteen, layer, dilations=(2, 2)) for _ in range(2))
        self.b6 = Bottleneck(sixteen, 2 * sixteen, layer, 4, 0.3)
        self.b7 = Bottleneck(2 * sixteen, 4 * sixteen, layer, 4, 0.5)
        self.bn7, self.relu = layer(4 * sixteen), nn.ReLU() if relu else nn.Identity()
        if norm == "frozen_batch":
            for name in ("conv1a", *frozen):
                self.get_submodule(name).requires_grad_(False)
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        found, ends = [], self.stage_modules
        for layer in self.children():
            x = layer(x)
            if layer in ends:
                found.append(x)
        return tuple(found)

    def activated_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        *stages, features = self.stages(x)
        norms = (self.get_submodule(f"{block}.bn_branch2a") for block in ("b4", "b5", "b6"))
        return (*(torch.relu(norm(stage)) for norm, stage in zip(norms, stages, strict=True)), features)

    def stem_parameters(self) -> list[nn.Parameter]:
        blocks = map(self.get_submodule, ("b2", "b2_1", "b2_2"))
        return [parameter for block in blocks for parameter in block.parameters() if parameter.requires_grad]

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return tuple(map(self.get_submodule, ("b3_2", "b4_5", "b5_2", "relu")))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Rounds grids up."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)
