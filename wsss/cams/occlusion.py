"""Occlusion sensitivity: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsss.cams.method import CamMethod, Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class Occlusion(CamMethod):
    """Occlusion sensitivity (section 4.2): how much the class's logit falls, ReLU(y(x) - y(x occluded)), when a grey square is at
    a position of the image. Grey is the mean colour of the network's training images.

    The squares are centred on the cells of a grid over the image. Without gradients, but it costs a forward pass for each cell,
    of an image and of its mirror image at each scale, for all classes together. The paper shows the probability of the class
    itself at each position, which is low where the object is. captum averages,
    for each pixel, over all squares that cover it.

    size, stride: of the squares, and between their centres, in pixels of the network's input.
    batch_size: occluded copies in one forward pass; it changes the maps by rounding only, and is not recorded.
    """

    size: int
    stride: int
    batch_size: int

    title: ClassVar[str] = "Occlusion"
    unrecorded: ClassVar[Mapping[str, Any]] = {"batch_size": 16}

    def __post_init__(self) -> None:
        for key in ("size", "stride", "batch_size"):
            self.require(getattr(self, key) >= 1, key, "at least 1")

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, (2, K, ceil(H / stride), ceil(W / stride)); not negative."""
        import torch

        from wsss.cams.masking import masked_scores

        height, width = pair.shape[2:]
        rows, columns = -(-height // self.stride), -(-width // self.stride)

        def covered(cells: Tensor, side: int) -> Tensor:
            first = cells[:, None] * self.stride + (self.stride - self.size) // 2
            pixels = torch.arange(side, device=pair.device)
            return (pixels >= first) & (pixels < first + self.size)   # (n, side)

        def masks(start: int, stop: int) -> Tensor:
            cells = torch.arange(start, stop, device=pair.device)
            square = covered(cells // columns, height)[:, :, None] & covered(cells % columns, width)[:, None]
            return (~square).to(pair.dtype)[:, None]

        whole = net.head(features_of(pair))[:, list(classes)].float()   # (2, K)
        logits = torch.stack([masked_scores(net, features_of, image, masks, rows * columns, classes, self.batch_size)
                              for image in pair])                       # (2, cells, K)
        return (whole[:, None] - logits).relu_().mT.unflatten(2, (rows, columns))

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the logits are not those of the features."""
        from wsss.classifiers.classifier import require_head

        require_head(net, "Occlusion")

    def scale_weight(self, pair: Tensor) -> float:
        # squares of one size cover a smaller part of a larger image, so the mean over its cells changes less
        return float(pair.shape[2] * pair.shape[3])


Method = Occlusion
