"""The maps of MCTformer (`wsss.classifiers.mctformer`): Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic
Segmentation", CVPR 2022, sections 3.2 and 3.3. Official files: `models.py`, `engine.py` (generate_attention_maps_ms)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from wsss.cams.method import CamMethod, Features
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.class_tokens import Attended, ClassTokens
    from wsss.classifiers.classifier import Classifier


@dataclass
class MCTformerMaps(CamMethod):
    """The map of class c is R (A_c * P_c). A_c is the attention from the token of the class to the cells, the mean over the
    heads, summed over the last blocks. P_c is the ReLU of the convolution of the tokens of the cells, or 1 in a network without
    one (V1). R is the attention from cell to cell, the mean over the heads, summed over all blocks. The map of an image, the sum
    over its scales and mirror images, minus its least value, is divided by its range.

    With make_lpcam, P_c is the map of LPCAM at each scale ("we simply replace PatchCAM by LPCAM", its author in LPCAM issue 1).

    last_blocks: the number of the last blocks of A.
    refine: whether maps are multiplied by R.
    """

    last_blocks: int
    refine: bool

    title: ClassVar[str] = "MCTformer"
    gradients: ClassVar[bool] = True   # for float32 and the weights as trained alone
    merge: ClassVar[str] = "stretched"
    after_lpcam: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.require(self.last_blocks >= 1, "last_blocks", "at least 1")

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, on the grid of the cells; not negative. One forward pass, in float32, without
        `features_of`."""
        import torch

        from wsss.cams.gradients import differentiable

        network = cast("ClassTokens", net)   # of `check`
        with differentiable(pair) as x, torch.no_grad():
            attended = network.attended(x, classes, self.last_blocks)
            of_cells = network.cell_maps(attended.features)
            return self._joined(attended, None if of_cells is None else of_cells[:, list(classes)].relu())

    def refined(self, net: Classifier, pair: Tensor, maps: Tensor, classes: Sequence[int]) -> Tensor:
        import torch

        attended = cast("ClassTokens", net).attended(pair, classes, self.last_blocks)
        joined = self._joined(attended, torch.stack([maps, maps.flip(-1)]))
        return joined[0] + joined[1].flip(-1)

    def _joined(self, attended: Attended, of_cells: Tensor | None) -> Tensor:
        """The maps (B, K, h, w) from what a pass gives and the maps P (B, K, h, w)."""
        import torch

        maps, size = attended.of_classes, attended.features.shape[2:]
        device = "cpu" if maps.is_meta else maps.device.type
        with torch.autocast(device, enabled=False):   # of a caller
            if of_cells is not None:
                maps = maps * of_cells.float().flatten(2)
            if self.refine:
                maps = maps @ attended.of_cells.mT   # R from a cell to the cells that it sees
            return maps.unflatten(2, size)

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the network has no tokens of classes, or fewer blocks."""
        from wsss.classifiers.class_tokens import ClassTokens

        if not isinstance(net, ClassTokens):
            raise ConfigError(f"MCTformer's maps need a network with a token for each class, {type(net).__name__} has none. Set "
                              "classifier=mctformer_v2 backbone=deit_small, or choose another method, such as cam=cam")
        if self.last_blocks > net.blocks_count:
            raise ConfigError(f"cam.last_blocks={self.last_blocks} is not possible: {net.backbone.name} has {net.blocks_count} "
                              f"blocks, expected a number from 1 to {net.blocks_count}")


Method = MCTformerMaps
