"""The instance branch against the official algorithm, said again with plain loops; and what the official code cannot do."""

import numpy as np
import pytest
import torch

from tests.reference import IDS, load
from wsss.errors import ArgumentError
from wsss.refinement import instances
from wsss.refinement.instances import (
    Detections,
    detect_instances,
    group_pixels,
    nothing_detected,
    refine_centroids,
    walk_instances,
)
from wsss.refinement.walk import random_walk

FOUR = ((0, 1), (1, 0), (0, -1), (-1, 0))


# The official algorithm (irn a2ece00, step/make_ins_seg_labels.py), one pixel after the other.

def slow_centroids(displacement, iterations=300):
    _, height, width = displacement.shape
    result = np.zeros((2, height, width), np.int64)
    for row in range(height):
        for column in range(width):
            y, x = np.float32(row), np.float32(column)
            for _ in range(iterations):
                uy, dy, ux, dx = int(np.ceil(y)), int(np.floor(y)), int(np.ceil(x)), int(np.floor(x))
                y_c, x_c = np.float32(y - dy), np.float32(x - dx)
                step = [d[uy, ux] * y_c * x_c + d[uy, dx] * y_c * (1 - x_c) + d[dy, ux] * (1 - y_c) * x_c
                        + d[dy, dx] * (1 - y_c) * (1 - x_c) for d in displacement]
                y = np.clip(np.float32(y + step[0]), np.float32(0), np.float32(height - 1))
                x = np.clip(np.float32(x + step[1]), np.float32(0), np.float32(width - 1))
            result[:, row, column] = int(np.round(y)), int(np.round(x))
    return result


def slow_components(values):
    """Flood fill from each pixel that has no number yet."""
    found, number = np.zeros(values.shape, np.int64), 0
    for start in np.argwhere(values):
        if found[tuple(start)]:
            continue
        number, pixels = number + 1, [tuple(start)]
        while pixels:
            y, x = pixels.pop()
            if 0 <= y < values.shape[0] and 0 <= x < values.shape[1] and not found[y, x] and values[y, x] == values[tuple(start)]:
                found[y, x] = number
                pixels += [(y + dy, x + dx) for dy, dx in FOUR]
    return found


def slow_groups(centroids, displacement, threshold=2.5):
    """As one-hot masks (K, h, w)."""
    regions = slow_components(np.sqrt(displacement[0] ** 2 + displacement[1] ** 2) < threshold)
    landed = regions[centroids[0], centroids[1]]
    return np.stack([landed == number for number in sorted(set(landed.ravel().tolist()))])


def slow_instances(maps, masks, edge, classes, size, background=0.25, share=0.01):
    """(scores, classes, masks) from all C * K maps at full size."""
    seeds = torch.stack([cam * torch.from_numpy(mask) for cam in maps for mask in masks])
    up = torch.nn.functional.interpolate(random_walk(seeds, edge)[None], scale_factor=4, mode="bilinear")[0, :, :size[0], :size[1]]
    up = up / up.max()
    winner = torch.cat([torch.full((1, *size), background), up]).argmax(0).numpy()
    scores, labels, parts = [], [], []
    for i, soft in enumerate(up.numpy()):
        regions = slow_components(winner == i + 1)
        for number in range(1, regions.max() + 1):
            part = regions == number
            scores.append(0 if part.sum() < share * size[0] * size[1] else (soft * part).max())
            labels.append(classes[i // len(masks)])
            parts.append(part)
    return scores, labels, parts


def field(height, width, seed=0, strength=3.0):
    """A smooth random displacement (2, h, w) float32 with several centres."""
    draws = np.random.default_rng(seed).normal(0, strength, (1, 2, max(2, height // 5), max(2, width // 5))).astype(np.float32)
    return torch.nn.functional.interpolate(torch.from_numpy(draws), (height, width), mode="bicubic")[0].numpy()


SIZES = [(1, 1), (1, 12), (9, 1), (13, 17), (24, 20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("iterations", [1, 40])
def test_refinement_is_the_official_one_bit_by_bit(size, iterations):
    displacement = field(*size)
    assert np.array_equal(refine_centroids(displacement, iterations), slow_centroids(displacement, iterations))


def test_every_pixel_finds_the_centre_of_its_object_and_stopping_early_changes_nothing():
    displacement = field(12, 15, seed=3)
    assert np.array_equal(refine_centroids(displacement), slow_centroids(displacement))
    still = np.zeros((2, 6, 7), np.float32)
    assert np.array_equal(refine_centroids(still), np.indices((6, 7)))
    y, x = np.indices((20, 30)).astype(np.float32)
    centres = np.where(x < 15, 7, 22)
    displacement = np.stack([10 - y, centres - x]) * 0.3
    centroids = refine_centroids(displacement)
    assert (centroids[0] == 10).all() and np.array_equal(centroids[1], centres)
    groups = group_pixels(centroids, displacement, threshold=0.7)
    assert np.array_equal(groups, (x >= 15).astype(int))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.5, 2.5])
def test_groups_are_the_official_ones(size, threshold):
    displacement = field(*size, seed=1)
    centroids = refine_centroids(displacement, 50)
    expected = slow_groups(centroids, displacement, threshold)
    groups = group_pixels(centroids, displacement, threshold)
    assert np.array_equal(groups == np.arange(len(expected))[:, None, None], expected)


def test_what_lands_outside_of_every_centre_is_one_group():
    displacement = np.full((2, 4, 12), 9.0, np.float32)
    displacement[:, :, 2:4] = displacement[:, :, 8:10] = 0
    centroids = np.indices((4, 12))
    groups = group_pixels(centroids, displacement)
    assert groups[0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 2, 2, 0, 0]


def random_case(seed=0, size=(70, 94), n_classes=2):
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    draws = torch.Generator().manual_seed(seed)
    maps = torch.rand(n_classes, height, width, generator=draws) ** 2
    edge = torch.rand(height, width, generator=draws) ** 4
    towards_lines = -2 * np.sin(2 * np.pi * (np.indices((height, width)) + seed) / 9)   # centres are 9 cells apart
    displacement = towards_lines.astype(np.float32)
    return maps, edge, group_pixels(refine_centroids(displacement, 100), displacement, threshold=1.0), size


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_walk_and_detection_are_the_official_ones(seed, at_once, monkeypatch):
    monkeypatch.setattr(instances, "AT_ONCE", at_once)
    maps, edge, groups, size = random_case(seed)
    n_groups = int(groups.max()) + 1
    assert n_groups > 2
    scores, classes, masks = slow_instances(maps, groups == np.arange(n_groups)[:, None, None], edge, [4, 7], size)
    strength, owner = walk_instances(maps, groups, edge, size, size)
    found = detect_instances(strength, owner, [4, 7], n_groups)
    assert found.classes.tolist() == classes and 0 < np.count_nonzero(found.score) < len(classes)
    assert np.array_equal(found.masks(), np.stack(masks))
    np.testing.assert_allclose(found.score, np.array(scores, np.float32), rtol=3e-7, atol=0)   # the last bit is torch's


def test_memory_is_bounded_by_the_maps_at_once(monkeypatch):
    most, walk = [], random_walk

    def watched(x, *args, **options):
        most.append(len(x))
        return walk(x, *args, **options)
    monkeypatch.setattr(instances, "random_walk", watched)
    maps, edge, _, size = random_case()
    groups = np.arange(maps[0].numel()).reshape(maps.shape[1:]) % 50   # fifty groups, a hundred maps
    maps[1, :, :] = 0
    maps[1, 2, 3] = 1   # the other class is seen in one group alone
    walk_instances(maps, groups, edge, size, size)
    assert most == [32, 19]


def test_a_shrunk_image_gets_masks_of_its_own_size_and_no_class_or_maps_of_zeros_no_detection():
    maps, edge, groups, size = random_case()
    strength, owner = walk_instances(maps, groups, edge, size, (140, 188))
    assert strength.shape == owner.shape == (140, 188) and strength.max() == 1
    for nothing in (maps[:0], maps * 0):
        strength, owner = walk_instances(nothing, groups, edge, size, size)
        assert not strength.any() and (owner == -1).all()
        for background in (0.0, 0.25):
            found = detect_instances(strength, owner, [0, 1], int(groups.max()) + 1, background=background)
            assert found.score.shape == found.classes.shape == (0,) and found.masks().shape == (0, *size)
    empty = nothing_detected(size)
    assert empty.masks().shape == (0, *size) and empty.label.dtype == np.uint8


def test_small_fragments_stay_with_score_0_and_ties_are_background():
    strength, owner = np.zeros((10, 20), np.float32), np.full((10, 20), -1)
    strength[:2, :4], owner[:2, :4] = 1.0, 5        # class 1, group 2 of 3
    strength[9, 19], owner[9, 19] = 0.75, 5         # the same owner, one pixel: less than 1 %
    strength[5, 5:9], owner[5, 5:9] = 0.5, 0        # class 0, group 0
    strength[7, :], owner[7, :] = 0.25, 4           # no more than the background
    found = detect_instances(strength, owner, [3, 8], 3)
    assert found.classes.tolist() == [3, 8, 8] and found.score.tolist() == [0.5, 1.0, 0.0]
    assert [int((found.label == i).sum()) for i in (1, 2, 3)] == [4, 8, 1] and found.label[7, 0] == 0
    assert detect_instances(strength, owner, [3, 8], 3, min_area=0.03).score.tolist() == [0.0, 1.0, 0.0]


def test_more_detections_than_a_byte_counts():
    strength, owner = np.ones((60, 60), np.float32), np.indices((60, 60)).sum(0) % 2
    found = detect_instances(strength, owner, [0], 2)
    assert len(found.score) == 3600 and found.label.dtype == np.uint16 and not found.score.any()
    assert isinstance(found, Detections) and np.bincount(found.label.reshape(-1))[1:].tolist() == [1] * 3600


@pytest.mark.parametrize("image_id", IDS)
def test_the_displacements_of_a_network(image_id):
    displacement = load("irn", image_id)["dp"][:, :14, :14]
    centroids = refine_centroids(displacement, 100)
    assert np.array_equal(centroids, slow_centroids(displacement, 100))
    assert np.array_equal(group_pixels(centroids, displacement) == np.arange(len(slow_groups(centroids, displacement)))[:, None, None],
                          slow_groups(centroids, displacement))


@pytest.mark.parametrize(("displacement", "message"), [
    (np.zeros((3, 4, 5)), r"displacement is \(3, 4, 5\); expected finite"), (np.zeros((2, 0, 5)), r"displacement is \(2, 0, 5\)"),
    (np.full((2, 4, 5), np.nan), r"displacement is \(2, 4, 5\) and not finite")])
def test_wrong_displacements(displacement, message):
    with pytest.raises(ArgumentError, match=message):
        refine_centroids(displacement)
    with pytest.raises(ArgumentError, match=message):
        group_pixels(np.zeros((2, 4, 5), int), displacement)
