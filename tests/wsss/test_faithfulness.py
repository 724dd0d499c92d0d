"""Faithfulness of maps and randomisation of layers, against cases worked out by hand and plain restatements of the definitions."""

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve, gaussian_filter
from scipy.stats import rankdata

from tests.networks import new_backbone, new_classifier
from wsss.errors import ArgumentError
from wsss.metrics.faithfulness import (
    NEIGHBOURS,
    area,
    blurred,
    confidence_change,
    edge_map,
    imputed,
    random_map,
    ranking,
    replaced,
    road_images,
)
from wsss.metrics.randomisation import HEAD, cascading, rank_correlation, ssim, weight_layers


@pytest.fixture
def draws():
    return np.random.default_rng(3)


def test_pixels_are_ranked_and_equal_ones_are_in_random_order(draws):
    saliency = np.array([[0.1, 0.9, 0.0], [0.0, 0.5, 0.0]], np.float32)
    orders = [ranking(saliency, draws).tolist() for _ in range(20)]
    assert all(order[:3] == [1, 4, 0] and sorted(order[3:]) == [2, 3, 5] for order in orders)
    assert {order[3] for order in orders} == {2, 3, 5}


def test_deletion_and_insertion_of_a_network_that_counts_one_pixel():
    """By hand: the class's probability is the value of pixel 2 of four. A map that ranks it first deletes it in the first of four
    steps, so the curve is 1 0 0 0 0; the one that ranks it last has 1 1 1 1 0."""
    image, nothing = torch.ones(3, 2, 2), torch.zeros(3, 2, 2)
    shares = [0, 0.25, 0.5, 0.75, 1]

    def curve(start, end, order):
        return replaced(start, end, np.array(order), shares)[:, 0, 1, 0].numpy()
    assert curve(image, nothing, [2, 0, 1, 3]).tolist() == [1, 0, 0, 0, 0]
    assert curve(image, nothing, [0, 1, 3, 2]).tolist() == [1, 1, 1, 1, 0]
    assert area(curve(image, nothing, [2, 0, 1, 3])) == 0.125 and area(curve(image, nothing, [0, 1, 3, 2])) == 0.875
    assert area(curve(nothing, image, [2, 0, 1, 3])) == 0.875 and area(curve(nothing, image, [0, 1, 3, 2])) == 0.125


def test_every_share_has_its_number_of_pixels(draws):
    image = torch.arange(1, 36.0).expand(3, 35).reshape(3, 5, 7)
    order = ranking(draws.random((5, 7)), draws)
    for share, changed in zip((0, 0.3, 0.9, 1), replaced(image, -image, order, (0, 0.3, 0.9, 1))):
        expected = image.clone().reshape(3, -1)
        for pixel in order[:round(share * 35)]:
            expected[:, pixel] *= -1
        assert torch.equal(changed, expected.reshape(3, 5, 7))


def test_the_blur_is_that_of_rise():
    """`gkern` of RISE: the filtered image of a single pixel of 11 x 11, then a convolution with zeros outside."""
    image = np.random.default_rng(0).standard_normal((3, 17, 20)).astype(np.float32)
    kernel = np.zeros((11, 11))
    kernel[5, 5] = 1
    kernel = gaussian_filter(kernel, 5)
    expected = [convolve(plane.astype(float), kernel, mode="constant") for plane in image]
    np.testing.assert_allclose(blurred(torch.from_numpy(image), 11, 5.0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("full", "masked", "expected"), [
    (0.8, 0.2, (0.75, 0)), (0.5, 0.6, (0, 1)), (0.5, 0.5, (0, 0)), (0.0, 0.1, (0, 1)), (0.0, 0.0, (0, 0))])
def test_drop_and_increase_by_hand(full, masked, expected):
    assert confidence_change(full, masked) == pytest.approx(expected)


def plainly_imputed(image: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Every missing pixel is the weighted mean of its neighbours, one equation at a time."""
    where, found = [tuple(place) for place in np.argwhere(missing)], image.astype(float)
    for plane in found:
        matrix, right = np.zeros((len(where), len(where))), np.zeros(len(where))
        for row, (y, x) in enumerate(where):
            for (down, aside), weight in NEIGHBOURS.items():
                there = (y + down, x + aside)
                if not (0 <= there[0] < plane.shape[0] and 0 <= there[1] < plane.shape[1]):
                    continue
                matrix[row, row] += weight
                if missing[there]:
                    matrix[row, where.index(there)] -= weight
                else:
                    right[row] += weight * plane[there]
        plane[missing] = np.linalg.solve(matrix, right)
    return found


def test_imputation_against_the_equations_one_by_one(draws):
    image, missing = draws.standard_normal((3, 6, 5)).astype(np.float32), draws.random((6, 5)) < 0.6
    missing[:3, :3], missing[5, 4] = True, False
    np.testing.assert_allclose(imputed(image, missing, 0, draws), plainly_imputed(image, missing), atol=1e-6)


def test_imputation_by_hand(draws):
    """A pixel in the corner has three neighbours: (2 * 3 + 2 * 6 + 1 * 10) / 5. A plane of one value stays."""
    image = np.zeros((3, 2, 2), np.float32)
    image[:] = [[0, 3], [6, 10]]
    missing = np.array([[True, False], [False, False]])
    assert imputed(image, missing, 0, draws)[:, 0, 0] == pytest.approx(5.6)
    assert np.array_equal(imputed(image, np.zeros((2, 2), bool), 1, draws), image)
    flat, missing = np.full((3, 9, 8), 0.25, np.float32), draws.random((9, 8)) < 0.7
    np.testing.assert_allclose(imputed(flat, missing, 0, draws), flat, atol=1e-6)
    noisy = imputed(np.zeros((3, 40, 40), np.float32), np.arange(1600).reshape(40, 40) > 0, 0.1, draws)
    assert noisy[:, 0, 0].tolist() == [0, 0, 0] and noisy.reshape(3, -1)[:, 1:].std() == pytest.approx(0.1, rel=0.05)


def test_an_image_without_a_known_pixel_cannot_be_imputed(draws):
    with pytest.raises(ArgumentError, match="all 4 pixels of the image are missing, expected at least one"):
        imputed(np.zeros((3, 2, 2), np.float32), np.ones((2, 2), bool), 0.01, draws)


def test_road_removes_the_first_pixels_of_the_order(draws):
    image, order = draws.standard_normal((3, 4, 5)).astype(np.float32), draws.permutation(20)
    for share, changed in zip((0.2, 0.5), road_images(image, order, (0.2, 0.5), 0.01, draws)):
        touched = np.flatnonzero((changed.numpy() != image).any(0))
        assert set(touched) == set(order[:round(share * 20)])


def test_the_controls():
    ramp = np.zeros((8, 12, 3), np.uint8)
    ramp[:, 6:] = 200
    edges = edge_map(ramp)
    assert edges.max() == 1 and (edges[:, 5:7] == 1).all() and not edges[:, :5].any() and not edges[:, 7:].any()
    assert not edge_map(np.zeros((4, 4, 3), np.uint8)).any()
    first, again, other = (random_map((40, 50), 16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (40, 50) and 0 <= first.min() < first.max() <= 1
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.abs(np.diff(first, axis=1)).max() < 1 / 10   # smooth: 16 pixels a cell


def test_weights_belong_to_the_stage_that_needs_them_and_are_drawn_from_the_head_down():
    net = new_classifier(new_backbone("tiny"), 3).eval().requires_grad_(False)
    images, before = torch.randn(1, 3, 48, 48), {name: value.clone() for name, value in net.state_dict().items()}
    layers = weight_layers(net, images)
    assert list(layers) == [HEAD, *(f"stage {number}" for number in (4, 3, 2, 1, 0))] and layers[HEAD] == [net.classifier]
    outputs = net.backbone.stages(images)
    for kept, name in zip((5, 4, 3, 2, 1, 0), cascading(layers, 5)):   # kept: stages that are as trained
        assert name == ("head" if kept == 5 else f"stage {kept}")
        for stage, output in enumerate(net.backbone.stages(images)):
            assert torch.equal(output, outputs[stage]) == (stage < kept)
    assert {module for name in layers for module in layers[name]} == {
        module for module in net.modules() if any(p.ndim >= 2 for p in module.parameters(recurse=False))}
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (value.ndim < 2), name
        if value.numel() > 500:
            assert value.std() == pytest.approx(float(before[name].std()), rel=0.2) and abs(np.corrcoef(value.ravel(), before[name].ravel())[0, 1]) < 0.2


def test_the_random_weights_depend_on_the_seed_only():
    def drawn(seed):
        net = new_classifier(new_backbone("tiny"), 3).eval().requires_grad_(False)
        list(cascading(weight_layers(net, torch.zeros(1, 3, 32, 32)), seed))
        return net.classifier.weight
    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_the_rank_correlation_is_the_correlation_of_ranks(draws):
    first, second = draws.random((6, 7)), draws.random((6, 7)).round(1)
    assert rank_correlation(first, second) == pytest.approx(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1) and rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.ones((6, 7))) == 0


def test_ssim_against_a_loop_over_windows(draws):
    first, second = draws.random((16, 18)), gaussian_filter(draws.random((16, 18)), 1)
    a, b = ((each - each.min()) / (each.max() - each.min()) for each in (first, second))
    weights = np.exp(-np.arange(-5, 6) ** 2 / (2 * 1.5 ** 2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    found = []
    for y in range(5, 11):
        for x in range(5, 13):
            p, q = (each[y - 5:y + 6, x - 5:x + 6] for each in (a, b))
            p0, q0 = (p * weights).sum(), (q * weights).sum()
            vp, vq, cov = ((s * weights).sum() for s in ((p - p0) ** 2, (q - q0) ** 2, (p - p0) * (q - q0)))
            found.append((2 * p0 * q0 + 1e-4) * (2 * cov + 9e-4) / ((p0 ** 2 + q0 ** 2 + 1e-4) * (vp + vq + 9e-4)))
    assert ssim(first, second) == pytest.approx(np.mean(found))
    assert ssim(first, 3 * first + 1) == pytest.approx(1) and ssim(first, np.zeros((16, 18))) < 0.1
    assert -1 <= ssim(first[:4, :4], second[:4, :4]) <= 1
