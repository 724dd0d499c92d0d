"""The base of the methods that build backbones. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.errors import ArgumentError, ConfigError, WeightsError
from wsss.families import BaseMethod, from_facts
from wsss.files import user_path
from wsss.networks.facts import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.networks.backbones.backbone import Backbone

NORMS = ("frozen_batch", "group")
STRIDE = 16   # of the features, where a network can have it; as in IRN and LPCAM (net/resnet50.py)


@dataclass
class BackboneMethod(BaseMethod, ABC):
    """A kind of backbone. Its further settings say which layers the network has."""

    pretrained: bool      # start from ImageNet weights
    weights: str | None   # these weights as a local file, without a download

    unrecorded: ClassVar[Mapping[str, Any]] = {"pretrained": False, "weights": None}   # they do not change the layers

    def __post_init__(self) -> None:
        """Raise ConfigError for an impossible setting."""

    @property
    def name(self) -> str:
        """The network, in messages."""
        return self.method

    @property
    def starts_from_weights(self) -> bool:
        return self.pretrained or self.weights is not None

    @property
    def norm(self) -> str:
        """Frozen batch norm with ImageNet weights; from scratch group norm, which does not depend on the size of a batch."""
        return "frozen_batch" if self.starts_from_weights else "group"

    def __str__(self) -> str:
        """The network and its initial weights, for the first line of a run."""
        return f"{self.name} from {self.weights or ('ImageNet weights' if self.pretrained else 'scratch')}"

    def new(self, norm: str | None = None, seed: int = 0) -> Backbone:
        """The network with random weights that depend only on `seed`; the global random state is not changed.

        norm "frozen_batch", for pretrained weights: batch norm with fixed statistics, its scale and shift trained, the stem not
        trained. "group", for training from scratch: group norm instead of batch norm, everything trained. None: what `pretrained`
        and `weights` say. Raises ArgumentError for an unknown norm.
        """
        from wsss.seeding import seeded

        norm = norm or self.norm
        if norm not in NORMS:
            raise ArgumentError(f"unknown norm {norm!r}; known: {', '.join(NORMS)}")
        with seeded(seed):
            backbone = self.build(norm)
        backbone.name, backbone.norm = self.name, norm
        backbone.facts = {**self.facts, "norm": norm}
        return backbone

    @abstractmethod
    def build(self, norm: str) -> Backbone:
        """The network with random weights from torch's global generator, on torch's default device."""

    def load(self, backbone: Backbone) -> None:
        """Load the ImageNet weights into a network of norm "frozen_batch": the file `weights` (.pth, .pt or .safetensors), or
        those of `fetch`.

        Raises WeightsError if they are not available, damaged, or of another network.
        """
        from wsss.networks.weights import fill, read_tensors

        if backbone.norm != "frozen_batch":
            raise WeightsError(f"ImageNet weights of {self.name} come with batch norm, the network has group norm: use "
                               "norm='frozen_batch' with them")
        tensors = self.fetch() if self.weights is None else read_tensors(self.weights)
        own = {**self.unpublished(backbone), **self.own(tensors)}
        fill(backbone, own, f"{self.weights or 'the ImageNet weights'} ({self.name})")

    def fetch(self) -> dict[str, Tensor]:
        """The ImageNet weights that are not given as a file. Raises WeightsError if there are none, or they cannot be read."""
        raise WeightsError(f"there are no ImageNet weights of backbone {self.name}: set backbone.pretrained=false and "
                           "train_irn.init=null, give a file by backbone.weights=FILE, or choose another backbone")

    def own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a weights file by the names of the backbone, without those of its classifier."""
        return tensors

    def unpublished(self, backbone: Backbone) -> dict[str, Tensor]:
        """The tensors of a new network that a weights file may lack: they stay as they are."""
        return {}

    def at_hand(self) -> bool:
        """Whether `load` needs no download."""
        return True

    def published(self) -> str:
        """What identifies the weights of `fetch`: a digest, or a name that has one meaning."""
        return self.name

    def expected_file(self) -> str:
        """The file that `weights` may name, in messages."""
        return self.published()

    def digest(self) -> str:
        """What identifies the initial weights; with `weights` the SHA-256 of the file. Raises ConfigError if it is missing."""
        if self.weights is None:
            return self.published()
        if not user_path(self.weights).is_file():
            raise ConfigError(f"backbone.weights={self.weights!r} is not a file. Set it to {self.expected_file()} or a file with "
                              f"the parameter names of {self.name}")
        return file_sha256(user_path(self.weights))


def no_download(method: BackboneMethod) -> WeightsError:
    """The error of a network whose weights are published, but not at an address from which they can be fetched."""
    return WeightsError(f"the weights of {method.name} cannot be downloaded from here: set backbone.weights=FILE, for a "
                        f"segmentation network train_seg.backbone.weights=FILE, to {method.expected_file()}")


def rebuilt(facts: dict[str, Any]) -> Backbone:
    """The network of `Backbone.facts`, with random weights.

    Raises ConfigError if there is no such method, TypeError if it does not have these settings.
    """
    layers = dict(facts)
    norm = layers.pop("norm")
    return from_facts("backbone", layers).new(norm)
