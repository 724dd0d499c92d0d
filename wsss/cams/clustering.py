"""K-means with cosine assignment, which LPCAM uses to find the local prototypes of a class.

As in kmeans_pytorch 0.3, which the official code calls, a feature is assigned to the centre of the greatest cosine, and a
centre is the arithmetic mean of the *raw* features: long features weigh more, and the classifier can be applied to a centre.
Differs because that library never ends once a cluster is empty (its centre is NaN), depends on a global random state, has
no limit of iterations and builds an N x K x D array (33 GB for VOC's `person`). Here the assignment is an N x K matrix
product in chunks, and the sum of a centre is updated only with the features that moved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError, BackendError

_CHUNK = 1024  # rows: 8 MB at D = 2048, which stays in the cache between the two products
_SEEDS_FROM = 128  # features per cluster from which k-means++ chooses: more take longer and change little
_SAME = 1e-6  # cosine distance under which two features have the same direction in float32


@dataclass(frozen=True)
class KMeans:
    """Result of `kmeans`. Every cluster has members."""

    centers: Tensor  #: (K, D) float32, the arithmetic mean of the raw features assigned to it
    assignment: Tensor  #: (N,) int64, cluster of each feature; -1 for a zero feature
    similarity: Tensor  #: (N,) float32, cosine of each feature and its centre; 0 for a zero feature
    n_iterations: int | None  #: None if the back end does not report it
    converged: bool  #: False if stopped by max_iterations

    def nearest(self, cluster: int, count: int) -> Tensor:
        """Indices (n,) of the at most `count` members of a cluster that are most similar to its centre, best first."""
        members = (self.assignment == cluster).nonzero()[:, 0]
        return members[self.similarity[members].argsort(descending=True, stable=True)[:count]]


@torch.no_grad()
def kmeans(
    features: Tensor,
    n_clusters: int,
    *,
    generator: np.random.Generator,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    total_shift: float = 0.0,
    init: str | Tensor = "k-means++",
) -> KMeans:
    """Cluster features by direction.

    It stops when the total shift of the centres is at most max(tolerance * sum of their lengths, total_shift). An empty
    cluster is re-seeded with a feature drawn by its cosine distance to its own centre. A zero feature has no direction and is
    left out. The result has at most `n_clusters` clusters: fewer if there are fewer distinct directions to start from, and 0
    if there are only zero features or none. Deterministic for the same generator state, device and number of threads.

    Args:
        features: (N, D) float32 or float16, on any device; not copied as a whole.
        generator: draws the initial centres and the re-seeds.
        max_iterations: limit of assignments.
        tolerance: relative; 0 to continue until nothing moves.
        total_shift: absolute; official: 5 ** 0.5, with tolerance 0 (kmeans_pytorch stops at total shift squared < tol = 5).
        init: "k-means++" (in cosine distance), "random" (distinct features, official), or centres (n_clusters, D).

    Raises:
        ArgumentError: features not (N, D) or not finite, n_clusters or max_iterations < 1, or an unknown init.
    """
    _check(features, n_clusters)
    if max_iterations < 1:
        raise ArgumentError(f"kmeans: max_iterations is {max_iterations}, expected at least 1")
    lengths = _lengths(features)  # (N,)
    centers = _initial_centers(features, lengths, n_clusters, generator, init)  # (K, D)
    assignment = torch.full_like(lengths, -1, dtype=torch.int64)
    products = torch.zeros_like(lengths)  # length of the feature times its cosine
    sums = torch.zeros(centers.shape, dtype=torch.float64, device=features.device)
    iteration, converged = 0, len(centers) == 0
    while not converged and iteration < max_iterations:
        iteration += 1
        _assign(features, lengths, F.normalize(centers, dim=1), assignment, products, sums)
        counts = torch.bincount(assignment[assignment >= 0], minlength=len(centers))
        means = (sums / counts.clamp_min(1)[:, None]).float()
        empty = (counts == 0).nonzero()[:, 0]
        seeds = _far_features(products, lengths, len(empty), generator)
        means[empty[: len(seeds)]] = features[seeds].float()
        shift = (means - centers).norm(dim=1).sum().item()
        converged = len(seeds) == 0 and shift <= max(tolerance * means.norm(dim=1).sum().item(), total_shift)
        centers = means
    similarity = (products / lengths.clamp_min(torch.finfo(torch.float32).tiny)).clamp_(-1, 1)
    return _without_empty(KMeans(centers, assignment, similarity, iteration, converged))


def kmeans_pytorch(features: Tensor, n_clusters: int, *, generator: np.random.Generator, tolerance: float = 5.0) -> KMeans:
    """The library that the official code calls, for comparison; arguments and result as `kmeans`, seeded from the generator.

    It allocates an N x K x D array, and never ends once a cluster is empty.

    Raises:
        BackendError: kmeans_pytorch is not installed.
        ArgumentError: as `kmeans`, and for fewer than two clusters, for which the library fails.
    """
    try:
        from kmeans_pytorch import kmeans as official
    except ImportError as error:
        raise BackendError(
            f"the back end kmeans_pytorch cannot be imported ({error}): pip install kmeans-pytorch tqdm. It is optional because "
            "it never ends once a cluster is empty (NaN) and needs N x K x D floats; wsss.kmeans needs nothing"
        ) from error
    _check(features, n_clusters)
    lengths = _lengths(features)
    alive = lengths > 0
    n_clusters = min(n_clusters, int(alive.sum()))
    if n_clusters < 2:
        raise ArgumentError(
            f"kmeans_pytorch: {n_clusters} clusters of {int(alive.sum())} features, expected at least 2; use kmeans"
        )
    used = features[alive].float()
    state = np.random.get_state()  # the library draws from NumPy's global generator
    try:
        np.random.seed(generator.integers(2**32))
        found, centers = official(used, n_clusters, distance="cosine", tol=tolerance, device=features.device)
    finally:
        np.random.set_state(state)
    centers = centers.to(features.device)
    assignment = torch.full_like(lengths, -1, dtype=torch.int64)
    assignment[alive] = found.to(features.device)
    similarity = torch.zeros_like(lengths)
    for rows, chunk in _chunks(features):
        similarity[rows] = F.cosine_similarity(chunk, centers[assignment[rows].clamp_min(0)])
    return KMeans(centers, assignment, similarity, None, True)


def _check(features: Tensor, n_clusters: int) -> None:
    if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise ArgumentError(
            f"kmeans: features is {features.dtype} {tuple(features.shape)}, expected floating point (N, D), D > 0"
        )
    if n_clusters < 1:
        raise ArgumentError(f"kmeans: n_clusters is {n_clusters}, expected at least 1")


def _chunks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield row ranges and their features in float32."""
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, features[rows].float()


def _lengths(features: Tensor) -> Tensor:
    """(N,) float32 lengths. Raises ArgumentError for features that are not finite."""
    lengths = torch.empty(len(features), dtype=torch.float32, device=features.device)
    for rows, chunk in _chunks(features):
        lengths[rows] = torch.linalg.vector_norm(chunk, dim=1)
    if not lengths.isfinite().all():
        bad = (~lengths.isfinite()).nonzero()[:, 0]
        raise ArgumentError(
            f"kmeans: {len(bad)} of {len(features)} features hold NaN, infinite or too large values, the first in row "
            f"{bad[0].item()}; check that the network was trained to a finite loss, or compute the features in float32"
        )
    return lengths


def _initial_centers(
    features: Tensor, lengths: Tensor, n_clusters: int, generator: np.random.Generator, init: str | Tensor
) -> Tensor:
    """(K, D) float32 raw features, or the centres passed as `init`."""
    if isinstance(init, Tensor):
        if init.shape != (n_clusters, features.shape[1]):
            raise ArgumentError(f"kmeans: init has shape {tuple(init.shape)}, expected ({n_clusters}, {features.shape[1]})")
        return init.to(features.device, torch.float32)
    alive = lengths.nonzero()[:, 0].cpu().numpy()
    if init == "random":
        chosen = generator.choice(alive, min(n_clusters, len(alive)), replace=False)
    elif init == "k-means++":
        size = min(len(alive), _SEEDS_FROM * n_clusters)
        chosen = _k_means_plus_plus(features, np.sort(generator.choice(alive, size, replace=False)), n_clusters, generator)
    else:
        raise ArgumentError(f"kmeans: init is {init!r}, expected 'k-means++', 'random' or a tensor of centres")
    return features[torch.from_numpy(chosen).to(features.device)].float()


def _k_means_plus_plus(features: Tensor, candidates: np.ndarray, n_clusters: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of at most `n_clusters` candidates, each drawn by its distance to earlier ones (Arthur and Vassilvitskii 2007).

    Between unit vectors the squared Euclidean distance is twice the cosine distance.
    """
    units = F.normalize(features[torch.from_numpy(candidates).to(features.device)].float(), dim=1)  # (n, D)
    distance = np.ones(len(candidates))
    chosen: list[int] = []
    while len(chosen) < n_clusters and (distance > 0).any():
        chosen.append(generator.choice(len(candidates), p=distance / distance.sum()))
        to_chosen = (1 - units @ units[chosen[-1]]).double().cpu().numpy()
        distance = np.minimum(distance, np.where(to_chosen > _SAME, to_chosen, 0))
    return candidates[np.array(chosen, dtype=np.int64)]


def _assign(features: Tensor, lengths: Tensor, units: Tensor, assignment: Tensor, products: Tensor, sums: Tensor) -> None:
    """Assign every feature to the most similar of the unit vectors (K, D); update assignment, products and sums in place."""
    clusters = torch.arange(len(units), device=units.device)[:, None]
    for rows, chunk in _chunks(features):
        # The length of a feature does not change its most similar centre, so features are not normalised.
        products[rows], best = (units @ chunk.T).max(dim=0)
        best.masked_fill_(lengths[rows] == 0, -1)
        moved = best != assignment[rows]
        change = (best[moved] == clusters).float() - (assignment[rows][moved] == clusters).float()  # (K, n)
        sums += change @ chunk[moved]
        assignment[rows] = best


def _far_features(products: Tensor, lengths: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Indices of at most `count` features, drawn by cosine distance to their own centre, without those at distance 0."""
    chosen = np.empty(0, dtype=np.int64)
    if count:
        distance = (1 - products / lengths).double()
        weights = torch.where(distance > _SAME, distance, 0).cpu().numpy()  # the NaN of a zero feature compares false
        if weights.any():
            count = min(count, int(np.count_nonzero(weights)))
            chosen = generator.choice(len(weights), count, replace=False, p=weights / weights.sum())
    return torch.from_numpy(chosen).to(lengths.device)


def _without_empty(result: KMeans) -> KMeans:
    kept = torch.bincount(result.assignment[result.assignment >= 0], minlength=len(result.centers)) > 0
    if kept.all():
        return result
    renumber = torch.cat([kept.cumsum(0) - 1, kept.new_full((1,), -1, dtype=torch.int64)])  # the last is index -1
    return KMeans(result.centers[kept], renumber[result.assignment], result.similarity, result.n_iterations, result.converged)
