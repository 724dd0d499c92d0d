"""The layers of VGG16: torchvision's, with a stride of 16 or 8."""

from torch import Tensor, nn

from wsss.data.images import IMAGENET
from wsss.networks.backbones.backbone import Backbone

_POOLS = (16, 23, 30)   # pool3 to pool5 in torchvision's `features`; a stage ends with the ReLU before each


class VGG16(Backbone):
    """The convolutions of VGG16, `layers` with torchvision's numbers, without pool5 (stride 16) or without pool4 and pool5 (8).

    The stages are conv3 to conv5 after their last ReLU. A pooling rounds odd sides up, torchvision's down; even sides are as
    there. VGG16 has no batch norm.
    """

    channels = (256, 512, 512)
    feature_channels = 512
    normalisation = IMAGENET

    def __init__(self, layers: nn.Sequential, output_stride: int):
        super().__init__()
        self.strides, self.feature_stride = (4, 8, output_stride), output_stride
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        if output_stride == 8:
            layers[_POOLS[1]] = nn.Identity()   # instead of pool4, so that the layers keep their numbers
        self.layers = layers[:_POOLS[2]]

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), normalised by `data.images`, to conv5 after its last ReLU: (B, 512, ceil(H/s), ceil(W/s))."""
        return self.layers(x)

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for start, end in zip((0, *_POOLS), _POOLS):
            x = self.layers[start:end](x)
            found.append(x)
        return tuple(found)

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return tuple(self.layers[pool - 1] for pool in _POOLS)


def vgg16(output_stride: int, norm: str) -> VGG16:
    """VGG16 with random weights from torch's global generator; see `wsss.networks.backbones.method.BackboneMethod.new`."""
    from torchvision.models.vgg import cfgs, make_layers  # takes a second; plan and status do not need it

    layers = make_layers(cfgs["D"])
    for module in layers.modules():   # as torchvision does
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    if norm == "frozen_batch":
        layers[0].requires_grad_(False)   # the stem
    return VGG16(layers, output_stride)
