"""The sparse walk against a dense one written plainly, and against the reference case."""

import numpy as np
import pytest
import torch

from tests.reference import IDS, load
from wsss.errors import ArgumentError
from wsss.refinement import walk
from wsss.refinement.affinity import edge_to_affinity
from wsss.refinement.walk import random_walk


def dense_walk(x, edge, beta=10, exp_times=8, radius=5):
    """The formula, with the whole transition matrix in float64."""
    height, width = edge.shape
    edge = edge.double().numpy()
    affinity = np.eye(height * width)
    for i in range(height * width):
        for j in range(i):
            (y0, x0), (y1, x1) = divmod(j, width), divmod(i, width)
            dy, dx = y1 - y0, x1 - x0
            if dy * dy + dx * dx < radius * radius:
                box = [(y, z) for y in range(y0, y1 + 1) for z in range(min(x0, x1), max(x0, x1) + 1)]
                path = [edge[y, z] for y, z in box if abs(dy * (z - x0) - dx * (y - y0)) / np.hypot(dy, dx) < 1]
                affinity[i, j] = affinity[j, i] = 1 - max(path)
    transition = affinity**beta
    transition /= transition.sum(0)
    transition = np.linalg.matrix_power(transition, 2**exp_times)
    return torch.from_numpy(((x.double().numpy() * (1 - edge)).reshape(len(x), -1) @ transition).reshape(x.shape))


def random_case(classes, height, width, seed=0, sharpness=3):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(classes, height, width, generator=draw)
    return x, torch.rand(height, width, generator=draw) ** sharpness


@pytest.mark.parametrize(("classes", "height", "width"), [(1, 1, 1), (2, 1, 9), (1, 7, 1), (3, 3, 2), (2, 13, 17), (4, 15, 5)])
def test_equal_to_the_dense_walk(classes, height, width):
    x, edge = random_case(classes, height, width, seed=height)
    torch.testing.assert_close(random_walk(x, edge).double(), dense_walk(x, edge), rtol=0, atol=1e-7)


@pytest.mark.parametrize("options", [{"beta": 2}, {"exp_times": 0}, {"exp_times": 3}, {"exp_times": 11}, {"radius": 3}, {"radius": 1}])
def test_every_option_of_the_dense_walk(options):
    x, edge = random_case(2, 9, 8, sharpness=8)
    expected = dense_walk(x, edge, **options)
    torch.testing.assert_close(random_walk(x.double(), edge.double(), **options), expected, rtol=0, atol=1e-8)
    assert (expected - dense_walk(x, edge)).abs().max() > 1e-3  # the option matters


@pytest.mark.parametrize("exp_times", [0, 1, 2, 8])
@pytest.mark.parametrize(("classes", "height", "width"), [(1, 1, 1), (2, 1, 9), (3, 3, 2), (5, 13, 17)])
def test_the_form_for_gpus_computes_the_same(classes, height, width, exp_times):
    x, edge = random_case(classes, height, width, seed=height)
    start = x.double().flatten(1)
    bands, _ = walk._symmetric_steps(edge_to_affinity(edge.double(), 5), edge, 10, edge.numel())
    found = walk._power_by_rows(start, *walk._as_rows(bands, edge.numel()), 2**exp_times)
    torch.testing.assert_close(found, walk._power(start, bands, 2**exp_times, edge.numel()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("image_id", IDS)
@pytest.mark.parametrize(("edge", "walked"), [("edge", "rw"), ("edge_stretched", "rw_stretched")])
def test_reference(image_id, edge, walked):
    case = {name: torch.from_numpy(array) for name, array in load("random_walk", image_id).items()}
    torch.testing.assert_close(random_walk(case["cam"], case[edge]), case[walked], rtol=0, atol=1e-4)  # official float32: 3e-5


def test_a_closed_edge_is_not_crossed_and_a_seed_far_away_leaves_nothing_negative():
    x, edge = torch.zeros(1, 12, 12), torch.zeros(12, 12)
    x[0, 2, 2] = 1
    edge[:, 5] = 1
    walked = random_walk(x, edge)
    assert not walked[:, :, 5:].any() and (walked[:, :, :5] > 0.01).all()

    x, edge = random_case(1, 150, 20)
    x[:, 1:] = 0
    walked = random_walk(x, edge)
    assert walked.min() >= 0 and walked[0, 0].min() > 1e-3 and walked[0, 149].max() < 1e-6


def test_equal_bits_and_inputs_left_alone():
    x, edge = random_case(3, 40, 31)
    before = x.clone(), edge.clone()
    first = random_walk(x, edge)
    assert torch.equal(first, random_walk(x, edge[None]))
    assert torch.equal(first[1:2], random_walk(x[1:2], edge))  # a map does not depend on the others
    assert torch.equal(x, before[0]) and torch.equal(edge, before[1])


def test_no_class_half_precision_and_a_grid_whose_dense_matrix_would_take_31_gb():
    x, edge = random_case(2, 6, 5)
    assert random_walk(x[:0], edge).shape == (0, 6, 5)
    half = random_walk(x.half(), edge.half())
    assert half.dtype == torch.float32 and torch.allclose(half, random_walk(x, edge), atol=1e-2)

    x, edge = random_case(1, 250, 350)
    assert random_walk(x, edge).isfinite().all()


@pytest.mark.parametrize(("x", "edge", "options", "message"), [
    (torch.zeros(2, 4, 5), torch.zeros(5, 4), {}, r"\(2, 4, 5\) and edge \(5, 4\); expected \(K, h, w\)"),
    (torch.zeros(4, 5), torch.zeros(4, 5), {}, r"x is \(4, 5\)"),
    (torch.zeros(1, 4, 5), torch.full((4, 5), -3.0), {}, r"edge lies in \[-3.0, -3.0\]; expected \[0, 1\]: apply a sigmoid"),
    (torch.zeros(1, 4, 5), torch.full((4, 5), float("nan")), {}, "edge lies in .nan"),
    (torch.zeros(1, 4, 5), torch.zeros(4, 5), {"beta": 0}, "beta=0, .* expected beta > 0"),
])
def test_wrong_arguments(x, edge, options, message):
    with pytest.raises(ArgumentError, match=message):
        random_walk(x, edge, **options)
