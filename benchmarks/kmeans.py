"""K-means by direction: kmeans_pytorch 0.3, which the official code calls, re-implemented with a fixed start, against ours."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, share_of_unequal
from wsss.cams.clustering import kmeans

ROUNDS = 100   # kmeans_pytorch has no limit


def cosine_kmeans(features: Tensor, centers: Tensor, tolerance: float = 5.0) -> Tensor:
    """(N,) clusters: assignment by N x K x D products, centres as raw means, until total shift squared < tolerance."""
    for _ in range(ROUNDS):
        units, unit_centers = (x / x.norm(dim=-1, keepdim=True) for x in (features[:, None], centers[None]))
        chosen = (1 - (units * unit_centers).sum(-1)).argmin(1)
        means = torch.stack([features[chosen == k].mean(0) for k in range(len(centers))])
        shift = (means - centers).norm(dim=1).sum()
        centers = means
        if shift ** 2 < tolerance:
            break
    return chosen


def clustered_features(n: int, dimension: int = 2048, kinds: int = 30) -> Tensor:
    """(N, D) not negative, around `kinds` directions, of different lengths."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(kinds, dimension, generator=draw)
    features = torch.empty(n, dimension)
    for start in range(0, n, 4096):
        part = features[start:start + 4096]
        part.copy_(directions[torch.randint(kinds, (len(part),), generator=draw)])
        part.add_(torch.randn(part.shape, generator=draw)).relu_().mul_(torch.rand(len(part), 1, generator=draw) + 0.5)
    return features


def _case(n: int, clusters: int = 12, dimension: int = 2048) -> Case:
    features = clustered_features(n, dimension)
    start = features[:: n // clusters][:clusters].clone()

    def ours() -> Tensor:
        return kmeans(features, clusters, generator=np.random.default_rng(0), init=start, tolerance=0, total_shift=5 ** 0.5,
                      max_iterations=ROUNDS).assignment
    return Case(f"{n} x {dimension} into {clusters}", ours, lambda: cosine_kmeans(features, start), share_of_unequal,
                "N x K x D products; difference: share of features in another cluster", "float32")


def _large(n: int) -> Case:
    features = clustered_features(n).half()

    def ours() -> Tensor:
        return kmeans(features, 12, generator=np.random.default_rng(0), tolerance=1e-3).assignment
    return Case(f"{n} x 2048 into 12, {features.nbytes / 2**20:.0f} MiB", lambda: ours, form="float16", once=True)


BENCHMARKS = {
    "kmeans": lambda quick: _case(5000 if quick else 20000),
    "kmeans_person": lambda quick: _large(20000 if quick else 340000),   # the number of features of VOC's class person
}
