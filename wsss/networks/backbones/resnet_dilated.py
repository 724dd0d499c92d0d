"""ResNet at stride 8 with dilated convolutions: Chen et al., "DeepLab", TPAMI 2018, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsss.errors import ConfigError
from wsss.networks.backbones.method import no_download
from wsss.networks.backbones.resnet import ResNetMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone

STYLES, DATA = ("torchvision", "caffe"), ("imagenet", "coco")
BOTTLENECKS = ("resnet50", "resnet101")
_CONVOLUTIONS = {"reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3"),
                 "shortcut": ("downsample.0", "downsample.1")}


@dataclass
class DilatedResNetMethod(ResNetMethod):
    """torchvision's ResNets, with stride 8 (`wsss.networks.backbones.resnet_layers`).

    Style "caffe": the network of the released DeepLab, with weights of deeplab-pytorch's names. They are only read from a file,
    `weights`, because they are not published as a download.

    Raises ConfigError for an unknown depth or style, or a file of weights from COCO without `trained_on` "coco".
    """

    style: str        # torchvision: strides in the 3x3 convolutions | caffe: in the first 1x1 convolution of a layer
    trained_on: str   # what the initial weights were trained on: imagenet | coco. It is in the weights file of a training

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, known in (("style", self.style, STYLES), ("trained_on", self.trained_on, DATA)):
            if value not in known:
                raise ConfigError(f"backbone.{key}={value!r} is not possible: expected one of {', '.join(known)}")
        if self.style == "caffe" and self.depth not in BOTTLENECKS:
            raise ConfigError(f"backbone.style=caffe is not possible with backbone.depth={self.depth}: expected one of "
                              f"{', '.join(BOTTLENECKS)}")
        if self.weights and "coco" in Path(self.weights).name.lower() and self.trained_on != "coco":
            raise ConfigError(f"backbone.weights={self.weights} has COCO in its name. Its training used masks, so results are "
                              "not comparable with those from ImageNet weights: set backbone.trained_on=coco, or choose another")

    @property
    def name(self) -> str:
        """That of torchvision only for a network with its weights."""
        return self.depth + "_caffe" * (self.style == "caffe") + "_coco" * (self.trained_on == "coco")

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.resnet_layers import CaffeResNet, DilatedResNet, resnet

        return resnet(self.depth, norm, CaffeResNet if self.style == "caffe" else DilatedResNet)

    def fetch(self) -> dict[str, Tensor]:
        if self.name == self.depth:
            return super().fetch()
        raise no_download(self)

    def expected_file(self) -> str:
        if self.style == "caffe":
            return f"deeplabv1_{self.depth}-{self.trained_on}.pth"
        return super().expected_file() if self.name == self.depth else f"a file of {self.trained_on} with torchvision's names"

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """deeplab-pytorch's names are layer1.conv1.conv.weight for the stem, layer2.block1.reduce.bn.bias, ..., and in a trained
        network base.layer1...; its colours are BGR."""
        if self.style != "caffe":
            return super().own(tensors)
        named = {name.removeprefix("base."): value for name, value in tensors.items()}
        own = {_torchvisions(name): value for name, value in named.items() if not name.startswith(("fc.", "aspp."))}
        if "conv1.weight" in own:
            own["conv1.weight"] = own["conv1.weight"].flip(1)
        return own


def _torchvisions(name: str) -> str:
    """The name in torchvision of a parameter of deeplab-pytorch; other names as they are."""
    parts = name.split(".")
    if parts[:2] == ["layer1", "conv1"] and len(parts) == 4:
        return ("conv1." if parts[2] == "conv" else "bn1.") + parts[3]
    if len(parts) != 5 or parts[2] not in _CONVOLUTIONS:
        return name
    layer, block = int(parts[0].removeprefix("layer")) - 1, int(parts[1].removeprefix("block")) - 1
    return f"layer{layer}.{block}.{_CONVOLUTIONS[parts[2]][parts[3] == 'bn']}.{parts[4]}"


Method = DilatedResNetMethod
