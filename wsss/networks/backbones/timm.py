"""Any network of timm by its name: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.errors import ConfigError
from wsss.networks.backbones.method import STRIDE, BackboneMethod
from wsss.networks.backbones.packaged import FILE, NAME, packaged_weights
from wsss.networks.facts import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone
    from wsss.networks.backbones.timm_layers import Layout


@dataclass
class TimmMethod(BackboneMethod):
    """A network of timm (`wsss.networks.backbones.timm_layers.TimmBackbone`).

    Its ImageNet weights are timm's, from the cache of Hugging Face or the internet, or a local file with the names of timm or of
    the network's authors, which timm converts. Those of tf_efficientnet_lite0 are installed with this project.

    Raises ConfigError if timm has no such network, cannot give it the stride or drop its paths, or if it cannot be a backbone.
    """

    network: str                # a name of timm.list_models(), or one with the tag of weights of timm.list_pretrained()
    output_stride: int | None   # of the features; null: 16 where timm can change it, else the network's own
    drop_path: float | None     # stochastic depth: how often the last block is left out in training; null: timm's value

    unrecorded: ClassVar[dict[str, Any]] = {**BackboneMethod.unrecorded, "drop_path": None}   # older weights files do not name it

    def __post_init__(self) -> None:
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ConfigError(f"backbone.drop_path={self.drop_path} is not possible: expected null or a share in [0, 1)")
        if not (self._packaged and self.output_stride in (None, STRIDE) and self.drop_path is None):   # a plan without torch
            self._layout()

    @property
    def facts(self) -> dict[str, Any]:
        """As of every method, and the drop path if it is not timm's: a training depends on it."""
        return {**super().facts, **({} if self.drop_path is None else {"drop_path": self.drop_path})}

    @property
    def name(self) -> str:
        return self.network

    @property
    def _packaged(self) -> bool:
        return self.network == NAME

    def remark(self) -> str:
        if self.output_stride is not None or self._packaged or (stride := self._layout().feature_stride) == STRIDE:
            return ""
        return f"{self.network} has features at stride {stride}: timm cannot change its stride"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.timm_networks import timm_backbone

        return timm_backbone(self.network, self.output_stride, norm, self.drop_path)

    def fetch(self) -> dict[str, Tensor]:
        if self._packaged:
            from wsss.networks.weights import read_tensors

            return read_tensors(packaged_weights())
        from wsss.networks.backbones.timm_weights import fetch

        self.published()   # raises ConfigError if there are none
        return fetch(self.network)

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from wsss.networks.backbones.timm_weights import converted, timm_names

        where = self.weights or "the ImageNet weights"
        if self._packaged:
            named = timm_names(tensors, where)
        else:
            named = converted(tensors, self.network, self._layout().options, where)
        return {f"net.{name}": value for name, value in named.items()}

    def at_hand(self) -> bool:
        if self.weights is not None or self._packaged:
            return True
        from wsss.networks.backbones.timm_weights import is_cached

        return is_cached(self.network)

    def published(self) -> str:
        """The SHA-256 of the installed file, else timm's name with the tag of the weights."""
        if self._packaged:
            return file_sha256(packaged_weights())
        from wsss.networks.backbones.timm_weights import tagged_name

        if (name := tagged_name(self.network)) is None:
            raise ConfigError(f"timm has no ImageNet weights of backbone.network={self.network}: set backbone.pretrained=false, "
                              "give a file by backbone.weights=FILE, or choose a network of timm.list_pretrained()")
        return name

    def expected_file(self) -> str:
        return FILE if self._packaged else f"a weights file of {self.network} by timm"

    def _layout(self) -> Layout:
        from wsss.networks.backbones.timm_networks import measured

        return measured(self.network, self.output_stride, self.drop_path)


Method = TimmMethod
