"""The base of the backbones with torchvision's layers and weights. Imports no torch."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.networks.backbones.method import BackboneMethod
from wsss.networks.facts import PRETRAINED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TorchvisionMethod(BackboneMethod, ABC):
    """A network of torchvision, `name`. Its ImageNet weights are torchvision's V1 file, from its cache or the internet, or a
    local file with the same parameter names (.pth, .pt or .safetensors)."""

    classifier: ClassVar[str]   # prefix of the parameters that the backbone lacks

    def fetch(self) -> dict[str, Tensor]:
        if self.name not in PRETRAINED:
            return super().fetch()
        from wsss.networks.weights import fetch_pretrained

        return fetch_pretrained(self.name)

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if not name.startswith(self.classifier)}

    def at_hand(self) -> bool:
        if self.weights is not None or self.name not in PRETRAINED:
            return True
        from wsss.networks.weights import pretrained_cache

        return pretrained_cache(self.name).is_file()

    def published(self) -> str:
        """The file name, which contains the start of its SHA-256 and is checked against it on reading."""
        return PRETRAINED.get(self.name, self.name)
