"""Class activation maps equal the official ones, from the image file to the stored form and back."""

from functools import lru_cache

import numpy as np
import pytest
import torch
import torchvision

from tests.reference import IDS, REFERENCE, load
from wsss.cams.cam import class_activation_maps, flip_sum, multi_scale_cam, multi_scale_features
from wsss.cams.maps import SCALES, grids, pack, rebuild
from wsss.data.images import read_image
from wsss.errors import ArgumentError


@lru_cache
def reference_network():
    """The features of the reference case's ResNet-50 (tests/reference_case/README.md), built from torchvision alone."""
    torch.manual_seed(7)
    network = torchvision.models.resnet50(weights=None)
    for name, parameter in network.named_parameters():
        if name.endswith(".bn3.weight"):
            parameter.data.fill_(0.3)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    return torch.nn.Sequential(*list(network.children())[:-2]).eval()


@lru_cache
def reference_features(image_id):
    """Per scale (2, 2048, h, w), and the image's size."""
    image = read_image(REFERENCE / "JPEGImages" / f"{image_id}.jpg")
    return tuple(multi_scale_features(reference_network(), image)), image.shape[:2]


@lru_cache
def classifier_weight():
    return torch.from_numpy(np.load(REFERENCE / "classifier_weight.npy"))


@pytest.mark.parametrize("image_id", IDS)
def test_cam_equals_official(image_id):
    features, size = reference_features(image_id)
    expected = load("cam", image_id)
    weight = classifier_weight()[expected["keys"]]
    maps = [flip_sum(class_activation_maps(f, weight)) for f in features]
    assert [m.shape[1:] for m in maps] == grids(*size, 16)
    packed, maxima = pack(maps)
    exact = torch.cat([m.flatten(1) for m in maps], dim=1)
    for resolution, name in (("strided", "cam"), ("full", "high_res")):
        for flat, eps, tolerance in ((packed, 1e-5 / maxima, 1e-3), (exact, 1e-5, 5e-5)):
            ours = rebuild(flat, *size, grids(*size, 16), resolution, pad=16, eps=eps).numpy()
            np.testing.assert_allclose(ours, expected[name], rtol=0, atol=tolerance)
            assert np.abs(ours.max(axis=(1, 2)) - expected[name].max(axis=(1, 2))).max() < 1e-6  # the official eps


def shape_recorder(channels=3):
    """A network whose features are its input, at the stride, and the shapes it was given."""
    shapes = []

    def network(batch):
        shapes.append(tuple(batch.shape))
        return batch[:, :channels, ::16, ::16]

    return network, shapes


def test_multi_scale_cam_is_the_sum_over_the_mirror_image():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (33, 50, 3), dtype=np.uint8)
    network, shapes = shape_recorder()
    weight = torch.from_numpy(rng.standard_normal((2, 3)).astype(np.float32))
    maps = multi_scale_cam(network, image, weight)
    assert shapes == [(2, 3, 33, 50), (2, 3, 16, 25), (2, 3, 50, 75), (2, 3, 66, 100)]  # round half to even
    assert [m.shape for m in maps] == [(2, *grid) for grid in grids(33, 50, 16)]
    for m, f in zip(maps, multi_scale_features(network, image), strict=True):
        one, mirrored = (torch.einsum("nd,dhw->nhw", weight, x).relu() for x in f)
        torch.testing.assert_close(m, one + mirrored.flip(-1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (700, 3)])
@pytest.mark.parametrize("n", [0, 1])
def test_extreme_sizes_and_no_class(shape, n):
    image = np.full((*shape, 3), 128, dtype=np.uint8)
    maps = multi_scale_cam(shape_recorder()[0], image, torch.ones(n, 3))
    packed, _ = pack(maps)
    assert packed.shape == (n, sum(h * w for h, w in grids(*shape, 16)))
    assert rebuild(packed, *shape, grids(*shape, 16), "full", pad=16).shape == (n, *shape)


def test_features_need_no_gradient_and_keep_the_callers_mode():
    layer = torch.nn.Conv2d(3, 4, 1)
    stream = multi_scale_features(layer, np.zeros((4, 4, 3), dtype=np.uint8), SCALES)
    assert not next(stream).requires_grad
    assert torch.is_grad_enabled()  # also while the generator is waiting


def test_wrong_shapes_are_refused():
    with pytest.raises(ArgumentError, match=r"features \(1, 4, 2, 2\) and weight \(2, 3\)"):
        class_activation_maps(torch.zeros(1, 4, 2, 2), torch.zeros(2, 3))
