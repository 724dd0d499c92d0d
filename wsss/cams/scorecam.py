"""Score-CAM: Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR workshop
2020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    without a softmax over the channels, and leaves out channels of one value; pytorch-grad-cam as here.

    batch_size: masked copies in one forward pass; it changes the maps by rounding only, and is not recorded.
    """

    batch_size: int

    title: ClassVar[str] = "Score-CAM"
    unrecorded: ClassVar[Mapping[str, Any]] = {"batch_size": 16}

    def __post_init__(self) -> None:
        self.require(self.batch_size >= 1, "batch_size", "at least 1")

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the features; not negative."""
        import torch

        from wsss.cams.masking import masked_logits
        from wsss.resize import resize

        def of(image: Tensor, features: Tensor) -> Tensor:
            def masks(start: int, stop: int) -> Tensor:
                large = resize(features[start:stop, None], image.shape[1:])   # (n, 1, H, W)
                low, high = large.amin((2, 3), keepdim=True), large.amax((2, 3), keepdim=True)
                flat = high - low <= 1e-5 * high.abs()   # what rounding leaves of a channel of one value is no mask
                return torch.where(flat, 0, (large - low) / (high - low))

            logits = masked_logits(net, features_of, image, masks, len(features), classes, self.batch_size)
            return torch.einsum("dk,dhw->khw", logits.softmax(0), features).relu_()
        return torch.stack([of(*each) for each in zip(pair, features_of(pair), strict=True)])

    # `scale_weight` is 1: the map is a mean of features, whose size does not depend on the number of cells


Method = ScoreCAM
