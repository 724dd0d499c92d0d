"""The base of the networks of the CAM paper and of F-CAM: torchvision's up to a layer, and convolutions after it. No torch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.errors import ConfigError
from wsss.networks.backbones.torchvision_weights import TorchvisionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone
    from wsss.networks.backbones.chain import Added


@dataclass
class AddedMethod(TorchvisionMethod, ABC):
    """A network of torchvision up to a layer, and 3x3 convolutions with ReLU after it, for which there are no ImageNet weights:
    they start at random and learn at the rate of the head (`wsss.networks.backbones.chain`).

    Raises ConfigError for impossible added layers.
    """

    added: list[int]   # output channels of each convolution; []: none
    groups: int        # of each
    dropout: float     # before each, in training

    last: ClassVar[int]                # channels before the added layers
    kept: ClassVar[tuple[str, ...]]    # torchvision's layers before them, without "features."

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ConfigError(f"backbone.groups={self.groups} is not possible: expected at least 1")
        if any(channels < 1 or channels % self.groups for channels in self.added) or self.last % self.groups:
            raise ConfigError(f"backbone.added={self.added} is not possible with backbone.groups={self.groups}: expected numbers "
                              f"of channels that are multiples of the groups, as must be the {self.last} of {self.name}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"backbone.dropout={self.dropout} is not possible: expected a share in [0, 1)")

    def check_stride(self, stride: int) -> None:
        """Raise ConfigError unless the stride is 16 or 8."""
        if stride not in (16, 8):
            raise ConfigError(f"backbone.output_stride={stride} is not possible with {self.name}: expected 16 or 8")

    def layers_after(self) -> Added:
        from wsss.networks.backbones.chain import Added

        return Added(self.added, self.groups, self.dropout)

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's names are features.0.weight or Mixed_5b.branch1x1.conv.weight; here they begin with `layers.`."""
        kept = [(name, name.removeprefix("features."), value) for name, value in tensors.items()]
        return {f"layers.{name}": value for _, name, value in kept if name.split(".")[0] in self.kept}

    def unpublished(self, backbone: Backbone) -> dict[str, Tensor]:
        return {name: value for name, value in backbone.state_dict().items() if name.startswith("layers.added.")}
