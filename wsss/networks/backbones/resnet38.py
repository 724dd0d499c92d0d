"""The wide ResNet-38 of AffinityNet, SEAM and MCTformer: Wu et al., "Wider or Deeper", Pattern Recognition 2019, model A1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.errors import ConfigError
from wsss.networks.backbones.method import BackboneMethod, no_download

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone

LAYERS = ("conv1a", "b2", "b2_1", "b2_2", "b3", "b3_1", "b3_2", *(f"b4{end}" for end in ("", "_1", "_2", "_3", "_4", "_5")),
          "b5", "b5_1", "b5_2", "b6", "b7")


@dataclass
class ResNet38Method(BackboneMethod):
    """The network of AffinityNet's `network/resnet38d.py`, with stride 8. Its weights are only read from a file, `weights`: those
    of ImageNet with AffinityNet's names, or the classifier that it, SEAM or MCTformer trained from them.

    relu: whether the features are those after the last ReLU. frozen: further layers that are not trained if it starts from
    weights, as "b2_1".
    """

    relu: bool
    frozen: list[str]

    # networks from before there were these settings
    unrecorded: ClassVar[Mapping[str, Any]] = {**BackboneMethod.unrecorded, "relu": True, "frozen": []}

    @property
    def facts(self) -> dict[str, Any]:
        own = {"relu": self.relu, "frozen": self.frozen}
        return super().facts | {key: value for key, value in own.items() if value != self.unrecorded[key]}

    @property
    def name(self) -> str:
        return "resnet38"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.resnet38_layers import ResNet38

        return ResNet38(norm, relu=self.relu, frozen=self.frozen)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.frozen if name not in LAYERS]:
            raise ConfigError(f"backbone.frozen={self.frozen!r} is not possible: {unknown[0]} is no layer of {self.name}; "
                              f"expected names among {', '.join(LAYERS)}")

    def fetch(self) -> dict[str, Tensor]:
        raise no_download(self)

    def expected_file(self) -> str:
        return "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth (converted by convert_mxnet_to_torch of AffinityNet's network/resnet38d.py)"

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if not name.startswith("fc8")}


Method = ResNet38Method
