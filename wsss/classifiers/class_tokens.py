"""The networks of MCTformer (`wsss.classifiers.mctformer`): a vision transformer with a token for each class.

Official file: `models.py` (MCTformerV1, MCTformerV2).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsss.classifiers.classifier import Classifier, headless
from wsss.errors import ConfigError
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.timm_layers import TimmBackbone, has_attention, with_attention


class Attended(NamedTuple):
    """What one pass through the network gives to its maps. Attention is after its softmax, the mean over the heads.

    Attributes:
        features: (B, D, h, w), the tokens of the cells.
        of_classes: (B, K, h w), from the tokens of the classes to the cells, the sum over the last blocks.
        of_cells: (B, h w, h w), from cell to cell, the sum over all blocks.
    """

    features: Tensor
    of_classes: Tensor
    of_cells: Tensor


class ClassTokens(Classifier):
    """A ViT with a token for each class in place of its own. The logit of a class is the mean of the values of its token after
    the last block; as in the official code, the network's last norm is left out.

    `tokens`, `positions` (1, C, D): they start as copies of the ViT's class token and its position. All of the ViT is trained but
    these two and the last norm, which have no effect.
    """

    reads_features = False

    def __init__(self, backbone: Backbone, n_classes: int):
        super().__init__(backbone)
        net = _vision_transformer(backbone)
        self.tokens = nn.Parameter(net.cls_token.detach().repeat(1, n_classes, 1))
        self.positions = nn.Parameter(net.pos_embed.detach()[:, :1].repeat(1, n_classes, 1))
        for parameter in net.parameters():   # also the stem, which is not trained in other networks from ImageNet weights
            parameter.requires_grad_(True)
        for parameter in (net.cls_token, *net.norm.parameters()):
            parameter.requires_grad_(False)

    def both(self, x: Tensor, blocks: Sequence[nn.Module] | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), normalised, to the tokens after the last block: those of the classes, (B, C, D), and of the cells,
        (B, D, h, w). `blocks`: those of the network, or copies of them."""
        net = cast(Any, self.backbone).net
        cells = net.patch_embed(x)   # (B, h, w, D)
        cells = (cells + _resized(net.pos_embed[:, 1:], net.patch_embed.grid_size, cells.shape[1:3])).flatten(1, 2)
        tokens = net.norm_pre(net.pos_drop(torch.cat([(self.tokens + self.positions).expand(len(x), -1, -1), cells], dim=1)))
        for block in blocks or net.blocks:
            tokens = block(tokens)
        count = self.tokens.shape[1]
        return tokens[:, :count], self.backbone.as_map(tokens, (x.shape[2], x.shape[3]))

    @property
    def blocks_count(self) -> int:
        return len(cast(Any, self.backbone).net.blocks)

    def features(self, x: Tensor) -> Tensor:
        return self.both(x)[1]

    def head(self, features: Tensor) -> Tensor:
        raise headless(self, "This method")

    def forward(self, x: Tensor) -> Tensor:
        return class_logits(self.both(x)[0])

    def cell_maps(self, features: Tensor) -> Tensor | None:
        """The maps (B, C, h, w) of the classes by the features alone; None: there are none."""
        return None

    def attended(self, x: Tensor, classes: Sequence[int], last: int) -> Attended:
        """One pass of images (B, 3, H, W) without gradients, for maps of the `classes`. `last`: the number of the last blocks
        whose attention from the tokens of the classes counts. The attention of one block, (B, heads, n, n) for n tokens, is in
        memory at a time, and the sums."""
        net, count, seen = cast(Any, self.backbone).net, self.tokens.shape[1], 0
        of_classes: Any = 0
        of_cells: Any = 0

        def see(probabilities: Tensor) -> Tensor:
            nonlocal seen, of_classes, of_cells
            mean = probabilities.float().mean(1)   # (B, n, n)
            of_cells = of_cells + mean[:, count:, count:]
            if seen >= self.blocks_count - last:
                of_classes = of_classes + mean[:, list(classes), count:]
            seen += 1
            return probabilities
        with torch.no_grad():
            features = self.both(x, with_attention(net, see))[1]
        return Attended(features, of_classes, of_cells)


class ClassAndCellTokens(ClassTokens):
    """`ClassTokens` with `cells`, a 3x3 convolution of the tokens of the cells, whose mean over the cells are logits too."""

    def __init__(self, backbone: Backbone, n_classes: int):
        super().__init__(backbone, n_classes)
        self.cells = nn.Conv2d(backbone.feature_channels, n_classes, 3, padding=1)

    def cell_maps(self, features: Tensor) -> Tensor:
        return self.cells(features)

    def tap_weights(self) -> Tensor:
        return self.cells.weight


def class_logits(tokens: Tensor) -> Tensor:
    """Tokens of the classes (B, C, D) to logits (B, C)."""
    return tokens.mean(2)


def _vision_transformer(backbone: Backbone) -> Any:
    """timm's network of a backbone. Raises ConfigError if it is no ViT with one class token that has a position."""
    net = backbone.net if isinstance(backbone, TimmBackbone) else None
    if isinstance(net, VisionTransformer) and net.cls_token is not None and net.num_prefix_tokens == 1 and has_attention(net):
        cells = net.patch_embed.grid_size[0] * net.patch_embed.grid_size[1]
        if net.pos_embed is not None and net.pos_embed.shape[1] == 1 + cells and net.dynamic_img_size:
            return net
    raise ConfigError(f"classifier=mctformer_v1 and mctformer_v2 need a vision transformer of timm with one class token and an "
                      f"embedding of positions, {backbone.name} is none. Choose backbone=deit_small, backbone=deit_tiny, or "
                      "backbone=timm backbone.network=NAME with such a network")


def _resized(table: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """An embedding of positions (1, g0 g1, D) on a `grid` (g0, g1) at a `size` (h, w): (h, w, D), by the bicubic filter of the
    official code, which counts a tenth of a cell more (models.py, interpolate_pos_encoding). Unchanged at its own size."""
    values = table[0].unflatten(0, (grid[0], grid[1]))   # (g0, g1, D)
    if tuple(grid) == tuple(size):
        return values
    device = "cpu" if values.is_meta else values.device.type
    with torch.autocast(device, enabled=False):
        rows, columns = (_cubic(side, to).to(values) for side, to in zip(grid, size, strict=True))
        return torch.einsum("hi,wj,ijd->hwd", rows, columns, values)   # as a product: it is deterministic on a GPU, too


def _cubic(side: int, to: int) -> Tensor:
    """The matrix (to, side) float64 that resizes a column of `side` cells to `to`."""
    unit = torch.eye(side, dtype=torch.float64, device="cpu")[None, :, :, None]   # (1, side, side, 1): each cell on its own
    return F.interpolate(unit, scale_factor=((to + 0.1) / side, 1.0), mode="bicubic")[0, :, :, 0].T
