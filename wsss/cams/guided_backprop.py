"""Guided backpropagation: Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop 2015."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.backprop import Backprop
from wsss.cams.method import Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class GuidedBackprop(Backprop):
    """Guided backpropagation: max_c |dy/dx_c| as in `Backprop`, but each ReLU passes on only positive gradients. It
    has no settings.

    The paper shows the gradient of the colour channels itself; one value per pixel is made of it as by Simonyan et al. Only for
    networks with ReLUs (or ReLU6); other activations have their own gradients.
    """

    title: ClassVar[str] = "Guided backprop"

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, at the full resolution (H, W); not negative. One forward pass and K backward passes through the
        whole network, in float32; `features_of` is not used."""
        from wsss.cams.guided import guided_gradients

        return guided_gradients(net, pair, classes).abs().amax(2)

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the network has no ReLU."""
        from wsss.cams.guided import check_guided

        check_guided(net, "cam=guided_backprop")


Method = GuidedBackprop
