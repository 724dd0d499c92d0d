"""The layers of GoogLeNet and Inception v3: torchvision's, to inception4e and Mixed_6e."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.data.images import Normalisation
from wsss.networks.backbones.chain import Added, CeilMaxPool, Chain, prepare, unbuilt, with_added

#: torchvision's weights of both were trained in TensorFlow on [-1, 1] (torchvision: `transform_input`).
_CENTRED = Normalisation((0.5,) * 3, (0.5,) * 3)


class Reduction(nn.Module):
    """Mixed_6a of a torchvision Inception v3, with a padding of 1 and a stride of 1 or 2: (B, 288, h, w) to
    (B, 768, ceil(h / stride), ceil(w / stride)) (wsolevaluation, `wsol/inception.py`, InceptionB)."""

    def __init__(self, original: Any, stride: int):
        super().__init__()
        self.stride = stride
        self.branch3x3: nn.Module = original.branch3x3
        self.branch3x3dbl_1: nn.Module = original.branch3x3dbl_1
        self.branch3x3dbl_2: nn.Module = original.branch3x3dbl_2
        self.branch3x3dbl_3: nn.Module = original.branch3x3dbl_3
        for branch in (original.branch3x3, original.branch3x3dbl_3):
            branch.conv.stride, branch.conv.padding = (stride, stride), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, self.stride, padding=1)], dim=1)


def googlenet(names: Sequence[str], norm: str, added: Added) -> Chain:
    """The layers `names` of GoogLeNet, whose stages are conv3, inception3b and 4e, and added convolutions
    (`wsss.networks.backbones.chain.with_added`).

    With random weights from torch's global generator; see `wsss.networks.backbones.method.BackboneMethod.new`.
    """
    from torchvision.models import googlenet as original  # takes a second; plan and status do not need it

    net = unbuilt(original, aux_logits=False, init_weights=False)
    net.maxpool1, net.maxpool2, net.maxpool3 = CeilMaxPool(), CeilMaxPool(), CeilMaxPool()
    layers = _layers(net, names, norm)
    return with_added(layers, ("conv3", "inception3b", "inception4e"), (192, 480, 832), (4, 8, 16), _CENTRED, added)


def inception_v3(names: Sequence[str], output_stride: int, norm: str, added: Added) -> Chain:
    """The layers `names` of Inception v3, whose stages are Conv2d_4a, Mixed_5d and 6e, and added convolutions, as `googlenet`."""
    from torchvision.models import inception_v3 as original

    net = unbuilt(original, aux_logits=False, init_weights=False)
    for block in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_4a_3x3):
        block.conv.padding = (1, 1)
    net.maxpool1, net.maxpool2 = nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, padding=1)
    net.Mixed_6a = Reduction(net.Mixed_6a, output_stride // 8)
    layers = _layers(net, names, norm)
    return with_added(layers, ("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e"), (192, 288, 768), (4, 8, output_stride), _CENTRED, added)


def _layers(net: Any, names: Sequence[str], norm: str) -> nn.Sequential:
    layers = nn.Sequential(OrderedDict((name, net.get_submodule(name)) for name in names))
    prepare(layers.to_empty(device=torch.get_default_device()), norm)
    if norm == "frozen_batch":
        layers[0].requires_grad_(False)   # the stem
    return layers
