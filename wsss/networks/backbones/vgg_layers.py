"""The layers of VGG16: torchvision's, with a stride of 16 or 8."""

from torch import nn

from wsss.data.images import IMAGENET
from wsss.networks.backbones.chain import Added, Chain, prepare, with_added

_POOLS = (16, 23, 30)   # pool3 to pool5 in torchvision's `features`; a stage ends with the ReLU before each


def vgg16(output_stride: int, norm: str, added: Added) -> Chain:
    """The convolutions of VGG16 with torchvision's numbers, without pool5 (stride 16) or without pool4 and pool5 (8), and further
    convolutions (`wsss.networks.backbones.chain.with_added`).

    The stages are conv3 to conv5 after their last ReLU. A pooling rounds odd sides up, torchvision's down; even sides are as
    there. VGG16 has no batch norm.

    With random weights from torch's global generator; see `wsss.networks.backbones.method.BackboneMethod.new`.
    """
    from torchvision.models.vgg import cfgs, make_layers  # takes a second; plan and status do not need it

    layers = make_layers(cfgs["D"])
    prepare(layers, norm)
    if norm == "frozen_batch":
        layers[0].requires_grad_(False)   # the stem
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    if output_stride == 8:
        layers[_POOLS[1]] = nn.Identity()   # instead of pool4, so that the layers keep their numbers
    return with_added(layers[:_POOLS[2]], [str(pool - 1) for pool in _POOLS], (256, 512, 512), (4, 8, output_stride), IMAGENET,
                      added)
