"""Classifiers of torchvision and timm, trained by other programs, as backbone and head of this project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsss.errors import WeightsError
from wsss.networks.facts import PRETRAINED

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.method import BackboneMethod

# DataParallel, torch.compile, and attributes of training programs; the head may be outside of the last two
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
_HEAD = r"(?:.*\.)?(?:fc|classifier|head|last_linear|_fc|linear)(?:\..*)?"
HEAD_WEIGHT, HEAD_BIAS = "classifier.weight", "classifier.bias"   # of `LinearClassifier` and those derived from it
UNKNOWN = "a network that is not known here"
# The blocks of layer3, and whether they are bottlenecks.
_RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101",
            (36, True): "resnet152"}
_KINDS = {   # a parameter that only this kind of network has
    r"blocks\.0\.attn\.qkv\.weight": "a vision transformer of timm (vit or deit)",
    r"encoder\.layers\.encoder_layer_0\..*": "a vision transformer of torchvision",
    r"features\.denseblock1\..*": "a DenseNet of torchvision", r"Mixed_5b\..*": "an Inception v3 of torchvision",
    r"inception3a\..*": "a GoogLeNet of torchvision",
    r"stages\.0\.blocks\.0\.conv_dw\.weight": "a ConvNeXt of timm",
    r"features\.0\.0\.weight": "a MobileNet, EfficientNet or ConvNeXt of torchvision",
    r"_conv_stem\.weight": "an EfficientNet of efficientnet-pytorch",
    r"conv_stem\.weight": "an EfficientNet or MobileNet of timm",
    r"layers\.0\.blocks\.0\.attn\.qkv\.weight": "a Swin transformer of timm",
    r"features\.0\.weight": "a VGG or AlexNet of torchvision"}


def is_foreign(state: Mapping[str, Tensor], head: str = HEAD_WEIGHT) -> bool:
    """Whether a state dict, as `wsss.official_networks.own_state` returns it, is neither of this project nor of the official
    code. `head`: a parameter of the head."""
    return head not in state or not any(name.startswith("backbone.") for name in state)


def classifier_state(tensors: Mapping[str, Tensor], method: BackboneMethod, n_classes: int, channels: int,
                     where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of `wsss.classifiers.classifier.LinearClassifier` from that of a whole network of torchvision or timm, with
    the bias of its head if there is one.

    Args:
        tensors: by the names of torchvision or timm, with or without the prefixes of DataParallel, torch.compile or an attribute
            `model` or `net`.
        method: of the backbone, which knows its names.
        n_classes: the classes of the data set.
        channels: the features that the head reads.
        where: the file, in messages.

    Returns:
        the state dict, and a sentence for everything that is dropped.

    Raises:
        WeightsError: the file is of another network, its head is not one linear layer on pooled features, or is of another number
            of classes.
    """
    named = _unwrapped(tensors)
    weights = {name: value for name, value in named.items() if re.fullmatch(rf"{_HEAD}\.weight", name) and value.ndim in (2, 4)}
    linear = {name: value for name, value in weights.items() if value.flatten(1).shape == (n_classes, channels)
              and value.shape[2:] in ((), (1, 1))}
    kind = what_it_is(named)
    if len(linear) != 1:
        raise WeightsError(f"{where} is the state dict of {kind or UNKNOWN}; backbone {method.name} needs a head of one linear "
                           f"layer with weights {(n_classes, channels)}, classes and features, {_heads(weights)}. "
                           f"{_advice(kind, method, weights, channels)}")
    name = next(iter(linear))
    prefix = name.removesuffix("weight")
    backbone = {other: value for other, value in named.items() if not other.startswith(prefix)}
    try:
        own = method.own(backbone)
    except WeightsError as error:
        raise WeightsError(f"{where} is the state dict of {kind or UNKNOWN}, and cannot be read as {method.name}: "
                           f"{error}") from error
    notes = []
    if "cls_token" in own or "net.cls_token" in own:
        notes.append("it classified by its class token, here its head reads the mean of the cells: check the maps of some images")
    head = {HEAD_WEIGHT: linear[name].reshape(n_classes, channels, 1, 1)}
    if (bias := named.get(f"{prefix}bias")) is not None:
        head[HEAD_BIAS] = bias
    return {**{f"backbone.{key}": value for key, value in own.items()}, **head}, notes


def without_bias(bias: Tensor) -> str:
    """A sentence for a bias of the head that is dropped, because the classifier has none."""
    return (f"the bias of its head (at most {bias.abs().max():.2g}) is dropped: maps do not use it, the probabilities of the "
            "classes change by it. classifier=gap keeps it")


def what_it_is(names: Mapping[str, object]) -> str:
    """The network that a state dict is of, by its names: "resnet50"; "" if it is not known."""
    if "layer4.0.conv1.weight" in names:
        blocks = len({name.split(".")[1] for name in names if name.startswith("layer3.")})
        return _RESNETS.get((blocks, "layer1.0.conv3.weight" in names), "a ResNet")
    return next((kind for pattern, kind in _KINDS.items() if any(re.fullmatch(pattern, name) for name in names)), "")


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that all names have, or all but those of the head."""
    named = dict(tensors)
    while prefix := next((prefix for prefix in _WRAPPERS if any(name.startswith(prefix) for name in named) and all(
            name.startswith(prefix) or re.fullmatch(rf"{_HEAD}\.(weight|bias)", name) for name in named)), ""):
        named = {name.removeprefix(prefix): value for name, value in named.items()}
    return named


def _heads(weights: Mapping[str, Tensor]) -> str:
    if not weights:
        return "and the file has no layer named fc, classifier or head"
    return "and the file has " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in weights.items())


def _advice(kind: str, method: BackboneMethod, weights: Mapping[str, Tensor], channels: int) -> str:
    if other := [len(value) for value in weights.values() if value.shape[1] == channels]:
        return f"Use it with a data set of its {other[0]} classes, in its order"
    if kind in PRETRAINED and kind != method.name:
        return f"Set backbone={kind}"
    return "Set backbone=NAME to the network of the file, backbone=timm backbone.network=NAME for one of timm"
