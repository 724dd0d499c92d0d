"""The layers of AlexNet: torchvision's, to conv5."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.data.images import IMAGENET
from wsss.networks.backbones.chain import Added, Chain, prepare, unbuilt, with_added

_SMALLEST = 19   # pixels: one cell of conv5
_POOLS = (2, 5, 12)


class AlexNet(Chain):
    """A chain of AlexNet's layers. Its first convolution and its poolings have too little padding for ceil(side / stride) cells:
    an image of 224 px has 55, 27 and 13 cells, not 56, 28 and 14. Images below 19 px are padded with the mean colour."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(_padded(x))

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().stages(_padded(x))


def _padded(x: Tensor) -> Tensor:
    missing = [max(0, _SMALLEST - side) for side in x.shape[2:]]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


def alexnet(norm: str, added: Added) -> Chain:
    """AlexNet with torchvision's numbers, whose stages are conv1, conv2 and conv5 after their ReLU, and further convolutions
    (`wsss.networks.backbones.chain.with_added`). It has no batch norm.

    With random weights from torch's global generator; see `wsss.networks.backbones.method.BackboneMethod.new`.
    """
    from torchvision.models import alexnet as original  # takes a second; plan and status do not need it

    layers = unbuilt(original).features[:_POOLS[2]].to_empty(device=torch.get_default_device())
    prepare(layers, norm)
    if norm == "frozen_batch":
        layers[0].requires_grad_(False)   # the stem
    for pool in _POOLS[:2]:
        layers[pool].ceil_mode = True     # of an even side, which an image of 224 px has nowhere
    return with_added(layers, ("1", "4", "11"), (64, 192, 256), (4, 8, 16), IMAGENET, added, AlexNet)
