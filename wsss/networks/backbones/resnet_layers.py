"""The layers of the ResNet backbones: torchvision's at stride 16, as in IRN and LPCAM (official `net/resnet50.py`), dilated at
stride 8, as in DeepLab, or at stride 8 or 16 without dilation, as in wsolevaluation."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from wsss.data.images import IMAGENET, Normalisation
from wsss.networks.backbones.backbone import Backbone

#: Of Caffe's networks: the mean colour is subtracted from 0..255 (deeplab-pytorch 4219467: configs/voc12.yaml, IMAGE.MEAN).
CAFFE = Normalisation((122.675 / 255, 116.669 / 255, 104.008 / 255), (1 / 255, 1 / 255, 1 / 255))


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm that always uses its running statistics and never updates them; scale and shift may be trained."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.training = False

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)


class GroupNorm(nn.GroupNorm):
    """Group norm in float32 even under autocast: as on CUDA; on the CPU bf16 with channels last is slower."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class ResNet(Backbone):
    """conv1 to layer4 of a torchvision ResNet, under torchvision's parameter names; strides 4, 4, 8, 16, 16.

    The first block of layer4 has stride 1 and no dilation.
    """

    strides: tuple[int, ...] = (4, 4, 8, 16, 16)
    normalisation = IMAGENET

    def __init__(self, net: Any):
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self._set_strides()
        self.feature_stride = self.strides[-1]
        width = net.fc.in_features // 8  # channels of layer1
        self.feature_channels = 8 * width
        self.channels = (net.conv1.out_channels, width, 2 * width, 4 * width, 8 * width)

    def _set_strides(self) -> None:
        for convolution in _convolutions(self.layer4):
            convolution.stride = (1, 1)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `data.images`, to layer4 after its ReLU: (B, D, ceil(H/s), ceil(W/s)) with the stride s."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self._stem(x)))))   # keeps no stage in memory

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Outputs of stem and layers 1 to 4, each (B, channels[i], ceil(H/s), ceil(W/s)) with s = strides[i]."""
        x1 = self._stem(x)
        x2 = self.layer1(x1)
        x3 = self.layer2(x2)
        x4 = self.layer3(x3)
        return x1, x2, x3, x4, self.layer4(x4)

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return self.maxpool, self.layer1, self.layer2, self.layer3, self.layer4

    def _stem(self, x: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))


class WSOLResNet(ResNet):
    """As wsolevaluation's (`wsol/resnet.py` and `main.py`): layer4 learns at the rate of the head."""

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.layer4.parameters())


class FineResNet(WSOLResNet):
    """At stride 8: layer3 and layer4 have stride 1 and no dilation."""

    strides = (4, 4, 8, 8, 8)

    def _set_strides(self) -> None:
        super()._set_strides()
        for convolution in _convolutions(self.layer3):
            convolution.stride = (1, 1)


class DilatedResNet(ResNet):
    """At stride 8: layer3 and layer4 have stride 1, and their 3x3 convolutions dilation 2 and 4.

    The first 3x3 convolution of each is the one that had the stride; its input is on the finer grid, so it keeps the dilation of
    the layer before, as torchvision's `replace_stride_with_dilation`.
    """

    strides = (4, 4, 8, 8, 8)

    def _set_strides(self) -> None:
        for layer, before, dilation in ((self.layer3, 1, 2), (self.layer4, 2, 4)):
            for convolution in _convolutions(layer):
                if convolution.kernel_size == (3, 3):
                    convolution.dilation = convolution.padding = (before if convolution.stride == (2, 2) else dilation,) * 2
                convolution.stride = (1, 1)


class CaffeResNet(DilatedResNet):
    """With the strides in the first 1x1 convolution of a layer instead of its 3x3 convolution, so that all 3x3 convolutions of
    layer3 and layer4 have their dilation (deeplab-pytorch: libs/models/resnet.py). Its input is RGB like that of all networks.

    Differs from there in the pooling of an even side, which there has one more cell at the end: grids here are rounded up.
    """

    normalisation = CAFFE

    def _set_strides(self) -> None:
        for layer in (self.layer2, self.layer3, self.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        super()._set_strides()


def _convolutions(layer: nn.Module) -> list[nn.Conv2d]:
    return [module for module in layer.modules() if isinstance(module, nn.Conv2d)]


def resnet(depth: str, norm: str, kind: type[ResNet] = ResNet) -> ResNet:
    """A ResNet with random weights from torch's global generator; see `wsss.networks.backbones.method.BackboneMethod.new`.

    kind: CaffeResNet needs blocks with 1x1 convolutions, which resnet50 and resnet101 have.
    depth "tiny" (4 to 32 channels): for testing the pipeline; too small to learn much. Group norm has 32 groups.
    """
    from torchvision import models  # takes a second and 160 MB; plan and status do not need it

    layer = norm_layer(norm)
    net = kind(_tiny(layer) if depth == "tiny" else getattr(models, depth)(weights=None, norm_layer=layer))
    if norm == "frozen_batch":
        net.conv1.requires_grad_(False)
        net.bn1.requires_grad_(False)
    return net


def norm_layer(norm: str) -> Callable[[int], nn.Module]:
    """The norm layer of a number of channels: "frozen_batch" or "group"."""
    return FrozenBatchNorm if norm == "frozen_batch" else _group_norm


def _group_norm(channels: int) -> GroupNorm:
    """Group norm with 32 groups; below 64 channels, which only "tiny" has, with 8 channels per group."""
    return GroupNorm(32 if channels >= 64 else max(1, channels // 8), channels)


def _tiny(layer: Callable[[int], nn.Module]) -> nn.Module:
    """The layers of a ResNet with one block per stage and 4, 8, 16 and 32 channels: 20 thousand parameters."""
    from torchvision.models.resnet import BasicBlock, conv1x1  # late, as in `resnet`

    net: Any = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False), layer(4)
    net.relu, net.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
    net.layer1 = nn.Sequential(BasicBlock(4, 4, norm_layer=layer))
    for number, channels in ((2, 8), (3, 16), (4, 32)):
        shortcut = nn.Sequential(conv1x1(channels // 2, channels, 2), layer(channels))
        setattr(net, f"layer{number}", nn.Sequential(BasicBlock(channels // 2, channels, 2, shortcut, norm_layer=layer)))
    net.fc = nn.Linear(32, 1)
    for module in net.modules():  # as torchvision does
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
