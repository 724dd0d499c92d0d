"""AMN against a plain re-statement of the official files, in float64, pixel by pixel."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, interpolate

from tests.networks import new_backbone
from wsss.cams.amn import amn_logits, amn_maps
from wsss.errors import ArgumentError
from wsss.networks.amn import AMN, balanced_loss, pixel_counts

RATES = (1, 2, 3)


@pytest.fixture
def net():
    return AMN(new_backbone("tiny", "frozen_batch"), 4, RATES, 0.1, seed=3).eval()


def plain_logits(net, images, labels):
    """net/resnet50_amn.py, Net.forward without dropout."""
    embedding = labels @ net.label_embedding.weight.T + net.label_embedding.bias
    features = net.backbone(images) * embedding[:, :, None, None]
    return sum(conv2d(features, layer.weight, layer.bias, padding=rate, dilation=rate) for layer, rate in zip(net.pyramid, RATES, strict=True))


def plain_loss(logits, labels, eps):
    """step/train_amn.py, balanced_cross_entropy, pixel by pixel; a mean without pixels is 0."""
    sums, counts = [0.0, 0.0], [0, 0]
    for b, y, x in itertools.product(*map(range, labels.shape)):
        label = int(labels[b, y, x])
        if label == 255:
            continue
        p = logits[b, :, y, x].softmax(0)
        targets = [1 - eps if k == label else eps / (len(p) - 1) for k in range(len(p))]
        sums[label != 0] = sums[label != 0] - sum(t * p[k].log() for k, t in enumerate(targets))
        counts[label != 0] += 1
    return sum(total / max(count, 1) for total, count in zip(sums, counts)) / 2


def test_forward_and_gradients_are_those_of_the_official_code(net):
    net = net.double()
    torch.manual_seed(0)
    images, labels = torch.rand(2, 3, 40, 33, dtype=torch.float64), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    ours, wanted = net(images, labels), plain_logits(net, images, labels)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-10)
    masks = torch.randint(0, 5, (2, *ours.shape[2:]))
    parameters = [parameter for group in net.parameter_groups() for parameter in group]
    assert {id(each) for each in parameters} == {id(each) for each in net.parameters() if each.requires_grad}
    grads = [torch.autograd.grad(loss, parameters, retain_graph=True)
             for loss in (balanced_loss(ours, masks, 0.4, pixel_counts(masks)), plain_loss(wanted, masks, 0.4))]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_dropout_draws_in_training_only(net):
    image, labels = torch.rand(1, 3, 32, 32), torch.ones(1, 4)
    assert torch.equal(net(image, labels), net(image, labels))
    net.train()
    assert not torch.equal(net(image, labels), net(image, labels))


@pytest.mark.parametrize("kept", [(0, 1, 2, 255), (0, 255), (1, 2, 255), (255,)], ids=["all", "no class", "no background", "nothing"])
def test_the_loss_and_its_guard(kept):
    torch.manual_seed(1)
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(kept)[torch.randint(0, len(kept), (2, 3, 5))].to(torch.uint8)
    loss = balanced_loss(logits, labels, 0.4, pixel_counts(labels))
    torch.testing.assert_close(loss, torch.as_tensor(plain_loss(logits, labels, 0.4), dtype=torch.float64), rtol=0, atol=1e-10)
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[:, :, (labels == 255).all(0)].any()


def test_the_shares_of_the_parts_are_the_loss_of_the_batch():
    torch.manual_seed(2)
    logits, labels = torch.randn(3, 4, 3, 5, dtype=torch.float64), torch.randint(0, 4, (3, 3, 5), dtype=torch.uint8)
    labels[0] = 0   # a crop without a class
    total = pixel_counts(labels)
    parts = sum(balanced_loss(logits[i:i + 1], labels[i:i + 1], 0.4, total) for i in range(3))
    torch.testing.assert_close(parts, balanced_loss(logits, labels, 0.4, total), rtol=0, atol=1e-12)


def plain_maps(logits, classes, label, size):
    """step/make_amn_cam.py for one size."""
    mean = sum(interpolate(each[None].double(), size, mode="bilinear", align_corners=False)[0] for each in logits) / len(logits)
    maps = mean.softmax(0)[[0, *(c + 1 for c in classes)]].numpy()
    least, most = (function(maps, axis=(1, 2), keepdims=True) for function in (np.min, np.max))
    stretched = (maps - least) / (most - least + 1e-5)
    small = np.array(Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST))
    for k, y, x in itertools.product(*map(range, maps.shape)):
        if small[y, x] != 0:
            maps[k, y, x] = stretched[k, y, x]
    return maps


@pytest.mark.parametrize("classes", [[2, 0], []])
def test_maps_are_those_of_the_official_code(net, classes):
    draws = np.random.default_rng(0)
    image = draws.integers(0, 256, (37, 30, 3), dtype=np.uint8)
    label = draws.choice(np.array([0, 0, 1, 3, 255], np.uint8), (37, 30))
    labels = torch.zeros(1, 4)
    labels[0, classes] = 1
    logits = amn_logits(lambda pair: 20 * net(pair, labels.expand(2, -1)), image, (1.0, 0.5, 1.5))   # so that maps differ
    assert [each.shape[0] for each in logits] == [5, 5, 5]
    for size in ((37, 30), (math.ceil(37 / 4), math.ceil(30 / 4))):
        maps = amn_maps(logits, classes, label, size)
        assert maps.dtype == torch.float32 and maps.shape == (1 + len(classes), *size) and 0 <= maps.min() and maps.max() <= 1
        np.testing.assert_allclose(maps.numpy(), plain_maps(logits, classes, label, size), rtol=0, atol=1e-5)


def test_the_mirror_image_is_mirrored_back():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255   # bright at the left
    one = amn_logits(lambda pair: pair[:, :1], image, (1.0,))[0]
    assert one[0, :, :4].min() > one[0, :, 4:].max()


@pytest.mark.parametrize("taps", ["centre", "all"])
def test_class_weights_are_sums_of_taps(net, taps):
    """all: of a large region of equal features they give the logits without the bias."""
    weights = net.class_weights(taps)
    feature = torch.rand(1, net.backbone.feature_channels, 1, 1)
    features = feature.expand(-1, -1, 9, 9).clone()
    if taps == "centre":
        features[:] = 0
        features[..., 4, 4] = feature[..., 0, 0]
    inside = sum(conv2d(features, layer.weight, None, padding=rate, dilation=rate) for layer, rate in zip(net.pyramid, RATES))[0, 1:, 4, 4]
    torch.testing.assert_close(weights @ feature[0, :, 0, 0], inside)


def test_what_does_not_fit_is_refused(net):
    for wrong in ({"rates": (), "dropout": 0.1}, {"rates": (0,), "dropout": 0.1}, {"rates": (1,), "dropout": 1.0}):
        with pytest.raises(ArgumentError, match="AMN: rates is .* expected at least one dilation"):
            AMN(net.backbone, 4, **wrong)
    with pytest.raises(ArgumentError, match=r"amn_maps: logits has 1 scales of \[\(3, 2, 2\)\], classes is \[2\]; expected"):
        amn_maps([torch.zeros(3, 2, 2)], [2], np.zeros((2, 2), np.uint8), (2, 2))
