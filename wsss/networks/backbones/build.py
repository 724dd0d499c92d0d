"""The backbones by name: how each `Backbone` is built, and where its ImageNet weights come from."""

from pathlib import Path

from wsss.errors import ArgumentError, WeightsError
from wsss.networks.backbones import efficientnet
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.packaged import NAME as LITE0
from wsss.networks.backbones.packaged import comes_with_weights, packaged_weights
from wsss.networks.backbones.resnet import DEPTHS, resnet
from wsss.networks.weights import fetch_pretrained, fill, pretrained_cache, read_tensors

NAMES = (LITE0, *DEPTHS)


def new_backbone(name: str, norm: str, seed: int = 0) -> Backbone:
    """The backbone `name` with random weights that depend only on `seed`. norm: "frozen_batch" for pretrained weights, "group"
    for training from scratch. Raises ArgumentError for an unknown name or norm."""
    if name == LITE0:
        return efficientnet.efficientnet_lite0(norm, seed)
    if name not in DEPTHS:
        raise ArgumentError(f"unknown backbone {name!r}; known: {', '.join(NAMES)}")
    return resnet(name, norm, seed)


def load_pretrained(backbone: Backbone, file: str | Path | None = None) -> None:
    """Load ImageNet weights into a backbone of norm "frozen_batch".

    file: .pth, .pt or .safetensors with torchvision's names, or for `efficientnet_lite0` with timm's or its package's; its
    classifier is not used. None: the installed package for `efficientnet_lite0`; torchvision's V1 file for a ResNet, from
    its cache or the internet. Raises WeightsError if they are not available, damaged, or of another network.
    """
    name = backbone.name
    if backbone.norm != "frozen_batch":
        raise WeightsError(f"ImageNet weights of {name} come with batch norm, the network has group norm: use "
                           "norm='frozen_batch' with them")
    if file is not None:
        tensors, where = read_tensors(file), str(file)
    elif comes_with_weights(name):
        path = packaged_weights()
        tensors, where = read_tensors(path), str(path)
    else:
        tensors, where = fetch_pretrained(name), f"torchvision's {name} weights"
    if name == LITE0:
        tensors = efficientnet.timm_names(tensors, where)
    else:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    fill(backbone, tensors, f"{where} ({name})")


def is_at_hand(name: str) -> bool:
    """Whether the ImageNet weights of a backbone can be read without a download."""
    return comes_with_weights(name) or pretrained_cache(name).is_file()
