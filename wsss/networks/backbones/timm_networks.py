"""timm's networks by name. How they differ is measured on torch's meta device, which computes sizes without numbers."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.layers import GroupNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsss.data.messages import did_you_mean
from wsss.errors import ArgumentError, ConfigError
from wsss.networks.backbones.method import STRIDE
from wsss.networks.backbones.packaged import NAME
from wsss.networks.backbones.timm_layers import Layout, TimmBackbone, ceil, map_of

FINEST, MOST = 4, 5   # the stride of the finest stage, and the number of stages
GROUP_SIZE = 8        # channels per group of a group norm
_SMALL = (5, 7)       # pixels: smaller than any stride of 8 or more
# Of transformers that have these options
_ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}


# What `measure` finds of the default network: measuring takes a second in each process.
DEFAULT = Layout({"output_stride": STRIDE}, (1, 2, 3, 4), ("blocks.1", "blocks.2", "blocks.4", "blocks.6"), (24, 40, 112, 320),
                 (4, 8, 16, 16), 1280, 16, 1, False, False, True)


def timm_backbone(network: str, output_stride: int | None, norm: str, drop_path: float | None = None) -> TimmBackbone:
    """A network of timm with random weights from torch's global generator; see `measured`, and
    `wsss.networks.backbones.method.BackboneMethod.new` for `norm`. Group norm has 8 channels per group."""
    layout = measured(network, output_stride, drop_path)
    net = create(network, layout.options)
    if norm == "group":
        _to_group_norm(net)
    else:
        for parameter in _stem(net):
            parameter.requires_grad_(False)
    return TimmBackbone(net, layout)


def create(network: str, options: dict[str, Any]) -> Any:
    """timm's network without classifier and pooling, with random weights."""
    return without_head(timm.create_model(network, num_classes=0, **options))   # its own pooling decides about its last norm


def without_head(net: Any) -> Any:
    """The network without classifier and pooling, in place."""
    try:
        net.reset_classifier(0, "")
    except AssertionError:   # it cannot be without pooling; its `forward_head` is then not used
        net.reset_classifier(0)
    return net


def _to_group_norm(network: nn.Module) -> None:
    """Replace every batch norm by group norm and keep its activation. (Many of timm's networks accept no other norm.)"""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                size = next(size for size in (GROUP_SIZE, 4, 2, 1) if child.num_features % size == 0)
                norm = GroupNormAct(child.num_features, group_size=size, apply_act=False)
                norm.act = getattr(child, "act", norm.act)
                setattr(parent, name, norm)


def _stem(network: Any) -> list[nn.Parameter]:
    """The parameters of the stem as timm groups them for learning rates by layers; none if it does not say."""
    try:
        pattern = network.group_matcher(coarse=True)["stem"]
    except (AttributeError, AssertionError, KeyError):   # it has none, or none that is coarse
        return []
    patterns = [pattern] if isinstance(pattern, str) else [entry[0] for entry in pattern]
    return [parameter for name, parameter in network.named_parameters() if any(re.match(each, name) for each in patterns)]


@cache
def measured(network: str, output_stride: int | None, drop_path: float | None = None) -> Layout:
    """The layout of a network, with features at `output_stride`, or None: 16 where timm can change it, else the network's own.
    `drop_path`: the share of stochastic depth in training, or None: timm's.

    Raises ConfigError if there is no such network, it cannot have this stride or drop paths, or it cannot be a backbone.
    """
    if drop_path is not None:
        return _with_drop_path(network, measured(network, output_stride), drop_path)
    return DEFAULT if network == NAME and output_stride in (None, STRIDE) else measure(network, output_stride)


def measure(network: str, output_stride: int | None) -> Layout:
    """As `measured`, by calls of the network on torch's meta device."""
    names = [*timm.list_models(), *timm.list_pretrained()]   # without and with the tags of weights
    if network not in names:
        raise ConfigError(f"backbone.network={network!r} is no network of timm {timm.__version__}{did_you_mean(network, names)} "
                          "(known: timm.list_models(), and with the tags of weights timm.list_pretrained())")
    try:
        with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
            options = _options(network, STRIDE if output_stride is None else output_stride)
            layout = _measured(create(network, options).eval(), options)
    except Exception as error:   # whatever a network raises on an image of another size than its own
        raise ConfigError(f"backbone.network={network} cannot be a backbone: {type(error).__name__}: {error}; expected a "
                          "network that has feature_info and forward_intermediates and takes images of any size: choose "
                          "another one") from error
    if output_stride not in (None, layout.feature_stride):
        raise ConfigError(f"backbone.output_stride={output_stride} is not possible: {network} has features at stride "
                          f"{layout.feature_stride}, which timm cannot change to this: use backbone.output_stride=null or "
                          "another network")
    return layout


def _with_drop_path(network: str, layout: Layout, drop_path: float) -> Layout:
    layout = layout._replace(options={**layout.options, "drop_path_rate": drop_path})
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            create(network, layout.options)
    except TypeError as error:   # an argument that it does not have
        raise ConfigError(f"backbone.drop_path={drop_path} is not possible: timm's {network} has no paths that can be dropped: "
                          "use backbone.drop_path=null or another network") from error
    return layout


def _options(network: str, stride: int) -> dict[str, Any]:
    """The arguments with which a network takes images of any size and has this stride, as far as it can."""
    kind = type(timm.create_model(network, num_classes=0))
    known = {name for base in kind.__mro__ if base not in (nn.Module, object) for name in inspect.signature(base).parameters}
    options: dict[str, Any] = {name: value for name, value in _ANY_SIZE.items() if name in known}
    try:
        timm.create_model(network, num_classes=0, output_stride=stride, **options)
    except (TypeError, AssertionError, NotImplementedError):   # timm's ways to say that it cannot
        return options
    return {**options, "output_stride": stride}


def _measured(net: Any, options: dict[str, Any]) -> Layout:
    infos = getattr(net.feature_info, "info", net.feature_info)
    coarsest = max(info["reduction"] for info in infos)
    x = torch.empty(1, 3, 4 * coarsest, 6 * coarsest)
    shapes = [stage.shape[1:] for stage in net.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)]   # (D, h, w)
    strides = [x.shape[2] // height for _, height, _ in shapes]
    indices = _chosen(strides)
    for i in indices:
        net.get_submodule(infos[i]["module"])   # some have no such module
    layout = Layout(options, indices, tuple(infos[i]["module"] for i in indices), tuple(shapes[i][0] for i in indices),
                    tuple(strides[i] for i in indices), 0, strides[-1], 1, False, False, True)
    backbone = TimmBackbone(net, layout)
    features, *outputs = _outputs(backbone, lambda: net.forward_features(x))
    try:
        pooled = net.forward_head(features, pre_logits=True)
        layout = layout._replace(head=pooled is not features and pooled.numel() == features.numel())
    except Exception:   # it has no head without pooling
        pooled = features
    if layout.head:
        features = pooled
    layout = layout._replace(channels_last=any(each.ndim == 4 and each.shape[1:3] == shapes[i][1:]
                                               for each, i in zip((features, *outputs), (-1, *indices, -1))))
    features = map_of(features, x.shape[2:], [strides[-1]], layout.channels_last)
    layout = layout._replace(feature_channels=features.shape[1])
    layout = layout._replace(multiple=_multiple(net, layout))
    backbone = TimmBackbone(net, layout)
    *_, last, pooled = _outputs(backbone, lambda: backbone.features(x))
    return layout._replace(separate=last is not pooled)


def _chosen(strides: Sequence[int]) -> tuple[int, ...]:
    """The indices of the stages: at most five, of stride 4 or more; of blocks with one stride a quarter, half, three quarters and
    all of the way."""
    usable = [i for i, stride in enumerate(strides) if stride >= FINEST]
    if len(usable) > MOST and len(set(strides)) == 1:
        return tuple(round(len(usable) * part / 4) - 1 for part in (1, 2, 3, 4))
    return tuple(usable[-MOST:])


def _outputs(backbone: TimmBackbone, call: Callable[[], Tensor]) -> list[Tensor]:
    """The result of a call, and the outputs of the stage modules during it."""
    outputs: list[Tensor] = []
    handles = [module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
               for module in backbone.stage_modules]
    try:
        return [call(), *outputs]
    finally:
        for handle in handles:
            handle.remove()


def _multiple(net: Any, layout: Layout) -> int:
    """The smallest multiple with which the grids are ceil(side / stride) at any size. Small images may need a greater one."""
    coarsest = max(layout.strides)
    reason: Exception = ArgumentError(f"its stages {', '.join(layout.modules)} do not have the size of the image over their "
                                      f"strides {', '.join(map(str, layout.strides))}")
    for multiple in (1, coarsest, 2 * coarsest):
        try:
            if _fits(net, layout._replace(multiple=multiple)):
                return multiple
        except Exception as error:   # a network may refuse sides that are no multiple, or are too small
            reason = error
    raise reason


def _fits(net: Any, layout: Layout) -> bool:
    """Whether the grids are ceil(side / stride) at any size, in the stages and in the outputs of their modules."""
    backbone, coarsest = TimmBackbone(net, layout), max(layout.strides)
    for size in ((3 * coarsest, 4 * coarsest), (3 * coarsest + 1, 4 * coarsest - 1), _SMALL):
        x = torch.empty(1, 3, *size)
        features, *outputs = _outputs(backbone, partial(backbone.features, x))
        stages = [*backbone.stages(x), features]
        found = [tuple(each.shape[1:]) for each in (*stages, *(backbone.as_map(output, size) for output in outputs))]
        expected = [(channels, *(ceil(side, stride) for side in size)) for channels, stride in zip(
            (*layout.channels, layout.feature_channels), (*layout.strides, layout.feature_stride))]
        if found != [*expected, *expected]:
            return False
    return True
