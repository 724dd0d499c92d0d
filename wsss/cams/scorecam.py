"""Score-CAM: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR workshop
2020."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.cams.method import CamMethod, Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class ScoreCAM(CamMethod):
    """Score-CAM (section 3): ReLU(sum_k a_k A_k), with A_k the features and a the softmax over the channels k of the class's
    logit for the image times the mask of k: A_k enlarged to the image (bilinear) and scaled to [0, 1] by its minimum and maximum.

    Without gradients, but it costs D + 1 forward passes of an image and as many of its mirror image at each scale, for all
    classes together: 10 248 small ones for the 1280 channels of tf_efficientnet_lite0 and 4 scales.

    The paper subtracts the logit of a baseline image from all scores, which a softmax cancels. The mask of a channel of one value
    is 0. Differs from others: torchcam scales A_k before it enlarges it; the authors' code weights by the class's probability,
    without a softmax over the channels, and leaves out channels of one value; pytorch-grad-cam
    enlarges with aligned corners.

    definition: "paper", or "fcam" for that of F-CAM's code (a fork of torchcam): A_k is scaled to [0, 1] before all else, also in
        the sum, and a_k is the class's probability (softmax over the classes), without a softmax over the channels.
    batch_size: masked copies in one forward pass; it changes the maps by rounding only, and is not recorded.
    """

    definition: str
    batch_size: int

    title: ClassVar[str] = "Score-CAM"
    unrecorded: ClassVar[Mapping[str, Any]] = {"batch_size": 16}

    def __post_init__(self) -> None:
        self.require(self.definition in ("paper", "fcam"), "definition", "paper or fcam")
        self.require(self.batch_size >= 1, "batch_size", "at least 1")

    def copies(self, pair: Tensor) -> Iterable[tuple[float, Tensor]]:
        """What the mask of a channel is multiplied by, and what is added then, for each masked copy of the image and its mirror
        image; the second (2, 1 or 3, H, W) or with sides of 1. The score of a channel is the mean over the copies."""
        return [(1.0, pair.new_zeros(2, 1, 1, 1))]

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the features; not negative."""
        import torch

        from wsss.cams.masking import masked_scores
        from wsss.resize import resize

        fcam, activations = self.definition == "fcam", features_of(pair)   # (2, D, h, w)
        activations = _scaled(activations) if fcam else activations
        scores = activations.new_zeros(*activations.shape[:2], len(classes))
        count = 0
        for factor, noise in self.copies(pair) if classes else ():
            for i, image in enumerate(pair):
                def masks(start: int, stop: int, i: int = i, factor: float = factor, noise: Tensor = noise) -> Tensor:
                    large = resize(activations[i, start:stop, None], pair.shape[2:])   # (n, 1, H, W)
                    return (large if fcam else _scaled(large)) * factor + noise[i]

                scores[i] += masked_scores(net, features_of, image, masks, activations.shape[1], classes, self.batch_size, fcam)
            count += 1
        weights = scores / max(1, count)
        return torch.einsum("bdk,bdhw->bkhw", weights if fcam else weights.softmax(1), activations).relu_()

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the logits are not those of the features."""
        from wsss.classifiers.classifier import require_head

        require_head(net, self.title)

    # `scale_weight` is 1: the map is a mean of features, whose size does not depend on the number of cells


def _scaled(maps: Tensor) -> Tensor:
    """Maps (..., h, w), each scaled to [0, 1] by its minimum and maximum; one of a single value becomes 0."""
    import torch

    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    flat = high - low <= 1e-5 * high.abs()   # what rounding leaves of a channel of one value is no mask
    return torch.where(flat, 0, (maps - low) / (high - low))


Method = ScoreCAM
