"""Networks of named layers one after another, which may end with added convolutions (`wsss.networks.backbones.added`)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.images import Normalisation
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.resnet_layers import FrozenBatchNorm, GroupNorm

ADDED = "added"   # the name of the added layers
GROUP_SIZE = 8    # channels per group of a group norm


class Chain(Backbone):
    """Named layers one after another, under torchvision's names.

    layers: from (B, 3, H, W) to the features. ends: the names of those after which a stage ends; the last one is the last layer.
    channels, strides: of the stages. normalisation: of the images.
    """

    def __init__(self, layers: nn.Sequential, ends: Sequence[str], channels: tuple[int, ...], strides: tuple[int, ...],
                 normalisation: Normalisation):
        super().__init__()
        self.layers, self.ends = layers, tuple(ends)
        self.channels, self.strides, self.normalisation = channels, strides, normalisation
        self.feature_channels, self.feature_stride = channels[-1], strides[-1]

    def features(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name in self.ends:
                found.append(x)
        return tuple(found)

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers.get_submodule(name) for name in self.ends)

    def head_parameters(self) -> list[nn.Parameter]:
        """Those of the added layers."""
        return list(self.layers.get_submodule(ADDED).parameters()) if ADDED in self.ends else []


class Added(NamedTuple):
    """3x3 convolutions with ReLU: the output channels of each, its groups, and the dropout before each in training."""

    channels: Sequence[int] = ()
    groups: int = 1
    dropout: float = 0.0


def with_added(layers: nn.Sequential, ends: Sequence[str], channels: tuple[int, ...], strides: tuple[int, ...],
               normalisation: Normalisation, added: Added, kind: type[Chain] = Chain) -> Chain:
    """A `Chain` of these layers, which end with a ReLU, and of added convolutions, which are one more stage if there are any.

    Their weights are from N(0, 0.01) and their biases 0, as in the CAM paper's released prototxt of VGG; that of GoogLeNet has
    biases of 1.
    """
    if not added.channels:
        return kind(layers, ends, channels, strides, normalisation)
    more = nn.Sequential()
    for source, target in zip((channels[-1], *added.channels), added.channels):
        if added.dropout:
            more.append(nn.Dropout(added.dropout))
        convolution = nn.Conv2d(source, target, 3, padding=1, groups=added.groups)
        nn.init.normal_(convolution.weight, std=0.01)
        nn.init.zeros_(cast(nn.Parameter, convolution.bias))
        more.extend([convolution, nn.ReLU()])
    layers.add_module(ADDED, more)
    return kind(layers, (*ends, ADDED), (*channels, added.channels[-1]), (*strides, strides[-1]), normalisation)


class CeilMaxPool(nn.Module):
    """Max pooling of 3x3 cells with stride 2 of a map that is not negative, to ceil(side / 2) cells also of an odd side; even
    sides as Caffe and torchvision's GoogLeNet, with no padding and the last window cut off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 3, 2, ceil_mode=True)


def unbuilt(network: Callable[..., nn.Module], **options: bool) -> Any:
    """A network of torchvision whose weights take no memory and no time: only some of its layers are used, after `to_empty` on
    torch's default device and `prepare`."""
    with torch.device("meta"):
        return network(weights=None, **options)


def prepare(net: nn.Module, norm: str) -> None:
    """Start the convolutions anew as torchvision's ResNets (He et al., fan out), and replace every batch norm by that of `norm`
    (`wsss.networks.backbones.method.BackboneMethod.new`); group norm has 8 channels per group."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
                if child.bias is not None:
                    nn.init.zeros_(child.bias)
            elif isinstance(child, nn.BatchNorm2d):
                channels = child.num_features
                new: nn.Module = GroupNorm(channels // GROUP_SIZE, channels)
                if norm == "frozen_batch":
                    new = FrozenBatchNorm(channels)
                    new.eps = child.eps
                setattr(parent, name, new)
