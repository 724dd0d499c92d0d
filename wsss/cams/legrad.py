"""LeGrad: Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity", arXiv
2404.03214, ICCV 2025."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod, Features
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class LeGrad(CamMethod):
    """LeGrad, for transformers: M(j) = sum_l mean_hi ReLU(dy_l / dA_l(h, i, j)), with A_l the attention of block l from token i
    to cell j in head h, and y_l the logit that the class would have if block l were the last one: the classifier on the output
    of the block after the network's last norm. The gradient is not multiplied by the attention. If none is positive, as can be
    with few blocks, the map is 0 everywhere.

    The authors' code for CLIP averages all tokens before the norm and compares the result, at length 1, with a text; here the
    norm comes first and the classifier pools as always, the cells alone. Its default are the last two blocks.

    first_block: index of the first block that counts, from 0; negative ones count from the end. 0: all blocks.
    """

    first_block: int

    title: ClassVar[str] = "LeGrad"
    gradients: ClassVar[bool] = True

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the cells; not negative. One forward pass, and K backward passes through each block
        and no further, in float32; `features_of` is not used."""
        import torch

        from wsss.cams.attention import of_cells
        from wsss.cams.gradients import differentiable

        size = (pair.shape[2], pair.shape[3])
        with differentiable(pair) as x:
            blocks = net.backbone.blocks(x)[self.first_block:]
            maps = x.new_zeros(len(x), len(classes), *blocks[-1].features.shape[2:])
            for attention, features in blocks:
                logits = net.head(features)
                for k, index in enumerate(classes):
                    gradient, = torch.autograd.grad(logits[:, index].sum(), attention, retain_graph=True)   # (B, heads, n, n)
                    maps[:, k] += of_cells(net, gradient.relu_().mean((1, 2)), size)
        return maps

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the network has no attention between all cells, or not this block."""
        from wsss.cams.attention import number_of_blocks
        from wsss.classifiers.classifier import require_head

        require_head(net, "LeGrad")
        count = number_of_blocks(net, "LeGrad")
        if not -count <= self.first_block < count:
            raise ConfigError(f"cam.first_block={self.first_block} does not exist: {net.backbone.name} has {count} blocks, "
                              f"expected a number from {-count} to {count - 1}")

    def scale_weight(self, pair: Tensor) -> float:
        # the gradient of a mean over the cells shrinks with their number, as in Grad-CAM
        return float(pair.shape[2] * pair.shape[3])


Method = LeGrad
