"""Gaussian filtering in a low-dimensional feature space in linear time: the permutohedral lattice with torch operations only.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics 2010). Constants, rounding
and the order of the blurs are those of Kraehenbuehl and Koltun's C++ (NIPS 2011), which pydensecrf wraps, so that the two agree
up to float32 rounding.

A point lies in a simplex of D + 1 lattice vertices. Splat adds its value to them with barycentric weights, blur mixes every
vertex with its two neighbours along each of D + 1 directions, slice interpolates the values at the points. All three are sparse
matrices that are built once.
"""

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError


class _Sparse(NamedTuple):
    """A sparse matrix of R rows; row r has the entries offsets[r] to offsets[r + 1]."""

    columns: Tensor  # (E,) int32
    offsets: Tensor  # (R + 1,) int32
    weights: Tensor  # (E,) float32

    def product(self, values: Tensor) -> Tensor:
        """This matrix times `values` (columns, C): (R, C). Rows are summed in order, so every run gives the same bits."""
        return F.embedding_bag(  # for few columns faster than torch's CSR product, and ten times as fast as gather and index_add
            self.columns, values, self.offsets, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )


class PermutohedralLattice:
    """The lattice of one set of points. Building it costs as much as ten filters, so reuse it.

    `filter` approximates out_i = c sum_j exp(-|f_i - f_j|^2 / 2) values_j; `normalized` removes the constant c. All memory is on
    the device of `features`: 16 (D + 1) bytes per point and 28 (D + 1) per vertex; natural images have 0.2 to 3 vertices per
    pixel.

    Args:
        features: (N, D) float32, finite, each feature divided by its standard deviation.

    Raises:
        ArgumentError: `features` is invalid or spans more lattice cells than 64-bit keys can number.
    """

    def __init__(self, features: Tensor):
        if features.ndim != 2 or 0 in features.shape or features.dtype != torch.float32 or not features.isfinite().all():
            raise ArgumentError(
                f"PermutohedralLattice: features has shape {tuple(features.shape)} and is {features.dtype}; "
                "expected (N, D), torch.float32, N and D at least 1, without NaN or infinity"
            )
        elevated = _elevate(features.detach())
        quotient, position = _enclosing_simplex(elevated)
        keys, strides, span = _vertex_keys(quotient, position)
        self._splat, self._slice, vertices = _splat_and_slice(keys, _barycentric(elevated, quotient, position))
        self._blurs = _blurs(vertices, strides, span)

    def filter(self, values: Tensor) -> Tensor:
        """Splat, blur and slice `values` (N, C) float32: (N, C) float32, the same bits in every run.

        Raises:
            ArgumentError: `values` has another shape or dtype, or is on another device than the lattice.
        """
        points, device = len(self._slice.offsets) - 1, self._slice.weights.device
        if values.ndim != 2 or len(values) != points or values.dtype != torch.float32 or values.device != device:
            raise ArgumentError(
                f"PermutohedralLattice.filter: values has shape {tuple(values.shape)}, is {values.dtype} and on {values.device}; "
                f"expected ({points}, C), torch.float32, on {device}: one row for each point of the lattice"
            )
        lattice = self._splat.product(values.contiguous())  # (M, C)
        for blur in self._blurs:
            lattice = blur.product(lattice)
        return self._slice.product(lattice)

    def normalized(self, weight: float = 1.0) -> "PermutohedralLattice":
        """The same lattice with the filter weight * n K n, where K is this lattice's filter and n = 1 / sqrt(K 1 + 1e-20).

        NORMALIZE_SYMMETRIC of pydensecrf (pairwise.cpp, `DenseKernel`), folded into splat and slice at no cost.
        """
        points = len(self._slice.offsets) - 1
        norm = (self.filter(self._slice.weights.new_ones(points, 1)) + 1e-20).rsqrt()  # (N, 1)
        splat_weights = self._splat.weights * norm[:, 0].index_select(0, self._splat.columns)
        slice_weights = self._slice.weights.view(points, -1) * (norm * weight)
        result = copy.copy(self)
        result._splat = self._splat._replace(weights=splat_weights)
        result._slice = self._slice._replace(weights=slice_weights.view(-1))
        return result


def _elevate(features: Tensor) -> Tensor:
    """The points on the plane of sum zero in D + 1 dimensions (p. 5), scaled by the blur's own deviation (p. 6): (D + 1, N)."""
    d = features.shape[1]
    deviation = math.sqrt(2 / 3) * (d + 1)
    rows = features.T.contiguous()  # (D, N)
    elevated = rows.new_empty(d + 1, rows.shape[1])
    total = torch.zeros_like(rows[0])
    for j in range(d, 0, -1):
        scaled = rows[j - 1] * (deviation / math.sqrt(j * (j + 1)))
        torch.sub(total, scaled, alpha=j, out=elevated[j])
        total += scaled
    elevated[0] = total
    return elevated


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor]:
    """The remainder-0 vertex of each point's simplex, and the ascending order of the point's offsets from that vertex.

    Returns:
        quotient: (D + 1, N) float32, the coordinates of the vertex divided by D + 1: whole numbers that sum to 0.
        position: (D + 1, N) int64, the position of each offset in that order: a permutation of 0..D in each column.
    """
    d = len(elevated) - 1
    quotient = torch.round(elevated * (1 / (d + 1)))
    offset = torch.sub(elevated, quotient, alpha=d + 1)
    rank = torch.zeros_like(offset, dtype=torch.int16)  # how many offsets are larger
    for i in range(d):
        for j in range(i + 1, d + 1):
            smaller = offset[i] < offset[j]
            rank[i] += smaller
            rank[j] += ~smaller
    rank += quotient.sum(0).to(rank.dtype)  # the number of steps by which rounding left the plane: undo the worst of them
    wrap = (rank < 0).to(rank.dtype) - (rank > d).to(rank.dtype)
    return quotient.add_(wrap), (d - rank.add_(wrap, alpha=d + 1)).long()


def _barycentric(elevated: Tensor, quotient: Tensor, position: Tensor) -> Tensor:
    """Weights (D + 1, N) of the vertices of remainder 0..D (p. 10): differences of successive offsets in ascending order."""
    d = len(elevated) - 1
    offset = torch.sub(elevated, quotient, alpha=d + 1).mul_(1 / (d + 1))
    ascending = torch.empty_like(offset).scatter_(0, position, offset)
    weights = ascending - ascending.roll(1, 0)
    weights[0] += 1
    return weights


def _vertex_keys(quotient: Tensor, position: Tensor) -> tuple[Tensor, list[int], int]:
    """An integer key for each vertex of each point's simplex.

    A vertex of remainder r has the coordinates (D + 1) q + r, so r and the first D of the q identify it. They are the digits of
    a mixed-radix number, with a range that includes the neighbours of every vertex; a step along a direction is an addition.

    Returns:
        keys: (D + 1, N), row r for remainder r; int32 if that suffices, else int64.
        strides: the value of each digit, and 0 for the last q, which is no digit.
        span: the value of the digit r.
    """
    d = len(quotient) - 1
    low, high = (bound.double().tolist() for bound in torch.aminmax(quotient[:d], dim=1))
    strides, span = [], 1
    for lowest, highest in zip(low, high, strict=True):
        strides.append(span)
        span *= int(highest) - int(lowest) + 4
    if span * (d + 1) >= 2**63:
        raise ArgumentError(
            f"PermutohedralLattice: features spans {span * (d + 1):.1e} lattice cells; expected fewer than 2^63: "
            "divide the features by larger standard deviations"
        )
    dtype = torch.int32 if span * (d + 1) < 2**31 else torch.int64
    keys = torch.empty_like(quotient, dtype=dtype)
    keys[0] = sum(stride * (2 - int(lowest)) for stride, lowest in zip(strides, low, strict=True))
    for stride, digit in zip(strides, quotient[:d], strict=True):
        keys[0].add_(digit.to(dtype), alpha=stride)
    strides.append(0)
    stride_column = torch.tensor(strides, dtype=dtype, device=keys.device)[:, None]
    step = torch.empty_like(keys).scatter_(0, position, stride_column.expand_as(keys))
    for r in range(d):  # vertex r + 1 is vertex r with every coordinate plus 1, but that of the r-th offset minus D
        torch.sub(keys[r], step[r], out=keys[r + 1])
        keys[r + 1] += span
    return keys, strides, span


def _splat_and_slice(keys: Tensor, barycentric: Tensor) -> tuple[_Sparse, _Sparse, Tensor]:
    """The matrices points -> vertices and vertices -> points, and the ascending keys (M,) of the vertices."""
    corners, points = keys.shape
    columns = torch.empty(points, corners, dtype=torch.int32, device=keys.device)
    parts, total = [], 0
    for r in range(corners):  # a vertex has one remainder, so remainders are numbered separately
        ordered, point = keys[r].sort(stable=True)
        vertices, vertex, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
        columns[:, r].scatter_(0, point, vertex.add_(total).int())
        parts.append((point.int(), counts, barycentric[r].index_select(0, point), vertices))
        total += len(vertices)
    point, counts, weights, vertices = map(torch.cat, zip(*parts, strict=True))
    splat = _Sparse(point, F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0)), weights)
    alpha = 1 / (1 + 2.0 ** (1 - corners))  # the gain of the blurs, as in pydensecrf
    return splat, _sparse(columns, barycentric.T * alpha), vertices


def _blurs(vertices: Tensor, strides: list[int], span: int) -> list[_Sparse]:
    """For each direction the (M, M) matrix with 1 on the diagonal and 0.5 at the neighbours that are vertices."""
    d, count = len(strides) - 1, len(vertices)
    itself = torch.arange(count, dtype=torch.int32, device=vertices.device)
    # A step subtracts 1 from every coordinate, so remainder 0 becomes D with every q lowered, and adds D + 1 to one of them.
    lowered = torch.where(vertices < span, vertices + (d * span - sum(strides)), vertices - span)
    blurs = []
    for stride in strides:
        ordered, origin = torch.cat([vertices, lowered + stride]).sort(stable=True)  # a join: faster than a binary search
        met = (ordered[1:] == ordered[:-1]).nonzero()[:, 0]
        target, source = origin.index_select(0, met), origin[1:].index_select(0, met) - count
        columns = itself[:, None].repeat(1, 3)  # a missing neighbour is the vertex itself with weight 0: equal lengths are fast
        weights = torch.zeros_like(columns, dtype=torch.float32)
        weights[:, 0] = 1
        for place, here, there in ((1, source, target), (2, target, source)):
            columns[:, place].scatter_(0, here, there.int())
            weights[:, place].index_fill_(0, here, 0.5)
        blurs.append(_sparse(columns, weights))
    return blurs


def _sparse(columns: Tensor, weights: Tensor) -> _Sparse:
    """The sparse matrix with the entries columns[r], weights[r] in row r, both (R, n)."""
    offsets = torch.arange(0, columns.numel() + 1, columns.shape[1], dtype=torch.int32, device=columns.device)
    return _Sparse(columns.view(-1), offsets, weights.contiguous().view(-1))
