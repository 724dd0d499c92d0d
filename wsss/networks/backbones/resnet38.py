"""The wide ResNet-38 of AffinityNet, SEAM and MCTformer: Wu et al., "Wider or Deeper", Pattern Recognition 2019, model A1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.networks.backbones.method import BackboneMethod, no_download

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone


@dataclass
class ResNet38Method(BackboneMethod):
    """The network of AffinityNet's `network/resnet38d.py`, with stride 8. Its weights are only read from a file, `weights`: those
    of ImageNet with AffinityNet's names, or the classifier that it, SEAM or MCTformer trained from them."""

    @property
    def name(self) -> str:
        return "resnet38"

    def build(self, norm: str) -> Backbone:
        from wsss.networks.backbones.resnet38_layers import ResNet38

        return ResNet38(norm)

    def fetch(self) -> dict[str, Tensor]:
        raise no_download(self)

    def expected_file(self) -> str:
        return "ilsvrc-cls_rna-a1_cls1000_ep-0001.pth (converted by convert_mxnet_to_torch of AffinityNet's network/resnet38d.py)"

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if not name.startswith("fc8")}


Method = ResNet38Method
