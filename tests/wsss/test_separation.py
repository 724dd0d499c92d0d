"""The rule that chooses a background threshold without masks, against a slow, obvious form."""

import numpy as np
import pytest
import torch

from wsss.cams.separation import UNIT, Separation
from wsss.errors import ArgumentError, DataError
from wsss.metrics.semantic import THRESHOLDS


def case(seed: int = 0, size=(12, 15), k: int = 2):
    draws = np.random.default_rng(seed)
    maps = draws.random((k, *size), np.float32) ** 2
    maps[:, 3:8, 4:9] += 0.4
    image = draws.integers(0, 90, (*size, 3), dtype=np.uint8)
    image[3:8, 4:9] += 120
    return (maps / maps.max(axis=(1, 2), keepdims=True)), image


def explained(features: np.ndarray, foreground: np.ndarray) -> float:
    """By the definition: 1 - variance within both sides / variance, of features (P, D)."""
    if not 0 < foreground.sum() < len(foreground):
        return 0.0
    within = sum(((features[side] - features[side].mean(axis=0)) ** 2).sum() for side in (foreground, ~foreground))
    return 1 - within / ((features - features.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
def test_the_shares_are_those_of_the_definition(as_type):
    separation = Separation()
    expected = np.zeros((2, len(THRESHOLDS)))
    for seed in range(2):
        maps, image = case(seed)
        separation.update(as_type(maps), image)
        values, colours = maps.max(axis=0).reshape(-1, 1).astype(float), image.reshape(-1, 3).astype(float)
        for number, threshold in enumerate(THRESHOLDS):
            foreground = values[:, 0] > np.float32(threshold)
            expected[:, number] += explained(values, foreground), explained(colours, foreground)
    np.testing.assert_allclose(separation.sums / UNIT, expected, atol=1e-8)
    assert separation.best() == THRESHOLDS[(expected[0] * expected[1]).argmax()]


def test_the_threshold_divides_object_and_background():
    maps = np.full((1, 10, 10), 0.2, np.float32)
    maps[0, :, 4:] = 0.3     # around the object the map fades, the colour does not
    maps[0, :, 6:] = 0.9
    image = np.full((10, 10, 3), 40, np.uint8)
    image[:, 6:] = (200, 180, 40)
    separation = Separation()
    separation.update(maps, image)
    assert 0.3 <= separation.best() < 0.9


def test_parts_of_a_list_add_up_in_any_order_and_images_without_maps_say_nothing():
    whole, parts = Separation(), [Separation(), Separation()]
    for seed in range(4):
        whole.update(*case(seed))
        parts[seed % 2].update(*case(seed))
    assert (parts[1].sums + parts[0].sums == whole.sums).all()
    before = whole.sums.copy()
    whole.update(np.zeros((0, 12, 15), np.float32), case()[1])
    assert (whole.sums == before).all()


def test_what_separates_nothing_is_refused():
    maps, image = case()
    for each in ((maps, np.zeros_like(image)), (np.zeros_like(maps), image)):
        separation = Separation()
        separation.update(*each)
        with pytest.raises(DataError, match="no background threshold separates the maps"):
            separation.best()
    with pytest.raises(ArgumentError, match=r"maps has shape \(2, 12, 15\), image \(11, 15, 3\)"):
        Separation().update(maps, image[1:])
