"""Random walk of activation maps along the affinities of an edge map (IRN, Ahn et al. 2019, section 4.2).

The official code (irn a2ece00, `propagate_to_edge`) squares a dense (h*w) x (h*w) transition matrix T eight times. Here T is
never built: its non-zeros are the affinities of 34 directions (radius 5) and their mirrors, so a step of the walk is 68
multiply-adds of shifted maps. The 256 steps need only 96 products: T is similar to a symmetric matrix S with eigenvalues in
[-1, 1], and S^n = sum_k p_k C_k(S), where C_k is the Chebyshev polynomial and p_k the probability that n fair steps of +1 or -1
end at distance k. Distances beyond a few sqrt(n) have negligible probability, and their terms are dropped.

All in float64: with so many sums of almost equal numbers float32 has errors of up to 4e-4, and memory is no concern without a
dense matrix.
"""

from functools import lru_cache
from math import comb, pi

import torch
from torch import Tensor

from wsss.errors import ArgumentError
from wsss.refinement.affinity import Maps, edge_to_affinity
from wsss.refinement.paths import sources

LEFT_OUT = 1e-9  # total probability of the dropped distances
AT_ONCE = 32768  # numbers in an operation that torch runs on one CPU thread: several would mostly wait for each other

GATHERED = 2**26  # numbers that a GPU gathers at once for a product: 512 MiB

Band = tuple[int, int, Tensor]  # (i, j, weights): the flattened pixels i, i+1, ... receive from j, j+1, ... with these weights


def walk_memory(radius: int, gpu: bool) -> float:
    """Bytes of memory of a random walk per pixel of the image, without copies of the maps.

    In float64 at stride 4: twice the pairs of a cell with later cells nearer than `radius`, nearly half a disc; on a GPU also the
    numbers of the matrix and of its columns, and the neighbours that are gathered.
    """
    return 8 / 16 * pi * radius ** 2 * (4 if gpu else 1)


@torch.no_grad()
def random_walk(x: Tensor, edge: Tensor, *, beta: float = 10, exp_times: int = 8, radius: int = 5,
                steps: int | None = None) -> Tensor:
    """Spread maps over the image but not across its edges: (x * (1 - edge)) T^steps, by default with 2^exp_times steps.

    x: (K, h, w), for example activation maps in [0, 1] on the grid of stride 4; K may be 0. edge: (h, w) or (1, h, w), class
    boundary in [0, 1]. T[i, j] = a_ij^beta / sum_i a_ij^beta, where a_ij is the affinity of two pixels nearer than `radius`
    (`edge_to_affinity`), a_ii = 1, and all others are 0. Returns (K, h, w), float32 or wider.

    Raises ArgumentError for shapes that do not fit, an edge outside [0, 1], or numbers out of range.
    """
    _check(x, edge, beta, exp_times, radius)
    steps = 2**exp_times if steps is None else steps
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        return x.to(dtype)
    edge = edge.double().reshape(x.shape[1:])
    return affinity_walk(x.double() * (1 - edge), edge_to_affinity(edge, radius), beta, steps).to(dtype)


@torch.no_grad()
def affinity_walk(x: Tensor, affinity: Maps, beta: float, steps: int) -> Tensor:
    """Spread maps x (K, h, w) along affinities: x T^steps, with T as in `random_walk`.

    affinity: of each pair, in [0, 1] and in the layout of `edge_to_affinity`; the map of (0, 0) is not read. Returns (K, h, w)
    float64.
    """
    x, n = x.double(), x[0].numel() if len(x) else 0
    if not n:
        return x
    if x.device.type == "cpu":
        bands, scale = _symmetric_steps(affinity, x[0], beta, AT_ONCE)
        starts = (x.flatten(1) * scale).split(max(1, AT_ONCE // n))
        walked = [_power(start, bands, steps, AT_ONCE) for start in starts]
    else:
        bands, scale = _symmetric_steps(affinity, x[0], beta, n)
        starts = (x.flatten(1) * scale).split(max(1, GATHERED // (len(bands) * n)))
        matrix = _as_rows(bands, n)
        walked = [_power_by_rows(start, *matrix, steps) for start in starts]
    return (torch.cat(walked) / scale).view_as(x)


def _symmetric_steps(affinity: Maps, grid: Tensor, beta: float, at_once: int) -> tuple[list[Band], Tensor]:
    """S = D^-1/2 A D^-1/2 of A = affinity^beta with the column sums D, so that T = D^1/2 S D^-1/2. `grid`: any map (h, w).

    Pixels are numbered row by row: a direction is an offset and fills a diagonal of S, its mirror the opposite one. Returns the
    diagonals as bands of at most `at_once` numbers, and the square root of D, (h*w,).
    """
    (height, width), n, columns = grid.shape, grid.numel(), grid.new_ones(grid.numel())
    weights: dict[int, Tensor] = {}
    for direction, near in affinity.items():
        if near.numel() and direction != (0, 0):
            placed = torch.zeros_like(grid)
            placed[sources(direction, height, width)] = near.double().pow(beta)
            offset = direction[0] * width + direction[1]
            weights[offset] = weights.get(offset, 0) + placed.flatten()[: n - offset]
    for offset, weight in weights.items():
        columns[: n - offset] += weight
        columns[offset:] += weight
    scale, bands = columns.sqrt(), []
    for offset, weight in {0: torch.ones_like(columns), **weights}.items():
        weight /= scale[: n - offset] * scale[offset:]
        for i, piece in enumerate(weight.split(at_once)):
            here = i * at_once
            bands.append((here, here + offset, piece))
            if offset:
                bands.append((here + offset, here, piece))
    return bands, scale


def _power(start: Tensor, bands: list[Band], n: int, at_once: int) -> Tensor:
    """start S^n for start (K, h*w), by the recurrence C_k+1 = 2 S C_k - C_k-1 of the Chebyshev polynomials.

    The terms have the signs + + - - + + ..., so that the recurrence only adds to C_k-1, in place.
    """
    terms = start.clone(), torch.zeros_like(start)
    passes = [
        [(new[:, i : i + len(weight)], weight, old[:, j : j + len(weight)]) for i, j, weight in bands]
        for old, new in (terms, terms[::-1])
    ]
    first, *others = _distance_probabilities(n)
    result = start * first
    sums = [list(zip(result.split(at_once, 1), term.split(at_once, 1), strict=True)) for term in terms[::-1]]
    for k, probability in enumerate(others):
        value = 2 * (-1) ** k if k else 1
        for target, weight, moved in passes[k % 2]:
            target.addcmul_(weight, moved, value=value)
        if probability:
            for total, term in sums[k % 2]:
                total.add_(term, alpha=probability * (-1) ** ((k + 1) // 2))
    return result


def _as_rows(bands: list[Band], n: int) -> tuple[Tensor, Tensor]:
    """The matrix S of the bands: weights (len(bands), n) of each pixel's neighbours and, flattened, these neighbours' numbers."""
    weights = bands[0][2].new_zeros(len(bands), n)
    columns = torch.arange(n, device=weights.device).repeat(len(bands), 1)
    for row, (i, j, weight) in enumerate(bands):
        weights[row, i : i + len(weight)] = weight
        columns[row, i : i + len(weight)] += j - i
    return weights, columns.flatten()


def _power_by_rows(start: Tensor, weights: Tensor, columns: Tensor, n: int) -> Tensor:
    """As `_power`, for a GPU: five operations per term instead of one for each of 69 bands, whose launches take longer than
    their work. On a CPU the gathered neighbours would not fit into the cache."""
    first, *others = _distance_probabilities(n)
    before, term, result = torch.zeros_like(start), start, start * first
    for k, probability in enumerate(others):
        gathered = term.index_select(1, columns).view(len(start), *weights.shape)
        before, term = term, gathered.mul_(weights).sum(1).mul_(2 if k else 1).sub_(before)
        if probability:
            result.add_(term, alpha=probability)
    return result


@lru_cache
def _distance_probabilities(n: int) -> tuple[float, ...]:
    """The probability that n fair steps of +1 or -1 end at distance 0, 1, 2, ..., until at most `LEFT_OUT` remains."""
    probabilities: list[float] = []
    left = 1.0
    while left > LEFT_OUT and len(probabilities) <= n:
        k = len(probabilities)
        ways = comb(n, (n - k) // 2) * (2 if k else 1) if (n - k) % 2 == 0 else 0
        probabilities.append(ways / 2**n)
        left -= probabilities[-1]
    return tuple(probabilities)


def _check(x: Tensor, edge: Tensor, beta: float, exp_times: int, radius: int) -> None:
    if x.ndim != 3 or edge.shape not in (x.shape[1:], (1, *x.shape[1:])):
        raise ArgumentError(
            f"random_walk: x is {tuple(x.shape)} and edge {tuple(edge.shape)}; expected (K, h, w) and (h, w) or (1, h, w) of one "
            "grid: resize x to the grid of the edge"
        )
    if edge.numel() and not (edge.min() >= 0 and edge.max() <= 1):
        raise ArgumentError(
            f"random_walk: edge lies in [{float(edge.min())}, {float(edge.max())}]; expected [0, 1]: apply a sigmoid to logits"
        )
    if not (beta > 0 and exp_times >= 0 and radius >= 1):
        raise ArgumentError(
            f"random_walk: beta={beta}, exp_times={exp_times}, radius={radius}; expected beta > 0, exp_times >= 0, radius >= 1"
        )
