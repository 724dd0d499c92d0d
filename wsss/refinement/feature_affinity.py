"""Affinity of pixel pairs from their features, and the loss that trains it: AffinityNet of Ahn & Kwak, "Learning Pixel-level
Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic Segmentation", CVPR 2018, sections 3.2 and 3.3.

Official files: `network/resnet38_aff.py`, `train_aff.py`, `voc12/data.py`. The affinity of two pixels nearer than `radius` is
exp(-d) with the mean absolute difference d of their features. The official code gathers the features of all pairs, 34 times their
size at radius 5; here they are compared for one direction at a time, and only d is kept.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss.errors import ArgumentError
from wsss.refinement.affinity import EPSILON, Maps, PairRows
from wsss.refinement.paths import Direction, search_rows, sources

AT_ONCE = 2**16   # numbers that are compared at once on a CPU, so that they stay in its cache


class FeatureLosses(NamedTuple):
    """The two losses as means over their pairs (0-dimensional, differentiable)."""

    pos_aff: Tensor   # -log(affinity): half over background pairs, half over pairs of the same foreground class
    neg_aff: Tensor   # -log(1 - affinity) over pairs of two classes

    @property
    def total(self) -> Tensor:
        return (self.pos_aff + self.neg_aff) / 2


def feature_affinity_losses(features: Tensor, labels: Tensor, radius: int = 5, all_pairs: bool = False,
                            counts: Tensor | None = None) -> FeatureLosses:
    """The loss that trains AffinityNet (paper: equations 5 to 8; official `train_aff.py`).

    features: (B, D, h, w). labels: (B, h, w) integers, 0 background, 1.. classes, 255 ignore. radius, all_pairs, counts: as in
    `wsss.refinement.affinity.affinity_losses`; counts by its `pair_counts`.

    Raises ArgumentError for shapes that do not fit.
    """
    if features.ndim != 4 or labels.shape != (len(features), *features.shape[2:]):
        raise ArgumentError(f"feature_affinity_losses: features is {tuple(features.shape)} and labels {tuple(labels.shape)}; "
                            "expected (B, D, h, w) and (B, h, w) of one grid: bring the labels to the grid of the features")
    with torch.autocast(features.device.type, enabled=False):
        pairs = PairRows(labels, radius, all_pairs)
        of_rows = search_rows(radius)
        stacks = dict(zip(of_rows, pair_distances(features, radius).split([len(dxs) for dxs in of_rows.values()])))
        sums, own = features.new_zeros(3, dtype=torch.float64), features.new_zeros(3, dtype=torch.float64)
        for row in pairs:
            kinds = pairs.kinds(row)   # (3, D, B, rows, columns)
            affinity = torch.exp(-pairs.stacked(stacks[row.dy], row))
            log = ((kinds[2].to(affinity) - affinity).abs() + EPSILON).log()   # of 1 - affinity for pairs of two classes
            sums = sums + (kinds.flatten(1).to(log) @ log.flatten()).double()
            own += kinds.flatten(1).sum(1)
        bg, fg, neg = -sums / ((own if counts is None else counts.to(own)) + EPSILON)
        dtype = torch.promote_types(features.dtype, torch.float32)
        return FeatureLosses(((bg + fg) / 2).to(dtype), neg.to(dtype))


def feature_affinity(features: Tensor, radius: int, all_pairs: bool = True) -> Maps:
    """Affinity of all pairs of pixels nearer than `radius`, in the layout of `wsss.refinement.affinity.edge_to_affinity`, without
    that of a pixel with itself.

    features: (D, h, w). all_pairs: if false, the affinity is 0 of pairs whose source has no whole neighbourhood inside the grid,
    within `radius` - 1 cells of the left, right or lower border (official `to_dense`).
    """
    (height, width), reach = features.shape[1:], radius - 1
    inside = torch.zeros(height, width, dtype=torch.bool, device=features.device)
    inside[:max(height - reach, 0), reach:max(width - reach, reach)] = True
    distances, maps = pair_distances(features[None], radius)[:, 0], {}
    for direction, distance in zip(_directions(radius), distances, strict=True):
        window = sources(direction, height, width)
        near = torch.exp(-distance[window])
        maps[direction] = near if all_pairs else near * inside[window]
    return maps


def pair_distances(features: Tensor, radius: int) -> Tensor:
    """Mean absolute difference of the features (B, D, h, w) of each pixel and of those nearer than `radius`, to the right and
    below: (P, B, h, w) in the order of `search_rows`, at the source of the pair; 0 where the other pixel is outside the grid.
    Differentiable; float32 or wider."""
    result: Tensor = _Distances.apply(features.to(torch.promote_types(features.dtype, torch.float32)), radius)
    return result


class _Distances(torch.autograd.Function):
    """With a manual gradient, because autograd would keep the differences of all directions."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        ctx.save_for_backward(features)
        flat, (batch, depth, height, width) = features.flatten(2), features.shape
        found = features.new_zeros(len(_directions(radius)), batch, height * width)
        for part in _parts(flat):
            for target, offset in _compared(found, radius, height, width):
                difference = flat[part][..., offset:] - flat[part][..., :-offset]
                target[part[0], :-offset] += torch.linalg.vector_norm(difference, 1, dim=1)
        found = found.view(-1, batch, height, width).div_(depth)
        for maps, direction in zip(found, _directions(radius)):
            _keep(maps, direction)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        flat, (_, depth, height, width) = features.flatten(2), features.shape
        grad = grad / depth
        for maps, direction in zip(grad, _directions(ctx.radius)):
            _keep(maps, direction)
        result = torch.zeros_like(flat)
        for part in _parts(flat):
            there = result[part]
            for weights, offset in _compared(grad.flatten(2), ctx.radius, height, width):
                pull = (flat[part][..., offset:] - flat[part][..., :-offset]).sign_().mul_(weights[part[0], None, :-offset])
                there[..., offset:] += pull
                there[..., :-offset] -= pull
        return result.view_as(features), None


def _directions(radius: int) -> list[Direction]:
    """Those of `search_rows`, in order."""
    return [(dy, dx) for dy, dxs in search_rows(radius).items() for dx in dxs]


def _compared(maps: Tensor, radius: int, height: int, width: int) -> list[tuple[Tensor, int]]:
    """The maps (P, B, h * w) of the directions that have pairs in the grid, each with the offset of the other pixel, counted row
    by row. An offset also joins the end of a row with the beginning of the next: `_keep` removes these."""
    return [(each, dy * width + dx) for each, (dy, dx) in zip(maps, _directions(radius))
            if dy < height and abs(dx) < width]


def _keep(maps: Tensor, direction: Direction) -> None:
    """Set maps (B, h, w) to 0 where the other pixel of the pair is outside the grid."""
    window = sources(direction, *maps.shape[1:])
    kept = maps[(..., *window)].clone()
    maps.zero_()[(..., *window)] = kept


def _parts(flat: Tensor) -> list[tuple[slice, slice]]:
    """Slices of the images and of the features (B, D, n): all at once on a GPU, as many as fit into the cache of a CPU."""
    batch, depth, n = flat.shape
    if not flat.is_cpu:
        return [(slice(image, image + 1), slice(None)) for image in range(batch)]
    at_once = max(1, AT_ONCE // max(n, 1))
    return [(slice(image, image + 1), slice(first, first + at_once)) for image in range(batch)
            for first in range(0, depth, at_once)]
