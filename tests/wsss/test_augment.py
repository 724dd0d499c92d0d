"""Training samples: the official geometry, and nothing random but the generator that is passed."""

import colorsys
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from wsss.data import augment
from wsss.data.augment import (
    Augmentation,
    classifier_sample,
    irn_sample,
    photometric_distortion,
    random_window,
    segmenter_sample,
    top_left_crop,
)
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


def test_hue_jitter_turns_the_hue_as_torchvision(image):
    adjust_hue = pytest.importorskip("torchvision.transforms.functional").adjust_hue
    result = classifier_sample(image, rng(3), 60, resize_long=(60, 60), hue_jitter=0.3)
    draws = rng(3)
    draws.integers(60, 61)
    turned = np.array(adjust_hue(Image.fromarray(image), draws.uniform(-0.3, 0.3)))
    flipped = turned[:, ::-1] if draws.random() < 0.5 else turned
    top, left = random_window(image.shape[:2], 60, draws)
    expected, _ = official_crop(normalise(np.ascontiguousarray(flipped)).numpy(), np.zeros(image.shape[:2], np.uint8), top, left, 60)
    assert np.array_equal(result.numpy(), expected)
    assert not torch.equal(result, classifier_sample(image, rng(3), 60, resize_long=(60, 60)))
    with pytest.raises(ArgumentError, match="hue_jitter is 0.6; expected 0 <= hue_jitter <= 0.5, in turns"):
        classifier_sample(image, rng(3), 60, hue_jitter=0.6)


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


# The further changes of samples for segmentation networks.

@pytest.mark.parametrize(("scale", "step", "expected"), [((0.5, 1.5), 0.25, [0.5, 0.75, 1.0, 1.25, 1.5]), ((0.5, 1.5), 0.1, [0.5 + 0.1 * i for i in range(11)]),
                                                         ((0.5, 1.4), 0.5, [0.5, 1.0]), ((0.7, 0.7), 0.5, [0.7])])
def test_with_a_step_every_scale_of_the_row_occurs_and_no_other(scale, step, expected):
    draws = rng()
    found = {round(Augmentation(scale, step).draw_scale(draws, (40, 60)), 9) for _ in range(300)}
    assert sorted(found) == pytest.approx(expected)


@pytest.mark.parametrize(("resize", "factor"), [((100, 50), 50 / 40), ((66, 60), 66 / 60), ((30, 30), 30 / 60), (None, 1)])
def test_the_scale_is_relative_to_the_largest_size_within(image, resize, factor):
    augmentation = Augmentation((0.5, 2.0), resize=resize)
    assert augmentation.draw_scale(rng(3), (40, 60)) == pytest.approx(factor * rng(3).uniform(0.5, 2.0))
    assert augmentation.draw_scale(rng(3), (60, 40)) == augmentation.draw_scale(rng(3), (40, 60))
    pixels, classes = segmenter_sample(image, label_of(image), rng(2), 200, Augmentation((1.0, 1.0), resize=resize))
    shown = classes != 255
    assert (int(shown.any(1).sum()), int(shown.any(0).sum())) == scaled_size((40, 60), factor)
    assert torch.equal((pixels != 0).any(0), shown)


@pytest.mark.parametrize("seed", range(8))
def test_a_crop_is_drawn_again_until_no_class_has_too_large_a_share(image, seed):
    """The label is 1 in the left 15 of 60 columns, 255 in the next 5, and 2 in the others."""
    label = np.full((40, 60), 2, np.uint8)
    label[:, :15], label[:, 15:20] = 1, 255
    plain, _ = segmenter_sample(image, label, rng(seed), 20, Augmentation((1.0, 1.0)))
    pixels, classes = segmenter_sample(image, label, rng(seed), 20, Augmentation((1.0, 1.0), max_class_share=0.6))
    draws, tries = rng(seed), 0
    draws.uniform(1, 1)
    mirrored = draws.random() < 0.5
    shown, shown_label = (image[:, ::-1], label[:, ::-1]) if mirrored else (image, label)
    while True:
        (top, left), tries = random_window((40, 60), 20, draws), tries + 1
        crop = shown_label[top:top + 20, left:left + 20]
        ones, twos = int((crop == 1).sum()), int((crop == 2).sum())
        if max(ones, twos) < 0.6 * (ones + twos) and min(ones, twos) > 0 or tries == 10:
            break
    assert np.array_equal(classes.numpy(), crop)
    assert torch.equal(pixels, normalise(np.ascontiguousarray(shown[top:top + 20, left:left + 20])))
    assert torch.equal(plain, pixels) == (tries == 1)


@pytest.mark.parametrize("value", [7, 255])
def test_a_label_with_one_value_has_no_better_crop(image, value):
    label = np.full((40, 60), value, np.uint8)
    _, classes = segmenter_sample(image, label, rng(), 20, Augmentation((1.0, 1.0), max_class_share=0.9))
    assert (classes == value).all()


def distorted(image: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Written plainly with the hues of `colorsys`; and what was changed."""
    done = set()

    def linear(values, factor, addend):
        return np.floor(np.clip(values * factor + addend, 0, 255))
    values = image.astype(np.float64)
    if draws.random() < 0.5:
        values, done = linear(values, 1, draws.uniform(-32, 32)), done | {"brightness"}
    early = draws.random() < 0.5
    if early and draws.random() < 0.5:
        values, done = linear(values, draws.uniform(0.5, 1.5), 0), done | {"contrast first"}
    saturation = hue = None
    if draws.random() < 0.5:
        saturation, done = draws.uniform(0.5, 1.5), done | {"saturation"}
    if draws.random() < 0.5:
        hue, done = draws.integers(-26, 27), done | {"hue"}
    if saturation is not None or hue is not None:
        for y, x in np.ndindex(image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*values[y, x] / 255)
            values[y, x] = np.multiply(255, colorsys.hsv_to_rgb((h + (hue or 0) / 255) % 1, min(s * (saturation or 1), 1), v))
    if not early and draws.random() < 0.5:
        values, done = linear(values, draws.uniform(0.5, 1.5), 0), done | {"contrast last"}
    return values, done


def test_photometric_distortion_is_that_of_mmsegmentation():
    image, seen = rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8), set()
    for seed in range(40):
        expected, done = distorted(image, rng(seed))
        found = photometric_distortion(image, rng(seed))
        assert found.dtype == np.uint8 and found.shape == image.shape
        if done & {"hue", "saturation"}:   # Pillow has 256 hues and saturations: six grey levels, half as many again by the contrast
            assert np.abs(found - expected).max() <= 15 and np.abs(found - expected).mean() < 4, (seed, done)
        else:
            assert np.array_equal(found, expected), (seed, done)
        assert np.array_equal(found, image) == (not done)
        seen |= {frozenset(done), *done}
    assert {"brightness", "contrast first", "contrast last", "hue", "saturation", frozenset()} <= seen


def test_only_the_crop_of_the_image_is_distorted_and_not_its_padding(image):
    size, label = 50, label_of(image)
    plain, same = segmenter_sample(image, label, rng(4), size, Augmentation((1.0, 1.0)))
    found, classes = segmenter_sample(image, label, rng(4), size, Augmentation((1.0, 1.0), distortion=True))
    draws = rng(4)
    draws.uniform(1, 1)
    shown = image[:, ::-1] if draws.random() < 0.5 else image
    top, left = random_window((40, 60), size, draws)
    cut = photometric_distortion(np.ascontiguousarray(shown[:, left:left + size]), draws)
    assert torch.equal(classes, same) and not torch.equal(found, plain)
    assert torch.equal(found[:, -top:40 - top], normalise(cut)) and (found[:, classes == 255] == 0).all()
