"""Masks of images from a segmentation network: windows, groups, resizing, and the dense CRF on soft maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, interpolate

from tests.wsss.test_crf import photo
from tests.wsss.test_segmenters import network
from wsss.data.images import IMAGENET
from wsss.refinement.crf import DenseCRF
from wsss.refinement.permutohedral import PermutohedralLattice
from wsss.segmenters.crf_image import BEFORE_CRF, CrfImage, wrapped
from wsss.segmenters.inference import (
    _resized,
    bands,
    probabilities,
    probabilities_of,
    segment,
    segment_group,
    unary_from_probabilities,
    windows,
)

KERNELS = {"gaussian_sxy": 1.0, "gaussian_compat": 3.0, "bilateral_sxy": 67.0, "bilateral_srgb": 3.0, "bilateral_compat": 4.0}


def how(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"scales": [1.0], "flip": False, "background_weight": 1.0, "window": None, "overlap": 0, "crf": False, "crf_image": CrfImage.image,
                              "crf_iterations": 10, **KERNELS, **changes})


def drawn_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(x: torch.Tensor) -> torch.Tensor:
    """A network with a receptive field of 5 x 5 pixels: three labels from two convolutions."""
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 3, 3, 3, generator=draws), torch.randn(3, 4, 3, 3, generator=draws)
    return conv2d(conv2d(x, first, padding=1).tanh(), second, padding=1)


# Windows.

@pytest.mark.parametrize(("side", "window", "overlap"), [(1025, 1024, 128), (6000, 1024, 128), (4000, 1024, 128), (1921, 1024, 341),
                                                         (97, 32, 10), (33, 32, 0), (200, 64, 21)])
def test_windows_cover_a_side_and_each_pixel_is_in_at_most_two(side, window, overlap):
    found = windows(side, window, overlap)
    times = np.zeros(side, int)
    for start, end in found:
        times[start:end] += 1
    assert found[0][0] == 0 and found[-1][1] == side and 1 <= times.min() and times.max() <= 2
    assert all(end - start <= window for start, end in found)
    assert [before[1] - after[0] for before, after in zip(found, found[1:])] == [overlap] * (len(found) - 1)
    assert len(found) == -(-(side - overlap) // (window - overlap)) > 1   # as few as there can be


@pytest.mark.parametrize("window", [None, 40, 53])
def test_an_image_that_fits_is_segmented_as_a_whole(window):
    assert windows(40, window, 8) == [(0, 40)]
    image, net = drawn_image(37, 40), network().eval()
    given = []
    expected = probabilities(net, image, [1.0, 0.5], True)
    found = list(bands(lambda crop: given.append(crop.shape) or probabilities(net, crop, [1.0, 0.5], True), image, window, 8))
    assert given == [(37, 40, 3)] and len(found) == 1 and torch.equal(found[0], expected)


@pytest.mark.parametrize(("size", "overlap"), [((70, 101), 12), ((101, 33), 12), ((33, 64), 0), ((33, 200), 16)])
def test_windows_of_a_network_that_looks_near_give_its_probabilities_inside(size, overlap):
    """Up to two pixels from the border of a window the network sees the border; there the taper is close to 0."""
    image = drawn_image(*size)
    with torch.inference_mode():
        expected, found = probabilities(near, image), torch.cat(list(bands(lambda crop: probabilities(near, crop), image, 48, overlap)), 1)
    assert found.shape == expected.shape and torch.allclose(found.sum(0), torch.ones(size), atol=1e-5)
    inside = torch.ones(size, dtype=torch.bool)
    for axis, side in enumerate(size):
        for start, end in windows(side, 48, overlap):
            for edge in {start, end} - {0, side}:
                inside.index_fill_(axis, torch.arange(edge - 2, edge + 2), False)
    assert 0.5 < inside.float().mean() and torch.allclose(found[:, inside], expected[:, inside], atol=1e-5)
    if overlap:   # and next to an edge at most 2 / 12 of the wrong value
        assert (found - expected).abs().max() < 0.2


def test_a_constant_stays_constant_and_the_taper_is_a_ramp():
    image = np.zeros((90, 100, 3), np.uint8)
    whole = torch.cat(list(bands(lambda crop: torch.ones(2, 3, *crop.shape[:2]), image, 48, 16)), -2)
    assert whole.shape == (2, 3, 90, 100) and torch.allclose(whole, torch.ones(()), atol=1e-6)
    left = torch.cat(list(bands(lambda crop: torch.full((1, 90, crop.shape[1]), float(crop[0, 0, 0])),
                                np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 90, 0).repeat(3, 2), 90, 16)), -2)
    (_, end), (start, _) = windows(100, 90, 16)   # the first window gives 0, the second its first column
    assert torch.allclose(left[0, 0, :start], torch.zeros(())) and torch.allclose(left[0, 0, end:], torch.tensor(float(start)))
    assert torch.allclose(left[0, 5, start:end], start * (torch.arange(16) + 0.5) / 16)


def test_no_array_of_the_whole_image_is_held(monkeypatch):
    """Bands are made on demand, along the long side: the largest has a window's rows and the columns of the short side."""
    image, sizes = drawn_image(64, 400), []
    monkeypatch.setattr("wsss.segmenters.inference._resized", lambda found, shape, size: (sizes.append(tuple(band.shape)) or band for band in found))
    mask = segment(near, image, (64, 400), how(window=48, overlap=16))[""]
    assert mask.shape == (64, 400) and max(np.prod(size) for size in sizes) <= 3 * 48 * 64 and len(sizes) == len(windows(400, 48, 16))
    with torch.inference_mode():
        expected = torch.cat(list(bands(lambda crop: probabilities(near, crop), image, 48, 16)), 1).max(0).indices
    assert np.array_equal(mask, expected.numpy())


@pytest.mark.parametrize("size", [(64, 90), (90, 64), (31, 47), (7, 200), (250, 130), (64, 91)])
@pytest.mark.parametrize("rows", [[64], [1, 40, 23], [16, 16, 16, 16]])
def test_bands_are_resized_as_the_whole(size, rows, monkeypatch):
    monkeypatch.setattr("wsss.segmenters.inference.AT_ONCE", 1500)   # a few rows
    soft = torch.randn(2, 3, 64, 90, generator=torch.Generator().manual_seed(1))
    found = torch.cat(list(_resized(soft.split(rows, -2), (64, 90), size)), -2)
    assert torch.allclose(found, interpolate(soft, size, mode="bilinear", align_corners=False), atol=1e-4)   # torch computes places in float32


# Groups.

@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crf", [False, True])
def test_a_group_is_segmented_as_its_images_one_by_one(flip, crf):
    images, net = [drawn_image(30, 41, seed) for seed in range(3)], network().eval()
    settings = how(scales=[1.0, 0.5], flip=flip, crf=crf)
    soft = [probabilities(net, image, settings.scales, flip) for image in images]
    found = segment_group(net, images, [(30, 41), (60, 80), (30, 41)], settings)
    alone = [segment(net, image, size, settings) for image, size in zip(images, [(30, 41), (60, 80), (30, 41)])]
    for one, other, each in zip(found, alone, soft):
        assert one.keys() == other.keys() == ({BEFORE_CRF, ""} if crf else {""})
        unsure = (each.sort(0).values[-1] - each.sort(0).values[-2]) < 1e-4
        assert all((one[kind] != other[kind]).mean() <= unsure.float().mean() for kind in one)
    assert torch.allclose(probabilities_of(net, images, settings.scales, flip), torch.stack(soft), atol=1e-4)


def test_a_group_of_images_with_windows_is_the_same_too():
    images = [drawn_image(70, 50, seed) for seed in range(2)]
    settings = how(window=48, overlap=16)
    found = segment_group(near, images, [(70, 50)] * 2, settings)
    assert all(np.array_equal(each[""], segment(near, image, (70, 50), settings)[""]) for each, image in zip(found, images))


# The CRF on soft maps.

def kernel(features: np.ndarray) -> np.ndarray:
    """All pairs (N, N) of the kernel that the lattice computes (test_crf compares it with a plain one), symmetrically normalised."""
    full = PermutohedralLattice(torch.tensor(features, dtype=torch.float32)).filter(torch.eye(len(features))).double().numpy()
    norm = 1 / np.sqrt(full.sum(1))
    return norm[:, None] * full * norm


@pytest.mark.parametrize("which", list(CrfImage))
def test_the_crf_on_soft_maps_is_that_of_full_kernels(which):
    """Mean field in float64 over all pairs of 12 x 12 pixels; unary energies as pydensecrf.utils.unary_from_softmax."""
    image = photo(top=60, left=90, height=12, width=12)
    logits = 4 * torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(2)).repeat_interleave(3, 1)[:, :12]
    soft = logits.softmax(0)
    soft[:, 0, 0] = torch.tensor([1.0, 0.0, 0.0])   # clipped
    colours = {CrfImage.image: image, CrfImage.official_wrapped: wrapped(image)}[which].reshape(-1, 3)
    at = np.stack(np.divmod(np.arange(144), 12)[::-1], 1)
    pairs = 3 * kernel(at / 1.0) + 4 * kernel(np.hstack([at / 67.0, colours / 3.0]))
    energy = -np.log(np.clip(soft.reshape(3, -1).numpy().astype(np.float64), 1e-5, 1))
    q = np.exp(-energy) / np.exp(-energy).sum(0)
    for _ in range(10):
        q = np.exp(-energy + q @ pairs.T)
        q /= q.sum(0)
    seen = torch.from_numpy(np.ascontiguousarray(colours.reshape(12, 12, 3)))
    found = DenseCRF(seen, **KERNELS).inference(unary_from_probabilities(soft), 10)
    assert np.abs(found.reshape(3, -1).numpy() - q).max() < 1e-4
    settings = how(crf=True, crf_image=which)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    masks = segment(lambda x: soft.clamp(min=1e-30).log()[None] + 0 * (x * std + mean)[:, :1], image, (12, 12), settings)
    assert np.array_equal(masks[BEFORE_CRF], soft.max(0).indices.numpy()) and np.array_equal(masks[""], q.argmax(0).reshape(12, 12))
    assert (masks[BEFORE_CRF] != masks[""]).any()


def test_the_wrapped_image_by_hand():
    """Blue, green, red minus 104.008, 116.669, 122.675, the fraction cut off, negative numbers counted from 256."""
    image = np.array([[[0, 0, 0], [255, 255, 255], [123, 117, 105]], [[122, 116, 104], [121, 115, 103], [200, 10, 104]]], np.uint8)
    expected = [[[152, 140, 134], [150, 138, 132], [0, 0, 0]], [[0, 0, 0], [255, 255, 255], [0, 150, 77]]]
    assert wrapped(image).tolist() == expected and wrapped(image).dtype == np.uint8


def test_the_crf_of_windows_sees_the_window():
    """A window is refined as an image of its own."""
    image = photo(top=40, left=60, height=20, width=30)
    settings = how(window=20, overlap=0, crf=True)
    whole, parts = segment(near, image, (20, 30), settings), []
    for start, end in windows(30, 20, 0):
        parts.append(segment(near, image[:, start:end], (20, end - start), settings))
    for kind in (BEFORE_CRF, ""):
        assert np.array_equal(whole[kind], np.hstack([part[kind] for part in parts]))
