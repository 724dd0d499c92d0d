"""Affinity of pixel pairs from a class boundary map, and the losses that train it (IRN, Ahn et al. 2019, sections 4 and 5).

Two pixels nearer than `radius` are joined by a straight path of pixels; their affinity is 1 minus the strongest edge on it.
The losses are computed for several directions of one dy at a time (on a GPU all, on the CPU as many as fit into its cache),
because small operations take longer to launch than to run. Only the affinities are stored for all pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss.errors import ArgumentError
from wsss.palette import IGNORE
from wsss.refinement.paths import Direction, Part, search_paths, search_rows

AT_ONCE = 2**16  # pairs: more do not fit into the cache of a CPU
EPSILON = 1e-5  # in the logarithms and in the counts (official `net/resnet50_irn.py`, `step/train_irn.py`)

Maps = dict[Direction, Tensor]  # each indexed by the top left corner of the bounding box of a path


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
    all_pairs: also the pairs near the border; the official code uses only those whose source pixel has its whole neighbourhood
    inside the grid, which must then be at least radius x (2 * radius - 1).
    counts: (3,), divisors of the sums instead of the batch's own `pair_counts`. For a batch over several ranks whose gradients
    are averaged: the counts summed over the ranks, divided by the number of ranks.

    Raises ArgumentError for shapes that do not fit and for a grid that is too small.
    """
    _check(edge_logits, displacement, labels, radius, all_pairs)
    with torch.autocast(edge_logits.device.type, enabled=False):
        edge = torch.sigmoid(_at_least_float32(edge_logits)[:, 0])
        losses, own = _Losses.apply(edge, _at_least_float32(displacement), labels, radius, all_pairs, counts)
    return AffinityLosses(*losses, *own.long())


def pair_counts(labels: Tensor, radius: int = 10, all_pairs: bool = False) -> Tensor:
    """Count the (background, same foreground class, negative) pairs of labels (B, h, w): (3,) float64."""
    rows = PairRows(labels, radius, all_pairs)
    counts = labels.new_zeros(3, dtype=torch.float64)
    for row in rows:
        counts += rows.kinds(row).flatten(1).sum(1)
    return counts


def edge_to_affinity(edge: Tensor, radius: int) -> Maps:
    """Affinity of all pairs of pixels: 1 minus the maximum of `edge` along their path, both ends included. Differentiable.

    edge: (..., h, w), class boundary in [0, 1]. Returns for each direction of `search_paths(radius)` a map of shape
    (..., h - dy, w - |dx|), empty if the grid is smaller. It is indexed by the top left corner of the pair's bounding box: the
    source of the pair is (y, x) for dx >= 0 and (y, x - dx) for dx < 0. The map of (0, 0) is 1 - edge.
    """
    maps = {(0, 0): 1 - edge}  # 1 - max(edge) = min(1 - edge)
    for direction, parts in search_paths(radius).items():
        maps[direction] = reduce(torch.minimum, [_lined_up(maps[part.direction], part, direction) for part in parts])
    return maps


class _Row(NamedTuple):
    """The directions (dy, first), (dy, first + 1), ..."""

    dy: int
    first: int
    count: int  # type: ignore[assignment]  # no row is used as a tuple
    layer: int  # index of the first direction in the stack of dy


class PairRows:
    """All pairs of labels (B, h, w), by rows of directions. An array of pairs is (..., D, B, rows, columns): direction, image and
    source pixel of a pair. A source without a destination inside the grid is paired with an ignored pixel."""

    def __init__(self, labels: Tensor, radius: int, all_pairs: bool):
        (height, width), reach = labels.shape[-2:], radius - 1
        self.width, self.reach = width, reach if all_pairs else 0
        self.left, self.columns = (0, width) if all_pairs else (reach, max(width - 2 * reach, 0))
        self._heights = [max(height - dy if all_pairs else height - reach, 0) for dy in range(radius)]
        sources = max(1, labels[..., : self._heights[0], : self.columns].numel())
        at_once = max(1, AT_ONCE // sources) if labels.is_cpu else 2 * radius   # directions
        self._rows = [_Row(dy, dxs[i], len(dxs[i : i + at_once]), i)
                      for dy, dxs in search_rows(radius).items() for i in range(0, len(dxs), at_once)]
        self.labels = self.framed(labels, IGNORE)
        # (background, foreground, either) and not ignored
        self._roles = torch.stack([self.labels == 0, (self.labels != 0) & (self.labels != IGNORE), self.labels != IGNORE])

    def __iter__(self) -> Iterator[_Row]:
        return (row for row in self._rows if self._heights[row.dy])

    def framed(self, maps: Tensor, value: float = 0) -> Tensor:
        """Pad the columns of `maps` on both sides so that every destination is inside."""
        return F.pad(maps, (self.reach, self.reach), value=value) if self.reach else maps

    def source(self, maps: Tensor, row: _Row) -> Tensor:
        """(..., 1, B, rows, columns) of framed maps (..., B, h, w')."""
        left = self.reach + self.left
        return maps[..., : self._heights[row.dy], left : left + self.columns].unsqueeze(-4)

    def destination(self, maps: Tensor, row: _Row) -> Tensor:
        """(..., D, B, rows, columns) of framed maps (..., B, h, w'), a view."""
        window = self.reached(maps, row)
        return window.unfold(-1, self.columns, 1).movedim(-2, -4)

    def reached(self, maps: Tensor, row: _Row) -> Tensor:
        """The part of framed maps with the destinations: (..., B, rows, columns + D - 1)."""
        left = self.reach + self.left + row.first
        return maps[..., row.dy : row.dy + self._heights[row.dy], left : left + self.columns + row.count - 1]

    def stacked(self, stack: Tensor, row: _Row) -> Tensor:
        """(D, B, rows, columns) of the stack from `_stacks` with the directions of this dy."""
        return stack[row.layer : row.layer + row.count, ..., : self._heights[row.dy], self.left : self.left + self.columns]

    def kinds(self, row: _Row) -> Tensor:
        """Masks of the pairs (both background, both of one foreground class, of two classes): bool (3, D, B, rows, columns)."""
        kinds = self.source(self._roles, row) & self.destination(self._roles, row)
        same = self.source(self.labels, row) == self.destination(self.labels, row)
        kinds[1] &= same
        kinds[2] &= ~same
        return kinds

    def displacement_error(self, displacement: Tensor, row: _Row, kinds: Tensor) -> Tensor:
        """Difference of framed displacements (2, B, h, w'), minus the offset of the pair for foreground pairs: (2, D, B, rows,
        columns)."""
        error = self.source(displacement, row) - self.destination(displacement, row)
        error[0].sub_(kinds[1], alpha=row.dy)
        offsets = torch.arange(row.first, row.first + row.count, device=error.device, dtype=error.dtype)
        error[1].addcmul_(kinds[1], offsets.view(-1, 1, 1, 1), value=-1)
        return error

    def add_to_destinations(self, maps: Tensor, row: _Row, values: Tensor) -> None:
        """Add values (..., D, B, rows, columns) to framed maps (..., B, h, w') at the destinations."""
        columns = self.columns + row.count - 1
        if row.count == 1:
            self.reached(maps, row).add_(values.squeeze(-4))
            return
        skewed = F.pad(values.movedim(-4, -2), (0, row.count)).flatten(-2)   # direction i starts i columns further right
        skewed = skewed[..., : row.count * columns].unflatten(-1, (row.count, columns)).sum(-2)
        self.reached(maps, row).add_(skewed)


class _Losses(torch.autograd.Function):
    """(pos_aff, neg_aff, dp_fg, dp_bg) and the counts, with a manual gradient: autograd would keep 20 maps per direction."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, displacement: Tensor, labels: Tensor, radius: int, all_pairs: bool,
                counts: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.rows, ctx.radius = PairRows(labels, radius, all_pairs), radius
        stacks = _affinity_stacks(edge, radius)
        moved = ctx.rows.framed(displacement.transpose(0, 1))
        sums = edge.new_zeros(3, 3, dtype=torch.float64)
        for row in ctx.rows:
            kinds = ctx.rows.kinds(row).to(edge.dtype)
            log = _likelihood(ctx.rows.stacked(stacks[row.dy], row), kinds).log_()
            distance = ctx.rows.displacement_error(moved, row, kinds).abs_().sum(0)
            each = kinds.flatten(2).transpose(0, 1)   # (D, 3, pairs)
            of_row = [each.sum(2), *((each @ values.flatten(1)[..., None])[..., 0] for values in (log, distance))]
            sums += torch.stack(of_row).sum(1, dtype=torch.float64)
        own, log, distance = sums  # each over (background, foreground, negative) pairs
        counts = own if counts is None else counts.to(own)
        ctx.save_for_backward(edge, displacement, counts, *stacks)
        ctx.mark_non_differentiable(own)
        bg, fg, neg = -log / (counts + EPSILON)
        dp_bg, dp_fg, _ = distance / (2 * counts + EPSILON)
        return torch.stack([(bg + fg) / 2, neg, dp_fg, dp_bg]).to(edge.dtype), own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        edge, displacement, counts, *stacks = ctx.saved_tensors
        rows, grad_stacks = ctx.rows, _stacks(edge, ctx.radius, 0.0)
        pos, neg, dp_fg, dp_bg = grad.double()
        # The gradient by pair of each kind: of the edge, before division by the likelihood, and of the displacement.
        weights = torch.stack([pos / 2, pos / 2, -neg, dp_bg, dp_fg, torch.zeros_like(neg)]).view(2, 3)
        weights = (weights / torch.stack([counts + EPSILON, 2 * counts + EPSILON])).to(edge.dtype)
        moved = rows.framed(displacement.transpose(0, 1))
        grad_moved = torch.zeros_like(moved)
        for row in rows:
            kinds = rows.kinds(row).to(edge.dtype)
            edge_weight, displacement_weight = (weights @ kinds.flatten(1)).view(2, *kinds.shape[1:])
            pull = rows.displacement_error(moved, row, kinds).sign_().mul_(displacement_weight)
            rows.source(grad_moved, row).add_(pull if row.count == 1 else pull.sum(-4, keepdim=True))
            rows.add_to_destinations(grad_moved, row, pull.neg_())
            edge_weight /= _likelihood(rows.stacked(stacks[row.dy], row), kinds)
            rows.stacked(grad_stacks[row.dy], row).copy_(edge_weight)
        grads, maps = (_maps_in(each, ctx.radius) for each in (grad_stacks, stacks))
        for direction, parts in reversed(search_paths(ctx.radius).items()):
            _move_gradient(direction, parts, grads, maps)
        grad_displacement = grad_moved[..., rows.reach : rows.reach + rows.width].transpose(0, 1)
        return grads[0, 0], grad_displacement, None, None, None, None


def _stacks(edge: Tensor, radius: int, value: float) -> list[Tensor]:
    """Arrays for the maps of all directions, filled with `value`: for each dy an array (D, ..., h - dy, w), in which a map has
    the columns of the sources of its pairs, and last an array of the shape of the edge map, for (0, 0)."""
    height, width = edge.shape[-2:]
    return [edge.new_full((len(dxs), *edge.shape[:-2], max(height - dy, 0), width), value)
            for dy, dxs in search_rows(radius).items()] + [torch.full_like(edge, value)]


def _maps_in(stacks: list[Tensor], radius: int) -> Maps:
    """The maps of all directions as views of the arrays from `_stacks`."""
    maps, width = {(0, 0): stacks[-1]}, stacks[-1].shape[-1]
    for (dy, dxs), stack in zip(search_rows(radius).items(), stacks):
        for dx, layer in zip(dxs, stack):
            left = min(max(-dx, 0), width)
            maps[dy, dx] = layer[..., left : left + max(width - abs(dx), 0)]
    return maps


def _affinity_stacks(edge: Tensor, radius: int) -> list[Tensor]:
    """The maps of `edge_to_affinity` in the layout of `_stacks`; 1 where there is no pair."""
    stacks = _stacks(edge, radius, 1.0)
    stacks[-1].sub_(edge)
    maps = _maps_in(stacks, radius)
    for direction, parts in search_paths(radius).items():
        first, *others = [_lined_up(maps[part.direction], part, direction) for part in parts]
        for other in others:
            first = torch.minimum(first, other, out=maps[direction])
    return stacks


def _lined_up(maps: Tensor, part: Part, direction: Direction) -> Tensor:
    """The map of a part, cropped to align with the map of the whole path."""
    height, width = maps.shape[-2:]
    below = direction[0] - part.direction[0] - part.down
    behind = abs(direction[1]) - abs(part.direction[1]) - part.right
    return maps[..., part.down : max(height - below, part.down), part.right : max(width - behind, part.right)]


def _likelihood(affinity: Tensor, kinds: Tensor) -> Tensor:
    """The argument of the logarithm: the affinity, for negative pairs 1 - affinity. (D, B, rows, columns)."""
    return (kinds[2] - affinity).abs_().add_(EPSILON)


def _move_gradient(direction: Direction, parts: tuple[Part, ...], grads: Maps, maps: Maps) -> None:
    """Move the gradient of a map to the part with its extremum (the first of equals)."""
    whole, grad, (*others, last) = maps[direction], grads[direction], parts
    for part in others:
        share = grad * (_lined_up(maps[part.direction], part, direction) == whole)
        _lined_up(grads[part.direction], part, direction).add_(share)
        grad -= share
    _lined_up(grads[last.direction], last, direction).add_(grad)


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
    if labels.is_floating_point() or labels.dtype in (torch.bool, torch.int8):   # 255 does not fit into these
        raise ArgumentError(f"affinity_losses: labels are {labels.dtype}; expected class numbers of an integer type")
    if not all_pairs and (height < radius or width < 2 * radius - 1):
        raise ArgumentError(
            f"affinity_losses: in a grid of {height} x {width} no pixel has all neighbours nearer than {radius}; it takes "
            f"at least {radius} x {2 * radius - 1}: use a larger crop, a smaller radius, or all_pairs=True"
        )
