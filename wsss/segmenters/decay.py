"""Groups of trained parameters of which some do not decay, as transformers are trained."""

from collections.abc import Iterator

from torch import nn

from wsss.segmenters.segmenter import Segmenter


def decay_groups(net: Segmenter, head_lr_mult: float) -> list[tuple]:
    """The parameters of the backbone, then those of the decoder, each with and without weight decay, as
    `wsss.segmenters.method.SegmenterMethod.groups`. Norms and tables of positions do not decay."""
    backbone, kept = set(net.backbone.parameters()), set(_without_decay(net))
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for inside, factor in ((True, 1.0), (False, head_lr_mult)):
        for decays in (True, False):
            groups[factor, decays, inside] = [parameter for parameter in net.parameters() if parameter.requires_grad and
                                              (parameter in backbone, parameter not in kept) == (inside, decays)]
    return [(parameters, factor, decays) for (factor, decays, _), parameters in groups.items() if parameters]


def _without_decay(net: nn.Module) -> Iterator[nn.Parameter]:
    """The scale and shift of norm layers of any kind, and what timm's networks name themselves: tables of positions, tokens."""
    for module in net.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            parameters = dict(module.named_parameters())
            yield from (parameters[name] for name in names() if name in parameters)
