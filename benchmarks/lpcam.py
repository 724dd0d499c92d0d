"""LPCAM maps from features: a cosine map per prototype (official `step/make_lpcam.py`) against one product per scale."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, greatest_difference
from wsss.cams.lpcam import lpcam_maps, mean_direction
from wsss.cams.maps import grids, pack, rebuild

STRIDE = 16   # of the features


def cosine_maps(features: list[Tensor], foreground: list[Tensor], context: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """Both official maps, (n, H/4, W/4) and (n, H, W); prototypes (n_k, D) per class, features (2, D, h, w) per scale."""
    strided = -(-size[0] // 4), -(-size[1] // 4)
    padded = -(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE
    small, large = [], []
    for fg, bg in zip(foreground, context, strict=True):
        resized: list[list[Tensor]] = [[], []]
        for feature in features:
            merged = (feature[0] + feature[1].flip(-1))[None]   # (1, D, h, w)
            attention = _mean_cosine(merged, fg)
            if len(bg):
                attention = F.relu(attention - _mean_cosine(merged, bg))
            for target, kept in zip((strided, padded), resized, strict=True):
                kept.append(F.interpolate(attention, target, mode="bilinear", align_corners=False)[0, 0])
        for maps, kept in zip((small, large), resized, strict=True):
            mean = torch.stack(kept).mean(0)[:size[0], :size[1]]
            maps.append(mean / mean.max())
    return [torch.stack(small), torch.stack(large)]


def _mean_cosine(feature: Tensor, prototypes: Tensor) -> Tensor:
    maps = [F.cosine_similarity(feature, prototype[None, :, None, None], dim=1) for prototype in prototypes]   # each (1, h, w)
    return torch.stack(maps, 1).mean(1, keepdim=True)


def our_maps(features: list[Tensor], foreground: Tensor, context: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The same maps through the stored form."""
    packed, _ = pack([lpcam_maps(feature, foreground, context)[1] for feature in features])
    return [rebuild(packed, *size, grids(*size, STRIDE), resolution, pad=STRIDE) for resolution in ("strided", "full")]


def random_features(size: tuple[int, int], dimension: int = 2048, seed: int = 0) -> list[Tensor]:
    """Per scale (2, D, h, w), not negative, smooth over the grid."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(2, dimension, 6, 8, generator=draw)
    return [F.interpolate(base, grid, mode="bilinear").relu_() for grid in grids(*size, STRIDE)]


def _case(size: tuple[int, int], classes: int, prototypes: int = 12, dimension: int = 2048) -> Case:
    features, draw = random_features(size, dimension), torch.Generator().manual_seed(1)
    centers = [[torch.randn(prototypes, dimension, generator=draw).relu() for _ in range(classes)] for _ in range(2)]
    vectors = [torch.stack([mean_direction(each) for each in kind]) for kind in centers]
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in features]   # as from our networks
    return Case(f"{size[0]}x{size[1]}, {classes} classes, {prototypes} + {prototypes} prototypes",
                lambda: our_maps(last, *vectors, size), lambda: cosine_maps(features, *centers, size),
                greatest_difference, "a cosine map a prototype", "float32, NCHW -> channels last")


BENCHMARKS = {"lpcam_maps": lambda quick: _case((375, 500), 2)}
