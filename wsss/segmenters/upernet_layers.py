"""The layers of UPerNet (`wsss.segmenters.upernet`), with the initial weights of mmsegmentation."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, layer_norm

from wsss.networks.backbones.backbone import Backbone
from wsss.resize import resize
from wsss.segmenters.segmenter import Segmenter

POOLED = 1, 2, 3, 6   # pixels of a side of the pooled maps
STAGES = 4            # the last ones of the backbone: a ResNet has its stem before them


class UPerNetSegmenter(Segmenter):
    """`head` on the last four stages; `auxiliary` on the stage before the last, only for training."""

    def __init__(self, backbone: Backbone, n_labels: int, width: int, auxiliary_width: int, dropout: float, swin: bool):
        super().__init__(backbone)
        backbone.requires_grad_(True)   # mmsegmentation trains the stem too
        channels = backbone.channels[-STAGES:]
        self.auxiliary_stage = max(len(channels) - 2, 0)
        self.norms = nn.ModuleList(map(StageNorm if swin else nn.Identity, channels))
        self.head = UPerHead(channels, width, n_labels, dropout)
        self.auxiliary = nn.Sequential(layer(channels[self.auxiliary_stage], auxiliary_width, 3),
                                       *_last(auxiliary_width, n_labels, dropout))
        if swin:
            _shift_all_windows(backbone)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._stages(x))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both heads, each on its own grid."""
        stages = self._stages(x)
        return self.head(stages), self.auxiliary(stages[self.auxiliary_stage])

    def _stages(self, x: Tensor) -> list[Tensor]:
        return [norm(stage) for norm, stage in zip(self.norms, self.backbone.stages(x)[-STAGES:], strict=True)]


class UPerHead(nn.Module):
    """Maps (B, channels[i], h_i, w_i), fine to coarse, to logits (B, L, h_0, w_0)."""

    def __init__(self, channels: tuple[int, ...], width: int, n_labels: int, dropout: float):
        super().__init__()
        self.pooled = nn.ModuleList(layer(channels[-1], width, 1) for _ in POOLED)
        self.bottleneck = layer(channels[-1] + len(POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(layer(each, width, 1) for each in channels[:-1])
        self.smooth = nn.ModuleList(layer(width, width, 3) for _ in channels[:-1])
        self.fuse = layer(len(channels) * width, width, 3)
        self.classifier = nn.Sequential(*_last(width, n_labels, dropout))

    def forward(self, stages: list[Tensor]) -> Tensor:
        size, coarse = stages[0].shape[2:], stages[-1]
        pooled = [resize(each(pool(coarse, side)), coarse.shape[2:]) for each, side in zip(self.pooled, POOLED)]
        maps = [self.bottleneck(torch.cat([coarse, *pooled], 1))]
        for lateral, stage in zip(reversed(self.lateral), reversed(stages[:-1])):   # the sums are not smoothed in between
            maps.insert(0, lateral(stage) + resize(maps[0], stage.shape[2:]))
        smooth = [each(stage) for each, stage in zip(self.smooth, maps)]
        return self.classifier(self.fuse(torch.cat([resize(each, size) for each in (*smooth, maps[-1])], 1)))


class StageNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps (B, D, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def pool(x: Tensor, side: int) -> Tensor:
    """Means of maps (B, D, h, w) over side x side cells of nearly equal size. The gradient of torch's function is not
    deterministic on a CUDA device: there they are the product of two matrices."""
    return pool_by_matrices(x, side) if x.is_cuda else adaptive_avg_pool2d(x, side)


def pool_by_matrices(x: Tensor, side: int) -> Tensor:
    """As `pool`, on any device."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, columns = (_cells(size, side, x.device, dtype) for size in x.shape[2:])
    with torch.autocast(x.device.type, enabled=False):
        return (rows @ (x.to(dtype) @ columns.T)).to(x.dtype)


@lru_cache(128)
def _cells(size: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(side, size): the share of each pixel in each cell. Do not change it in place."""
    with torch.inference_mode(False), torch.no_grad():   # autograd could not use a matrix that was made in inference mode
        shares = torch.zeros(side, size, dtype=dtype, device="cpu")
        for i in range(side):
            first, end = i * size // side, -(-(i + 1) * size // side)
            shares[i, first:end] = 1 / (end - first)
        return shares.to(device)


def layer(inputs: int, width: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _last(width: int, n_labels: int, dropout: float) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(width, n_labels, 1)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Dropout2d(dropout), conv


def _shift_all_windows(backbone: Backbone) -> None:
    """timm does not shift the windows of the last stage, which has a single one in images of 224 pixels; mmsegmentation does."""
    for block in backbone.modules():
        if hasattr(block, "target_shift_size"):
            block.shift_size = block.target_shift_size
