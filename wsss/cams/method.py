"""The interface of the methods that make activation maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.plain import Classifier


class CamMethod:
    """A method of making activation maps. gradients: True if it needs gradients: it then gets a network in float32 with unfolded
    weights, and runs without inference mode."""

    gradients: ClassVar[bool] = False

    @abstractmethod
    def maps(self, net: Classifier, features_of: Callable[[Tensor], Tensor], pair: Tensor, classes: Sequence[int]) -> Tensor:
        """The maps of one scale, before normalisation.

        Args:
            net: the classifier, in evaluation mode.
            features_of: images (B, 3, H, W) to its features (B, D, h, w) in float32, computed in the run's precision.
            pair: (2, 3, H, W), an image and its mirror image, normalised.
            classes: K class indices, from 0; K may be 0.

        Returns:
            (2, K, h, w) float32, not mirrored back.
        """
