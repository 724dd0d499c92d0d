"""The network of EDAM (`wsss.classifiers.edam`): a mask for each class, and a transformer for each class over the masked features
of several images.

Official files: `network/resnet38_EDAM_cls.py`, `network/transformer.py`, `network/embedding/` (allenwu97/EDAM, 8952f84). The
transformer is that of BERT-pytorch (codertimo), from which `network/utils/` was taken.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, normalize, scaled_dot_product_attention

from wsss.classifiers.classifier import Classifier
from wsss.networks.backbones.backbone import Backbone

SEGMENTS = 5      # rows of the table that tells the images apart; official: embedding/segment.py. At most as many images
PERIOD = 10000.0  # official: embedding/position.py
NORM_EPS = 1e-6   # official: utils/layer_norm.py


class CollaborativeClassifier(Classifier):
    """The masks are a 3x3 convolution to C + 1 channels, the last one background, whose values in a cell are divided by their
    length and made positive. They multiply the features, reduced to `hidden` channels; these are the tokens of a class. Its
    transformer sees those of all images together; their mean over an image gives its logit of the class.

    Args:
        backbone: of the features.
        n_classes: C.
        hidden: channels of a token.
        heads: of the attention. feed_forward: channels between the two layers after it.
        dropout: in training, of the tokens, the attention and the outputs of the layers.
        side: cells of a side of the grid that positions refer to (`positions`).
    """

    def __init__(self, backbone: Backbone, n_classes: int, hidden: int, heads: int, feed_forward: int, dropout: float, side: int):
        super().__init__(backbone)
        self.n_classes, self.side, self.dropout = n_classes, side, dropout
        self.mask_layer = nn.Conv2d(backbone.feature_channels, n_classes + 1, 3, padding=1, bias=False)
        self.reduction = nn.Conv2d(backbone.feature_channels, hidden, 1, bias=False)
        self.segments = nn.Parameter(torch.empty(SEGMENTS, hidden))
        self.transformers = ClassTransformers(n_classes, hidden, heads, feed_forward, dropout)
        self.outputs = nn.Parameter(torch.empty(n_classes, 1, hidden))
        for weight in (self.mask_layer.weight, self.reduction.weight, self.segments, *self.outputs):
            nn.init.xavier_uniform_(weight)

    def class_masks(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to masks (B, C + 1, h, w) in [0, 1], background last; the squares of a cell sum to 1."""
        return normalize(self.mask_layer(features), dim=1).abs()

    def own_maps(self, features: Tensor) -> Tensor:
        """The masks of the classes, without that of the background."""
        return self.class_masks(features)[:, :-1]

    def collaborative_head(self, features: Tensor) -> Tensor:
        """Features (P, N, D, h, w) of N images each that are seen together, at most 5, to logits (P, N, C)."""
        groups, together, _, height, width = features.shape
        cells = features.flatten(0, 1)                                                          # (P N, D, h, w)
        masks = self.own_maps(cells).flatten(2)                                                 # (P N, C, hw)
        reduced = self.reduction(cells).flatten(2).transpose(1, 2)                              # (P N, hw, d)
        tokens = (masks[..., None] * reduced[:, None]).unflatten(0, (groups, together)).permute(2, 0, 1, 3, 4)
        places = positions(height, width, self.side, reduced).to(tokens.dtype)                  # (hw, d)
        tokens = tokens + places + self.segments[:together, None].to(tokens.dtype)              # (C, P, N, hw, d)
        seen = self.transformers(dropout(tokens, self.dropout, self.training).flatten(2, 3))    # (C, P, N hw, d)
        means = seen.unflatten(2, (together, height * width)).mean(3).flatten(1, 2)             # (C, P N, d)
        return (means @ self.outputs.transpose(1, 2))[..., 0].T.unflatten(0, (groups, together))

    def head(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to logits (B, C): each image alone (official: always in pairs, which need a partner)."""
        return self.collaborative_head(features[:, None])[:, 0]

    def new_parameters(self) -> list[nn.Parameter]:
        """Those with the learning rate of new layers: not of the transformers and the segments (`get_parameter_groups`)."""
        return [*self.mask_layer.parameters(), *self.reduction.parameters(), self.outputs]


class ClassTransformers(nn.Module):
    """One transformer block for each class, with its norms before the layers, computed together.

    The weights have the classes first. Each is drawn as that of a single block: xavier for matrices, torch's Linear for biases.
    """

    def __init__(self, n_classes: int, hidden: int, heads: int, feed_forward: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = ClassNorm(n_classes, hidden), ClassNorm(n_classes, hidden)
        self.query, self.key, self.value, self.mix = (ClassLinear(n_classes, hidden, hidden) for _ in range(4))
        self.expand, self.shrink = ClassLinear(n_classes, hidden, feed_forward), ClassLinear(n_classes, feed_forward, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (C, P, T, d) of C classes and P groups, to the same shape; those of a class and group see each other."""
        x = tokens.flatten(1, 2)                                                                # (C, P T, d)
        x = x + self._drop(self.mix(self._attention(self.norm1(x), tokens.shape)))
        widened = self._drop(gelu(self.expand(self.norm2(x)), approximate="tanh"))
        x = x + self._drop(self.shrink(widened))
        return self._drop(x).view(tokens.shape)

    def _attention(self, x: Tensor, shape: torch.Size) -> Tensor:
        def split(layer: nn.Module) -> Tensor:   # (C P, heads, T, d / heads)
            return layer(x).view(shape).flatten(0, 1).unflatten(2, (self.heads, -1)).transpose(1, 2)
        share = self.dropout if self.training else 0.0
        found = scaled_dot_product_attention(split(self.query), split(self.key), split(self.value), dropout_p=share)
        return found.transpose(1, 2).reshape(x.shape)

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class ClassLinear(nn.Module):
    """A linear layer for each class: `weight` (C, outputs, inputs), `bias` (C, outputs)."""

    def __init__(self, n_classes: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(n_classes, outputs).uniform_(-1, 1) / math.sqrt(inputs))
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """(C, n, inputs) to (C, n, outputs)."""
        return torch.baddbmm(self.bias[:, None], x, self.weight.transpose(1, 2))


class ClassNorm(nn.Module):
    """The layer norm of BERT-pytorch for each class: the deviation is that of a sample, and `NORM_EPS` is added to it."""

    def __init__(self, n_classes: int, hidden: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_classes, hidden))
        self.bias = nn.Parameter(torch.zeros(n_classes, hidden))

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight[:, None] * (x - mean) / (deviation + NORM_EPS) + self.bias[:, None]


def positions(height: int, width: int, side: int, like: Tensor) -> Tensor:
    """The codes of the cells of a grid, (height width, d) float64 on the device of `like` (..., d), in row-major order.

    The code of number n has the sine and the cosine of n / 10000^(2i / d) in its channels 2i and 2i + 1. On a grid (side, side)
    the number of a cell is its index (official: embedding/position.py, whose table is for 46 x 46 cells only and in float32). A
    grid of another size is laid over that one, and the number of a cell is that at its centre, which need not be whole.
    """
    rows, columns = ((torch.arange(cells, device=like.device, dtype=torch.float64) + 0.5) * side / cells - 0.5
                     for cells in (height, width))
    numbers = (rows[:, None] * side + columns).flatten()                                        # (hw,)
    channels = like.shape[-1]
    speeds = torch.arange(0, channels, 2, device=like.device, dtype=torch.float64).mul(-math.log(PERIOD) / channels).exp()
    angles = numbers[:, None] * speeds                                                          # (hw, d / 2)
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
