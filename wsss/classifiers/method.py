"""The base of the methods that build and train classifiers. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.families import BaseMethod

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier
    from wsss.networks.backbones.backbone import Backbone


@dataclass
class ClassifierMethod(BaseMethod, ABC):
    """A kind of classifier and its training. Its settings are in the weights file, so that the network can be built again."""

    images_per_sample: ClassVar[int] = 1   # that go through the network for one id: `members` that `mix` does not join
    head: ClassVar[tuple[str, int]] = ("classifier.weight", 0)   # a parameter by which a file of its network is known, and which
    #                                        of its dimensions is that of the classes
    official_file: ClassVar[str] = ""      # of its own official code, if that has another network than IRN and LPCAM

    @property
    def has_taps(self) -> bool:
        """Whether the network has `tap_weights` in place of `class_weights`."""
        return False

    @abstractmethod
    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        """The classifier on a backbone; the head has random weights from torch's global generator."""

    @abstractmethod
    def losses(self, net: Classifier, images: Tensor, labels: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """The losses of a part of a training batch, as means over its images; "loss" is the one that is minimised.

        Args:
            net: in training mode, under the autocast of the run's precision.
            images, labels, more: what `mix` returned, stacked: by default (B, 3, S, S) normalised and (B, C) float32, 0 or 1.
        """

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, C) to the probabilities that an image shows the classes."""
        return logits.sigmoid()

    def groups(self, net: Classifier, head_lr_mult: float) -> list[tuple]:
        """The groups of trained parameters: a list of them, the factor of the learning rate, and as a third value False if their
        weight does not decay. The first group has factor 1."""
        backbone, head = net.parameter_groups()
        return [(backbone, 1.0), (head, head_lr_mult)]

    def members(self, image_id: str, batch: Sequence[str], labels: Mapping[str, Sequence[int]],
                draws: np.random.Generator) -> tuple[str, ...]:
        """The ids of the images that make the sample of `image_id`, itself first: by default it alone.

        `batch`: the ids of its batch. `labels`: the classes of all images, 0-based. `draws`: of this sample in this epoch.
        """
        return (image_id,)

    def mix(self, samples: Sequence[tuple[Tensor, Tensor]], draws: np.random.Generator) -> tuple[Tensor, ...]:
        """The tensors of a sample from the image (3, S, S) and the label (C,) of each of its `members`, after augmentation; by
        default those of the first."""
        return samples[0]

    def check(self, labels: Mapping[str, Sequence[int]]) -> None:
        """Check the classes of the training images before any work. Raises DataError if the method cannot learn from them."""

    def own(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """The state dict of its network from a file of its own official code; that of any other file is unchanged. `where` names
        the file in messages. Raises WeightsError if such a file is not complete."""
        return dict(tensors)

    def official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The content of `official_file` of its own official code, from the state dict of its network."""
        return dict(state)

    def no_official(self, backbone: Mapping[str, Any]) -> str:
        """Why its network on a backbone of these facts is not that of its own official code; empty if it is."""
        return ""

    def new(self, backbone: Backbone, n_classes: int, seed: int = 0) -> Classifier:
        """As `build`, with random weights that depend only on `seed`; the global random state is not changed."""
        from wsss.seeding import seeded

        with seeded(seed):
            net = self.build(backbone, n_classes)
        net.facts = {"classifier": self.facts}
        return net
