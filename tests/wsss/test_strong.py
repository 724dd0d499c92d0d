"""The augmentation of DeiT's training against timm's own transforms, and its draws."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.scheduler import CosineLRScheduler

from steps.runtime.learning_rate import cosine_lr
from wsss.data.augment import classifier_sample
from wsss.data.images import IMAGENET, normalise, resize_image
from wsss.data.strong import RATIO, Strong, erased, rand_augmented, random_area
from wsss.errors import ArgumentError

SIDE = 64
IMAGE = np.kron(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))   # 40 x 60


def rng(seed=0):
    return np.random.default_rng(seed)


def global_draws(seed):
    """As `wsss.data.strong` seeds the global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def official():
    """datasets.py, build_transform, with the defaults of main.py: crop, flip, RandAugment, to a tensor, normalisation, erasing."""
    return create_transform(input_size=SIDE, is_training=True, color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
                            re_prob=0.25, re_mode="pixel", re_count=1).transforms


def test_the_official_transform_has_no_jitter_of_colours_beside_randaugment():
    assert [type(each).__name__ for each in official()] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment",
                                                            "MaybeToTensor", "Normalize", "RandomErasing"]


@pytest.mark.parametrize("seed", range(4))
def test_rand_augment_and_erasing_are_those_of_timm(seed):
    crop = resize_image(IMAGE, (SIDE, SIDE))
    global_draws(int(rng(seed).integers(2**32)))
    wanted = np.array(official()[2](Image.fromarray(crop)))
    assert np.array_equal(rand_augmented(crop, 9.0, IMAGENET, rng(seed)), wanted)
    pixels = normalise(crop)
    global_draws(int(rng(seed).integers(2**32)))
    plain = official()[5]
    plain.probability = 0.7
    assert torch.equal(erased(pixels, 0.7, rng(seed)), plain(pixels.clone()))
    assert torch.equal(erased(pixels, 0.0, rng(seed)), pixels)


def test_other_generators_neither_matter_nor_change():
    found = []
    for other in (3, 4):
        global_draws(other)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        found.append(classifier_sample(IMAGE, rng(2), SIDE, strong=Strong((0.08, 1.0), 9.0, 1.0)))
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert torch.equal(*found)


@pytest.mark.parametrize("strong", [Strong((0.3, 0.5)), Strong(rand_augment=9.0), Strong(erase=1.0), Strong((0.08, 1.0), 9.0, 1.0)])
def test_a_sample_is_part_flip_changes_erasing(strong):
    for seed in range(3):
        draws = rng(seed)
        if strong.area:
            image = resize_image(random_area(IMAGE, strong.area, draws), (SIDE, SIDE))
        else:
            image = resize_image(IMAGE, (SIDE, int(draws.integers(96, 97))))
        if draws.random() < 0.5:
            image = image[:, ::-1]
        left, _ = int(draws.integers(0, image.shape[1] - SIDE + 1)), draws.integers(0, 1)
        image = np.ascontiguousarray(image[:, left:left + SIDE])
        if strong.rand_augment:
            image = rand_augmented(image, strong.rand_augment, IMAGENET, draws)
        wanted = normalise(image)
        if strong.erase:
            wanted = erased(wanted, strong.erase, draws)
        assert torch.equal(classifier_sample(IMAGE, rng(seed), SIDE, (96, 96), strong=strong), wanted)
    assert not torch.equal(wanted, classifier_sample(IMAGE, rng(seed), SIDE, (96, 96)))


def test_random_areas_have_the_share_and_the_ratio():
    image, shares, draws = np.zeros((200, 300, 3), np.uint8), [], rng()
    for _ in range(200):
        height, width = random_area(image, (0.08, 0.5), draws).shape[:2]
        shares.append(height * width / (200 * 300))
        assert RATIO[0] * 0.97 < width / height < RATIO[1] * 1.03
    assert 0.078 < min(shares) < 0.12 and 0.45 < max(shares) < 0.51
    flat = np.arange(30 * 300 * 3, dtype=np.uint32).reshape(30, 300, 3)
    assert np.array_equal(random_area(flat, (1.0, 1.0), draws), flat[:, 130:170])   # no draw fits: the middle, 4:3


def test_padding_is_not_changed():
    """What is outside the image stays the mean colour: RandAugment changes the visible part."""
    small = classifier_sample(IMAGE, rng(1), 96, (60, 60), strong=Strong(rand_augment=9.0))
    plain = classifier_sample(IMAGE, rng(1), 96, (60, 60))
    outside = (plain == 0).all(0)
    assert outside.sum() == 96 * 96 - 40 * 60 and (small[:, outside] == 0).all() and not torch.equal(small, plain)


@pytest.mark.parametrize("values", [((0.0, 1.0), 0, 0), ((0.5, 0.4), 0, 0), ((0.5, 1.1), 0, 0), (None, 11, 0), (None, -1, 0), (None, 0, 1.1)])
def test_impossible_values(values):
    with pytest.raises(ArgumentError, match="expected (shares|a magnitude)"):
        Strong(*values)


def test_the_cosine_schedule_is_that_of_timm():
    """main.py, create_scheduler: 60 epochs, 5 of warm-up from 1e-6, down to 1e-5."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=6.25e-5)
    scheduler = CosineLRScheduler(optimizer, t_initial=60, lr_min=1e-5, warmup_lr_init=1e-6, warmup_t=5)
    rate = cosine_lr(5 / 60, 1e-6 / 6.25e-5, 1e-5 / 6.25e-5)
    for epoch in range(60):
        scheduler.step(epoch)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(6.25e-5 * rate(epoch, 60), rel=1e-9)
    assert rate(599, 600) == pytest.approx(0.16, rel=1e-3) and rate(0, 1) <= 1
    assert [cosine_lr(0.5)(step, 4) for step in range(2)] == [0.5, 1.0]
