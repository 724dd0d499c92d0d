"""Affinity of pixel pairs from a class boundary map, and the losses that train it (IRN, Ahn et al. 2019, sections 4 and 5).

Two pixels nearer than `radius` are joined by a straight path of pixels; their affinity is 1 minus the strongest edge on it.
The losses are summed one direction after the other, so no array of all pairs is ever made.
"""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss.errors import ArgumentError
from wsss.paths import Direction, Pairs, Part, Window, search_pairs, search_paths

IGNORE = 255
EPSILON = 1e-5  # in the logarithms and in the counts (official `net/resnet50_irn.py`, `step/train_irn.py`)

Maps = dict[Direction, Tensor]  # indexed by the top left corner of the bounding box of each path


@dataclass(frozen=True)
class AffinityLosses:
    """The four losses as means over their pairs (0-dimensional, differentiable)."""

    pos_aff: Tensor  # -log(affinity): half over background pairs, half over pairs of the same foreground class
    neg_aff: Tensor  # -log(1 - affinity) over pairs of two classes
    dp_fg: Tensor  # |displacement difference - offset of the pair|, in grid cells, over pairs of the same foreground class
    dp_bg: Tensor  # |displacement difference| over background pairs
    n_bg_pos: Tensor  # numbers of pairs, int64
    n_fg_pos: Tensor
    n_neg: Tensor

    @property
    def total(self) -> Tensor:
        return (self.pos_aff + self.neg_aff) / 2 + (self.dp_fg + self.dp_bg) / 2


def affinity_losses(
    edge_logits: Tensor,
    displacement: Tensor,
    labels: Tensor,
    radius: int = 10,
    all_pairs: bool = False,
    counts: Tensor | None = None,
) -> AffinityLosses:
    """The losses that train IRN's two branches, exactly as in the official `step/train_irn.py`.

    edge_logits: (B, 1, h, w), of the network. displacement: (B, 2, h, w), (down, right) in grid cells, without the mean shift.
    labels: (B, h, w) integers, 0 background, 1.. classes, 255 ignore. radius: pairs nearer than this, in grid cells.
    all_pairs: also the pairs near the border; the official code takes only those whose source pixel has its whole neighbourhood
    inside the grid, which must then be at least radius x (2 * radius - 1).
    counts: (3,), what the sums are divided by in place of the batch's own `pair_counts`. If a batch is spread over ranks whose
    gradients are averaged: the counts summed over the ranks, divided by the number of ranks.

    Raises ArgumentError for shapes that do not fit and for a grid that is too small.
    """
    _check(edge_logits, displacement, labels, radius, all_pairs)
    with torch.autocast(edge_logits.device.type, enabled=False):
        edge = torch.sigmoid(_at_least_float32(edge_logits)[:, 0])
        losses, own = _Losses.apply(edge, _at_least_float32(displacement), labels, radius, all_pairs, counts)
    return AffinityLosses(*losses, *own.long())


def pair_counts(labels: Tensor, radius: int = 10, all_pairs: bool = False) -> Tensor:
    """The numbers of (background, same foreground class, negative) pairs of labels (B, h, w): (3,) float64."""
    roles = label_roles(labels)
    kinds = [affinity_labels(labels, roles, pairs) for pairs in search_pairs(*labels.shape[-2:], radius, all_pairs)]
    return torch.stack([kind.flatten(1).sum(1) for kind in kinds]).sum(0).double()


def edge_to_affinity(edge: Tensor, radius: int) -> Maps:
    """Affinity of all pairs of pixels: 1 minus the maximum of `edge` along their path, both ends included. Differentiable.

    edge: (..., h, w), class boundary in [0, 1]. Returns for each direction of `search_paths(radius)` a map of shape
    (..., h - dy, w - |dx|), empty where the grid is smaller. It is indexed by the top left corner of the pair's bounding box: the
    source of the pair is (y, x) for dx >= 0 and (y, x - dx) for dx < 0. Under (0, 0): 1 - edge.
    """
    maps = {(0, 0): 1 - edge}  # 1 - max(edge) = min(1 - edge)
    for direction, parts in search_paths(radius).items():
        maps[direction] = reduce(torch.minimum, [_lined_up(maps[part.direction], part, direction) for part in parts])
    return maps


def label_roles(labels: Tensor) -> Tensor:
    """Which pixels are (background, foreground, either) and not ignored: bool (3, ..., h, w) from labels (..., h, w)."""
    return torch.stack([labels == 0, (labels != 0) & (labels != IGNORE), labels != IGNORE])


def affinity_labels(labels: Tensor, roles: Tensor, pairs: Pairs) -> Tensor:
    """Which pairs are (both background, both of one foreground class, of two classes): bool (3, ..., rows, columns).

    labels: (..., h, w) integers, 0 background, 255 ignore: a pair with an ignored pixel is none of the three.
    roles: `label_roles(labels)`, the same for all directions.
    """
    kinds = _at(roles, pairs.source) & _at(roles, pairs.destination)
    same = _at(labels, pairs.source) == _at(labels, pairs.destination)
    kinds[1] &= same
    kinds[2] &= ~same
    return kinds


class _Losses(torch.autograd.Function):
    """(pos_aff, neg_aff, dp_fg, dp_bg) and the counts, with the gradient by hand: autograd would keep 20 maps a direction."""

    @staticmethod
    def forward(ctx, edge, displacement, labels, radius, all_pairs, counts) -> tuple[Tensor, Tensor]:
        ctx.pairs = list(search_pairs(*edge.shape[-2:], radius, all_pairs))
        maps, roles = edge_to_affinity(edge, radius), label_roles(labels)
        sums = edge.new_zeros(3, 3, dtype=torch.float64)
        for pairs in ctx.pairs:
            kinds = affinity_labels(labels, roles, pairs).to(edge.dtype)
            log = _likelihood(maps[pairs.direction], pairs, kinds).log_()
            distance = _displacement_error(displacement, pairs, kinds).abs_().sum(1)
            flat = kinds.flatten(1)
            sums += torch.stack([flat.sum(1), flat @ log.flatten(), flat @ distance.flatten()])
        own, log, distance = sums  # each over (background, foreground, negative) pairs
        counts = own if counts is None else counts.to(own)
        ctx.save_for_backward(edge, displacement, labels, counts)
        ctx.radius = radius
        ctx.mark_non_differentiable(own)
        bg, fg, neg = -log / (counts + EPSILON)
        dp_bg, dp_fg, _ = distance / (2 * counts + EPSILON)
        return torch.stack([(bg + fg) / 2, neg, dp_fg, dp_bg]).to(edge.dtype), own

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
        edge, displacement, labels, counts = ctx.saved_tensors
        pos, neg, dp_fg, dp_bg = grad.double()
        # What a pair of each kind adds to the gradient of the edge, over its likelihood, and to that of the displacement.
        weights = torch.stack([pos / 2, pos / 2, -neg, dp_bg, dp_fg, torch.zeros_like(neg)]).view(2, 3)
        weights = (weights / torch.stack([counts + EPSILON, 2 * counts + EPSILON])).to(edge.dtype)
        maps, grads, roles = edge_to_affinity(edge, ctx.radius), {}, label_roles(labels)
        grad_displacement = torch.zeros_like(displacement)
        for pairs in reversed(ctx.pairs):
            kinds = affinity_labels(labels, roles, pairs).to(edge.dtype)
            edge_weight, displacement_weight = (weights @ kinds.flatten(1)).view(2, *kinds.shape[1:])
            pull = _displacement_error(displacement, pairs, kinds).sign_().mul_(displacement_weight[:, None])
            _at(grad_displacement, pairs.source).add_(pull)
            _at(grad_displacement, pairs.destination).sub_(pull)
            edge_weight /= _likelihood(maps[pairs.direction], pairs, kinds)
            _at(_grad_of(pairs.direction, grads, maps), pairs.box).add_(edge_weight)
            _hand_down(pairs.direction, search_paths(ctx.radius)[pairs.direction], grads, maps)
        return _grad_of((0, 0), grads, maps), grad_displacement, None, None, None, None


def _at(maps: Tensor, window: Window) -> Tensor:
    return maps[(..., *window)]


def _lined_up(maps: Tensor, part: Part, direction: Direction) -> Tensor:
    """The map of a part, cut so that it lines up with the map of the whole path."""
    height, width = maps.shape[-2:]
    below = direction[0] - part.direction[0] - part.down
    behind = abs(direction[1]) - abs(part.direction[1]) - part.right
    return maps[..., part.down : max(height - below, part.down), part.right : max(width - behind, part.right)]


def _likelihood(affinity: Tensor, pairs: Pairs, kinds: Tensor) -> Tensor:
    """What the logarithm is taken of: the affinity, for negative pairs 1 - affinity. (B, rows, columns)."""
    return (kinds[2] - _at(affinity, pairs.box)).abs_().add_(EPSILON)


def _displacement_error(displacement: Tensor, pairs: Pairs, kinds: Tensor) -> Tensor:
    """Difference of the displacements, for foreground pairs minus the offset of the pair. (B, 2, rows, columns)."""
    error = _at(displacement, pairs.source) - _at(displacement, pairs.destination)
    for axis, offset in enumerate(pairs.direction):
        error[:, axis].sub_(kinds[1], alpha=offset)
    return error


def _grad_of(direction: Direction, grads: Maps, maps: Maps) -> Tensor:
    if direction not in grads:
        grads[direction] = torch.zeros_like(maps[direction])
    return grads[direction]


def _hand_down(direction: Direction, parts: tuple[Part, ...], grads: Maps, maps: Maps) -> None:
    """Moves the gradient of a map to the part that holds its extremum (the first of equals), and frees the map."""
    whole, grad = maps.pop(direction), grads.pop(direction)
    for part in parts:
        share = grad * (_lined_up(maps[part.direction], part, direction) == whole)
        _lined_up(_grad_of(part.direction, grads, maps), part, direction).add_(share)
        grad -= share


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check(edge_logits: Tensor, displacement: Tensor, labels: Tensor, radius: int, all_pairs: bool) -> None:
    batch, _, height, width = edge_logits.shape if edge_logits.ndim == 4 else (0, 0, 0, 0)
    expected = (batch, 1, height, width), (batch, 2, height, width), (batch, height, width)
    shapes = tuple(edge_logits.shape), tuple(displacement.shape), tuple(labels.shape)
    if shapes != expected:
        raise ArgumentError(
            "affinity_losses: edge_logits, displacement and labels have shapes {}, {}, {}; expected (B, 1, h, w), (B, 2, h, w), "
            "(B, h, w) of one grid (bring the labels to the stride of the network, nearest)".format(*shapes)
        )
    if labels.is_floating_point():
        raise ArgumentError(f"affinity_losses: labels are {labels.dtype}; expected class numbers of an integer type")
    if not all_pairs and (height < radius or width < 2 * radius - 1):
        raise ArgumentError(
            f"affinity_losses: in a grid of {height} x {width} no pixel has all neighbours nearer than {radius}; it takes "
            f"at least {radius} x {2 * radius - 1}: use a larger crop, a smaller radius, or all_pairs=True"
        )
