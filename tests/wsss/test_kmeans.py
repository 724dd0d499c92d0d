"""K-means against a plain loop, its promises on degenerate input, and the library the official code calls."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.cams.clustering import kmeans, kmeans_pytorch
from wsss.errors import ArgumentError, BackendError


def rng(seed=0):
    return np.random.default_rng(seed)


def blobs(n=600, dimension=20, n_clusters=4, seed=0):
    """Non-negative features around a few directions, with lengths over four orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.rand(n_clusters, dimension, generator=generator) ** 4
    label = torch.randint(n_clusters, (n,), generator=generator)
    features = (directions[label] + 0.3 * torch.randn(n, dimension, generator=generator)).relu()
    return features * 10 ** (4 * torch.rand(n, 1, generator=generator) - 2), label


def plain_kmeans(features, centers, iterations):
    """Every feature to the centre of the greatest cosine, every centre to the mean of its raw features."""
    features, centers = features.double(), centers.double()
    for _ in range(iterations):
        assignment = torch.tensor([int(F.cosine_similarity(f[None], centers).argmax()) for f in features])
        centers = torch.stack([features[assignment == k].mean(dim=0) for k in range(len(centers))])
    return assignment, centers


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_equals_a_plain_loop(iterations, monkeypatch):
    monkeypatch.setattr("wsss.cams.clustering._CHUNK", 250)  # several chunks, the last one smaller
    features, _ = blobs()
    initial = features[:4].clone()
    assignment, centers = plain_kmeans(features, initial, iterations)
    ours = kmeans(features, 4, generator=rng(), max_iterations=iterations, tolerance=0, init=initial)
    assert torch.equal(ours.assignment, assignment) and ours.n_iterations == iterations
    torch.testing.assert_close(ours.centers.double(), centers, rtol=1e-5, atol=1e-5)
    units = kmeans(F.normalize(features, dim=1), 4, generator=rng(), max_iterations=iterations, tolerance=0, init=initial)
    assert (F.cosine_similarity(units.centers, ours.centers) < 0.999).any()  # raw means are not means of unit vectors


def test_finds_the_clusters_and_its_result_is_consistent():
    features, label = blobs(n_clusters=4)
    found = kmeans(features, 4, generator=rng())
    assert found.converged and found.n_iterations < 100
    for k in range(4):
        share = torch.bincount(label[found.assignment == k]).max() / (found.assignment == k).sum()
        assert share > 0.9
    found = kmeans(features, 7, generator=rng(3), tolerance=0)
    for k, center in enumerate(found.centers):
        torch.testing.assert_close(center, features[found.assignment == k].mean(dim=0), rtol=1e-5, atol=1e-5)
    similarity = F.cosine_similarity(features, found.centers[found.assignment])
    torch.testing.assert_close(found.similarity, similarity, rtol=0, atol=1e-5)  # nothing moved in the last iteration
    nearest = found.nearest(2, 5)
    members = (found.assignment == 2).nonzero()[:, 0]
    assert set(nearest.tolist()) == set(members[similarity[members].topk(5).indices].tolist())
    assert (found.similarity[nearest].diff() <= 0).all() and len(found.nearest(2, 10**6)) == len(members)


def test_same_seed_same_bits_and_the_features_stay():
    features, _ = blobs()
    before = features.clone()
    one, two, other = (kmeans(features.requires_grad_(), 5, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(features, before) and not one.centers.requires_grad
    assert torch.equal(one.centers, two.centers) and torch.equal(one.assignment, two.assignment)
    assert not torch.equal(one.centers[0], other.centers[0])


def test_stop_rules():
    features, _ = blobs()
    runs = [kmeans(features, 9, generator=rng(), tolerance=t, total_shift=s) for t, s in ((0, 0), (0.02, 0), (0, 1e9))]
    assert runs[0].n_iterations > runs[1].n_iterations > runs[2].n_iterations == 1
    assert all(run.converged for run in runs)
    capped = kmeans(features, 9, generator=rng(), max_iterations=2, tolerance=0)
    assert capped.n_iterations == 2 and not capped.converged


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_fewer_features_than_clusters(init):
    features = torch.eye(3) * torch.tensor([[1.0], [20], [300]])
    found = kmeans(features, 12, generator=rng(), init=init)
    assert sorted(found.centers.amax(dim=1).tolist()) == [1, 20, 300] and found.converged
    single = kmeans(features[1:2], 12, generator=rng(), init=init)
    assert single.centers.tolist() == [[0, 20, 0]] and single.assignment.tolist() == [0]


def test_zero_features_are_left_out():
    features, _ = blobs()
    zeros = torch.zeros(len(features) * 2, 20)
    zeros[::2] = features
    found, expected = (kmeans(f, 4, generator=rng(), init=features[:4]) for f in (zeros, features))
    assert torch.equal(found.assignment[::2], expected.assignment) and (found.assignment[1::2] == -1).all()
    assert (found.similarity[1::2] == 0).all()
    torch.testing.assert_close(found.centers, expected.centers)


@pytest.mark.parametrize("features", [torch.zeros(0, 8), torch.zeros(5, 8)])
@pytest.mark.parametrize("init", ["k-means++", "random", torch.ones(3, 8)])
def test_nothing_to_cluster_gives_no_cluster(features, init):
    found = kmeans(features, 3, generator=rng(), init=init)
    assert found.centers.shape == (0, 8) and found.assignment.tolist() == [-1] * len(features) and found.converged


def test_duplicates_give_one_cluster_a_direction():
    directions = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    features = directions.repeat(40, 1) * (1 + torch.arange(120.0)[:, None])  # same directions, all lengths differ
    found = kmeans(features, 10, generator=rng())
    assert found.centers.shape == (3, 50) and found.converged
    assert all(len(found.assignment[k::3].unique()) == 1 for k in range(3))
    constant = kmeans(torch.ones(30, 50), 4, generator=rng())
    torch.testing.assert_close(constant.centers, torch.ones(1, 50))
    random = kmeans(features, 10, generator=rng(), init="random")  # several centres may start in one direction
    assert 3 <= len(random.centers) <= 10 and random.centers.isfinite().all()


def test_empty_cluster_is_seeded_again():
    features, _ = blobs()
    initial = torch.cat([-features[:2], features[:3]])  # nothing is nearest to the first two
    one, two = (kmeans(features, 5, generator=rng(5), init=initial) for _ in range(2))
    assert one.centers.shape == (5, 20) and one.converged and torch.equal(one.centers, two.centers)
    assert torch.bincount(one.assignment, minlength=5).min() > 0
    assert kmeans(features, 5, generator=rng(5), init=initial, total_shift=1e9).n_iterations == 2  # not before they have members
    stopped = kmeans(features, 5, generator=rng(5), init=initial, max_iterations=1)
    assert stopped.assignment.unique().tolist() == [0, 1, 2]  # no cluster without members, numbers without gap
    for k, center in enumerate(stopped.centers):
        torch.testing.assert_close(center, features[stopped.assignment == k].mean(dim=0), rtol=1e-5, atol=1e-5)


def test_half_precision_features():
    features, _ = blobs()
    half = features.half()
    found, expected = (kmeans(f, 4, generator=rng(), init=features[:4]) for f in (half, half.float()))
    assert found.centers.dtype == torch.float32 and torch.equal(found.assignment, expected.assignment)
    torch.testing.assert_close(found.centers, expected.centers)


def test_wrong_arguments_are_refused():
    features, _ = blobs()
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ArgumentError, match="1 of 600 features hold NaN, infinite.*the first in row 17"):
            kmeans(features.index_put((torch.tensor(17), torch.tensor(3)), torch.tensor(value)), 4, generator=rng())
    for arguments, message in (
        ({"n_clusters": 0}, "n_clusters is 0"),
        ({"features": features[0]}, r"\(20,\), expected floating point \(N, D\)"),
        ({"features": features.long()}, "torch.int64"),
        ({"features": features[:, :0]}, "D > 0"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"init": "kmeans"}, "init is 'kmeans', expected 'k-means"),
        ({"init": features[:3]}, r"init has shape \(3, 20\), expected \(4, 20\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            kmeans(**{"features": features, "n_clusters": 4, "generator": rng(), **arguments})


def test_optional_back_end_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kmeans_pytorch", None)
    with pytest.raises(BackendError, match="pip install kmeans-pytorch tqdm.*NaN.*N x K x D"):
        kmeans_pytorch(blobs()[0], 4, generator=rng())


def test_optional_back_end_gives_the_same_clusters():
    pytest.importorskip("kmeans_pytorch")
    features, label = blobs()
    features[5] = 0
    state = np.random.get_state()[1].copy()
    theirs = kmeans_pytorch(features, 4, generator=rng(1), tolerance=1e-8)
    assert np.array_equal(np.random.get_state()[1], state) and theirs.assignment[5] == -1
    ours = kmeans(features, 4, generator=rng(), init=theirs.centers, tolerance=0)
    assert torch.equal(ours.assignment, theirs.assignment)  # a fixed point of one is a fixed point of the other
    torch.testing.assert_close(ours.centers, theirs.centers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.similarity, theirs.similarity, rtol=0, atol=1e-5)
    with pytest.raises(ArgumentError, match="1 clusters of 1 features"):
        kmeans_pytorch(features[:1], 4, generator=rng())
