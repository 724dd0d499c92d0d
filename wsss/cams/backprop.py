"""The gradient of a class with respect to the image: Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image
Classification Models and Saliency Maps", ICLR workshop 2014."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod, Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class Backprop(CamMethod):
    """Backprop (section 3.1): max_c |dy/dx_c|, with y the class's logit and x_c the colour channels of the image. It has no
    settings.

    x is the normalised image; the paper only subtracts a mean, and the factors of its three channels differ by 2 percent.
    """

    title: ClassVar[str] = "Backprop"
    gradients: ClassVar[bool] = True

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, at the full resolution (H, W); not negative. One forward pass and K backward passes through the
        whole network, in float32; `features_of` is not used."""
        from wsss.cams.gradients import image_gradients

        return image_gradients(net, pair, classes).abs().amax(2)

    def scale_weight(self, pair: Tensor) -> float:
        # the gradient of a mean over the cells shrinks with their number: without this the coarsest scale outweighs the others
        return float(pair.shape[2] * pair.shape[3])


Method = Backprop
