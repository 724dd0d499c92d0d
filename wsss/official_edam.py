"""The parameter names of the official EDAM network (`network/resnet38_EDAM_cls.py`, allenwu97/EDAM, 8952f84), whose transformers
are modules of their own; ours have the classes as the first dimension of each weight."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wsss.classifiers.collaborative import positions
from wsss.errors import WeightsError

# Our layer of the transformers -> the official one of each class, and its weight and bias
_BLOCK = "trans_list.{}.0."
_LAYERS = {"query": ("attention.linear_layers.0", "weight", "bias"), "key": ("attention.linear_layers.1", "weight", "bias"),
           "value": ("attention.linear_layers.2", "weight", "bias"), "mix": ("attention.output_linear", "weight", "bias"),
           "expand": ("feed_forward.w_1", "weight", "bias"), "shrink": ("feed_forward.w_2", "weight", "bias"),
           "norm1": ("input_sublayer.norm", "a_2", "b_2"), "norm2": ("output_sublayer.norm", "a_2", "b_2")}
_SHARED = {"mask_layer.weight": "mask_layer.weight", "reduction.weight": "d_d.weight", "segments": "embedding.segment.weight"}
_OUTPUT, _POSITIONS = "fc_list.{}.weight", "embedding.position.pe"   # (1, d, 1, 1), and a constant (1, cells, d)
_PARALLEL = "module."   # torch's DataParallel


def own_edam(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our names of a state dict of the official network; any other one is unchanged. `where` names the file in messages.

    Raises WeightsError if a parameter of a class is missing, or has another shape than that of the other classes.
    """
    named = {name.removeprefix(_PARALLEL): value for name, value in tensors.items()}
    classes = {int(found[1]) for name in named if (found := re.match(r"trans_list\.(\d+)\.", name))}
    if not classes:
        return dict(tensors)

    def stacked(pattern: str) -> Tensor:
        try:
            return torch.stack([named.pop(pattern.format(index)) for index in range(len(classes))])
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{where} is a network of EDAM, but {pattern.format('N')} is not there for each of {len(classes)} "
                               f"classes in one shape ({error}). Use a file with the complete network") from error
    state = {f"transformers.{ours}.{name}": stacked(f"{_BLOCK}{layer}.{theirs}")
             for ours, (layer, *both) in _LAYERS.items() for name, theirs in zip(("weight", "bias"), both, strict=True)}
    state["outputs"] = stacked(_OUTPUT).flatten(2)
    named.pop(_POSITIONS, None)
    own = {theirs: ours for ours, theirs in _SHARED.items()}
    return {**state, **{own.get(name, f"backbone.{name}"): value for name, value in named.items()}}


def official_edam(state: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The state dict of the official network, which loads it with `strict=True`, from ours. `side`: of the grid of its table."""
    found = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    found |= {theirs: state[ours] for ours, theirs in _SHARED.items()}
    for index, output in enumerate(state["outputs"]):
        found[_OUTPUT.format(index)] = output[..., None, None]
        found |= {f"{_BLOCK.format(index)}{layer}.{theirs}": state[f"transformers.{ours}.{name}"][index].clone()
                  for ours, (layer, *both) in _LAYERS.items() for name, theirs in zip(("weight", "bias"), both, strict=True)}
    return {**found, _POSITIONS: positions(side, side, side, state["segments"]).float()[None]}
