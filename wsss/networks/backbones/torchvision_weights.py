"""The base of the backbones with torchvision's layers and weights. Imports no torch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.errors import WeightsError
from wsss.networks.backbones.method import BackboneMethod
from wsss.networks.facts import PRETRAINED

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class TorchvisionMethod(BackboneMethod, ABC):
    """A network of torchvision, `name`. Its ImageNet weights are torchvision's V1 file, from its cache or the internet, or a local
    file with the same parameter names (.pth, .pt or .safetensors)."""

    classifier: ClassVar[str]   # prefix of the parameters that the backbone lacks

    def load(self, backbone: Backbone) -> None:
        from wsss.networks.weights import fetch_pretrained, fill, read_tensors

        if backbone.norm != "frozen_batch":
            raise WeightsError(f"ImageNet weights of {self.name} come with batch norm, the network has group norm: use "
                               "norm='frozen_batch' with them")
        tensors, where = (fetch_pretrained(self.name), f"torchvision's {self.name} weights") if self.weights is None else (
            read_tensors(self.weights), self.weights)
        own = {name: value for name, value in tensors.items() if not name.startswith(self.classifier)}
        fill(backbone, own, f"{where} ({self.name})")

    def at_hand(self) -> bool:
        from wsss.networks.weights import pretrained_cache

        return self.weights is not None or pretrained_cache(self.name).is_file()

    def published(self) -> str:
        """The file name, which contains the start of its SHA-256 and is checked against it on reading."""
        if self.name in PRETRAINED:
            return PRETRAINED[self.name]
        from wsss.networks.weights import pretrained_name   # imports torchvision, which takes seconds

        return pretrained_name(self.name)
