"""Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod, Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class AttentionRollout(CamMethod):
    """Attention rollout (section 4), for transformers: the product of (A_l + I) / 2 over all blocks l, with A_l the attention of
    block l, averaged over its heads, and I for the residual connection; of it the mean of the rows of the cells, which are what
    the classifier pools. It has no settings.

    It does not depend on the class: all classes of an image have the same map. It is nowhere 0. Others show the row of the class
    token, which the classifiers here do not read.
    """

    title: ClassVar[str] = "Attention rollout"
    gradients: ClassVar[bool] = True   # for float32 and the weights as trained alone

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the cells; positive. One forward pass, in float32; `features_of` is not used."""
        import torch

        from wsss.cams.attention import of_cells
        from wsss.cams.gradients import differentiable

        size = (pair.shape[2], pair.shape[3])
        with differentiable(pair) as x, torch.no_grad():
            blocks = net.backbone.blocks(x)
            cells = blocks[-1].features[0, 0].numel()
            rows = x.new_zeros(len(x), blocks[-1].attention.shape[-1])   # (B, n), after the class token and registers the cells
            rows[:, -cells:] = 1 / cells
            for block in reversed(blocks):
                rows = (rows + torch.einsum("bi,bij->bj", rows, block.attention.mean(1))) / 2
            return of_cells(net, rows, size)[:, None].repeat(1, len(classes), 1, 1)

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the network has no attention between all cells."""
        from wsss.cams.attention import number_of_blocks
        from wsss.classifiers.classifier import require_head

        require_head(net, "Attention rollout")
        number_of_blocks(net, "Attention rollout")

    def scale_weight(self, pair: Tensor) -> float:
        return float(pair.shape[2] * pair.shape[3])   # the values of an image sum up to at most 1


Method = AttentionRollout
