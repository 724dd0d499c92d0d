"""The settings of the network, `model.`, and the digest of its initial weights. Does not import torch."""

from dataclasses import dataclass
from enum import Enum

from wsss.errors import ConfigError
from wsss.files import user_path
from wsss.networks.backbones.packaged import FILE, comes_with_weights, packaged_weights
from wsss.networks.facts import PRETRAINED, file_sha256


class Backbone(Enum):
    efficientnet_lite0 = "efficientnet_lite0"
    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    tiny = "tiny"                     # for tests; too small to learn much


@dataclass
class ModelSettings:
    """`model.`: the network of the classifier. The values are in `conf/config.yaml`."""

    backbone: Backbone
    pretrained: bool | None           # start from ImageNet weights; null: if they are installed, without a download
    weights: str | None               # these weights as a local file, without a download

    @property
    def starts_from_weights(self) -> bool:
        asked = comes_with_weights(self.backbone.value) if self.pretrained is None else self.pretrained
        return asked or self.weights is not None

    def __str__(self) -> str:
        """The network and its initial weights, for the first line of a run."""
        return f"{self.backbone.value} from {'ImageNet weights' if self.starts_from_weights else 'scratch'}"

    @property
    def norm(self) -> str:
        """Frozen batch norm with ImageNet weights; from scratch group norm, which does not depend on the number of ranks."""
        return "frozen_batch" if self.starts_from_weights else "group"


def weights_digest(model: ModelSettings) -> str:
    """The digest of the ImageNet weights: the SHA-256 of a local or installed file; for torchvision's the file name, which
    contains the start of its SHA-256 and is checked against it on reading."""
    name = model.backbone.value
    if model.weights is None:
        return file_sha256(packaged_weights()) if comes_with_weights(name) else _pretrained_name(name)
    if not user_path(model.weights).is_file():
        wanted = FILE if comes_with_weights(name) else _pretrained_name(name)
        raise ConfigError(f"model.weights={model.weights!r} is not a file. Set it to {wanted} or a file with the parameter "
                          f"names of model.backbone={name}")
    return file_sha256(user_path(model.weights))


def _pretrained_name(backbone: str) -> str:
    """The name of torchvision's file; torchvision is imported only for a backbone not in `PRETRAINED`."""
    if backbone in PRETRAINED:
        return PRETRAINED[backbone]
    from wsss.networks.weights import pretrained_name

    return pretrained_name(backbone)
