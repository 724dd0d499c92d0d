"""Training samples: the official geometry, and nothing random but the generator that is passed."""

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from wsss.data import augment
from wsss.data.augment import classifier_sample, irn_sample, random_window, top_left_crop
from wsss.data.images import normalise, resize_image, resize_mask, scaled_size
from wsss.errors import ArgumentError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    """(40, 60, 3) uint8, no symmetry."""
    return rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def label_of(image):
    """A label that shows where each pixel came from: 1 + row // 2."""
    return np.repeat(1 + np.arange(image.shape[0], dtype=np.uint8)[:, None] // 2, image.shape[1], axis=1)


def official_crop(image, label, top, left, size):
    """`imutils.random_crop` written plainly: containers of 0 and 255, the image in its place."""
    container, ignore = np.zeros((3, size, size), np.float32), np.full((size, size), 255, np.uint8)
    for row in range(size):
        for column in range(size):
            y, x = row + top, column + left
            if 0 <= y < label.shape[0] and 0 <= x < label.shape[1]:
                container[:, row, column] = image[:, y, x]
                ignore[row, column] = label[y, x]
    return container, ignore


@pytest.mark.parametrize("crop_size", [16, 48, 96])
@pytest.mark.parametrize("seed", range(6))
def test_irn_sample_is_resize_flip_crop(image, crop_size, seed):
    label = label_of(image)
    pixels, classes = irn_sample(image, label, rng(seed), crop_size)
    draws = rng(seed)
    size = scaled_size((40, 60), draws.uniform(0.5, 1.5))
    scaled, scaled_label = normalise(resize_image(image, size)).numpy(), resize_mask(label, size)
    if draws.random() < 0.5:
        scaled, scaled_label = scaled[:, :, ::-1], scaled_label[:, ::-1]
    top, left = random_window(size, crop_size, draws)
    expected, expected_label = official_crop(scaled, scaled_label, top, left, crop_size)
    assert pixels.dtype == torch.float32 and np.array_equal(pixels.numpy(), expected)
    assert classes.dtype == torch.uint8 and np.array_equal(classes.numpy(), expected_label[2::4, 2::4])  # Pillow's nearest at 1/4


@pytest.mark.parametrize("crop_size", [32, 80])
@pytest.mark.parametrize("seed", range(6))
def test_classifier_sample_is_resize_flip_crop(image, crop_size, seed):
    pixels = classifier_sample(image, rng(seed), crop_size, resize_long=(30, 90))
    draws = rng(seed)
    target = draws.integers(30, 91)
    size = scaled_size((40, 60), target / 60)
    scaled = normalise(resize_image(image, size)).numpy()
    if draws.random() < 0.5:
        scaled = scaled[:, :, ::-1]
    top, left = random_window(size, crop_size, draws)
    expected, _ = official_crop(scaled, np.zeros(size, np.uint8), top, left, crop_size)
    assert np.array_equal(pixels.numpy(), expected)


def test_both_flips_and_all_sizes_occur(monkeypatch):
    sizes, draws = set(), rng()
    monkeypatch.setattr(augment, "resize_image", lambda array, size: sizes.add(size) or resize_image(array, size))
    bright_on_the_right = np.zeros((40, 50, 3), np.uint8)
    bright_on_the_right[:, 25:] = 255
    samples = [classifier_sample(bright_on_the_right, draws, 16, resize_long=(16, 18)) for _ in range(200)]
    assert {size[1] for size in sizes} == {16, 17, 18}  # both ends included
    assert 70 < sum(sample[..., :8].sum() > sample[..., 8:].sum() for sample in samples) < 130


def test_window_is_uniform_and_wastes_nothing():
    draws = rng()
    windows = [random_window((12, 5), 8, draws) for _ in range(500)]
    assert {top for top, _ in windows} == {0, 1, 2, 3, 4}  # the image is 4 higher than the crop
    assert {left for _, left in windows} == {0, -1, -2, -3}  # and 3 narrower
    assert random_window((8, 8), 8, draws) == (0, 0)


def test_padding_is_zero_after_normalisation(image):
    pixels = classifier_sample(image, rng(), 100, resize_long=(60, 60))
    shown = (pixels != 0).any(dim=0)
    rows, columns = shown.any(dim=1), shown.any(dim=0)
    assert rows.sum() == 40 and columns.sum() == 60 and (pixels[:, ~rows] == 0).all()
    assert not (pixels[:, rows][:, :, columns] == 0).any()


def test_top_left_crop(image):
    pixels = top_left_crop(image, 50)
    assert pixels.shape == (3, 50, 50)
    assert torch.equal(pixels[:, :40], normalise(image)[:, :, :50]) and (pixels[:, 40:] == 0).all()
    assert torch.equal(top_left_crop(image, 16), normalise(image)[:, :16, :16])


def test_the_generator_is_the_only_source(image):
    label = label_of(image)
    first = classifier_sample(image, rng(5), 32, color_jitter=0.3), *irn_sample(image, label, rng(5), 32)
    for seed in (1, 2):  # global generators must not matter, nor be used
        np.random.seed(seed), torch.manual_seed(seed), random.seed(seed)
    states = np.random.get_state()[1].tobytes(), torch.random.get_rng_state(), random.getstate()
    again = classifier_sample(image, rng(5), 32, color_jitter=0.3), *irn_sample(image, label, rng(5), 32)
    assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(first, again))
    assert states[0] == np.random.get_state()[1].tobytes() and states[2] == random.getstate()
    assert torch.equal(states[1], torch.random.get_rng_state())
    assert not torch.equal(classifier_sample(image, rng(6), 32), classifier_sample(image, rng(5), 32))


def test_color_jitter_is_brightness_contrast_saturation(image):
    result = classifier_sample(image, rng(3), 60, resize_long=(60, 60), color_jitter=0.4)
    draws = rng(3)
    draws.integers(60, 61)
    picture = Image.fromarray(image)
    enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for enhance, factor in zip(enhancers, draws.uniform(0.6, 1.4, size=3)):
        picture = enhance(picture).enhance(factor)
    expected = normalise(np.array(picture))
    if draws.random() < 0.5:
        expected = expected.flip(-1)
    top, left = random_window((40, 60), 60, draws)
    assert torch.equal(result[:, -top:40 - top], expected) and left == 0


def test_extreme_sizes():
    for height, width in [(1, 1), (1, 700), (700, 3)]:
        image = np.full((height, width, 3), 9, np.uint8)
        assert classifier_sample(image, rng(), 32, resize_long=(20, 40)).shape == (3, 32, 32)
        pixels, classes = irn_sample(image, np.zeros((height, width), np.uint8), rng(), 32)
        assert pixels.shape == (3, 32, 32) and classes.shape == (8, 8)


def test_impossible_numbers_are_refused(image):
    label = label_of(image)
    with pytest.raises(ArgumentError, match=r"resize_long is \(9, 8\); expected 1 <= shortest <= longest"):
        classifier_sample(image, rng(), 32, resize_long=(9, 8))
    with pytest.raises(ArgumentError, match=r"color_jitter is 1\.5; expected 0 <= color_jitter < 1"):
        classifier_sample(image, rng(), 32, color_jitter=1.5)
    with pytest.raises(ArgumentError, match="crop_size is 0; expected at least 1"):
        classifier_sample(image, rng(), 0)
    with pytest.raises(ArgumentError, match="crop_size is 30; expected a multiple of 4"):
        irn_sample(image, label, rng(), 30)
    with pytest.raises(ArgumentError, match=r"scale is \(0, 1\); expected 0 < smallest"):
        irn_sample(image, label, rng(), 32, scale=(0, 1))
    with pytest.raises(ArgumentError, match=r"label is \(39, 60\) but its image is \(40, 60\)"):
        irn_sample(image, label[1:], rng(), 32)
