"""Segmentation networks: shapes, gradients, losses and averaged probabilities against plain forms."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from tests.networks import new_backbone
from wsss.data.images import normalise, resize_image, scaled_size
from wsss.errors import ConfigError
from wsss.segmenters.fpn import FPN
from wsss.segmenters.inference import probabilities


def network(name: str = "tiny", width: int = 16, n_labels: int = 4):
    return FPN(width=width).new(new_backbone(name), n_labels, seed=1)


def drawn(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "size"), [("tiny", (37, 53)), ("resnet18", (33, 20)), ("tf_efficientnet_lite0", (45, 32)),
                                            ("deit_tiny_patch16_224", (37, 50))])
def test_the_logits_have_the_grid_of_the_finest_stage_and_every_layer_learns(name, size):
    net = network(name)
    stride = net.backbone.strides[0]
    logits = net(drawn((2, 3, *size)))
    assert logits.shape == (2, 4, *(-(-side // stride) for side in size))
    logits.sum().backward()
    used = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert all("conv_head" in name or "bn2" in name or "norm." in name for name in used), used   # behind the last stage


def test_equal_seeds_give_equal_networks_and_the_facts_build_it_again():
    one, other = network(), network()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.facts == {"segmenter": {"method": "fpn", "width": 16}}


@pytest.mark.parametrize("width", [0, 4, 20])
def test_an_impossible_width_is_refused(width):
    with pytest.raises(ConfigError, match=f"segmenter.width={width} is not possible: expected a multiple of 8"):
        FPN(width=width)


def test_the_loss_is_the_mean_over_the_labelled_pixels_of_the_batch_in_any_parts():
    method, net = FPN(width=16), network().eval()
    images, labels = drawn((5, 3, 32, 48)), torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 3, 255], (5, 32, 48)).astype(np.uint8))
    with torch.no_grad():
        large = interpolate(net(images), (32, 48), mode="bilinear", align_corners=False)
        expected = np.mean([float(cross_entropy(large[i, :, y, x][None], labels[i, y, x][None].long()))
                            for i in range(5) for y in range(0, 32) for x in range(0, 48) if labels[i, y, x] != 255])
        total = method.counts(labels)
        parts = [method.losses(net, images[part], labels[part], total)["loss"] for part in (slice(0, 3), slice(3, 5))]
    assert total == int((labels != 255).sum()) and float(sum(parts)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_a_labelled_pixel_has_loss_zero():
    method, net, labels = FPN(width=16), network(), torch.full((1, 32, 32), 255, dtype=torch.uint8)
    loss = method.losses(net, drawn((1, 3, 32, 32)), labels, method.counts(labels))["loss"]
    loss.backward()
    assert float(loss.detach()) == 0 and all(parameter.grad.isfinite().all() for parameter in net.smooth.parameters())


def test_the_decoder_has_its_own_learning_rate():
    net = network()
    (backbone, one), (decoder, factor) = FPN(width=16).groups(net, 10.0)
    assert (one, factor) == (1.0, 10.0) and len(backbone) + len(decoder) == len(list(net.parameters()))
    assert {id(each) for each in backbone} == {id(each) for each in net.backbone.parameters()}


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_scales_and_mirror_images(flip):
    net, image = network().eval(), np.random.default_rng(1).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    found = probabilities(net, image, (1.0, 1.5), flip)
    each = []
    for scale in (1.0, 1.5):
        pixels = normalise(resize_image(image, scaled_size((21, 30), scale)))[None]
        for mirrored in (False, True)[:1 + flip]:
            with torch.no_grad():
                logits = net(pixels.flip(-1) if mirrored else pixels)
            soft = interpolate(logits, (21, 30), mode="bilinear", align_corners=False).softmax(1)[0]
            each.append(soft.flip(-1) if mirrored else soft)
    assert found.shape == (4, 21, 30) and torch.allclose(found, torch.stack(each).mean(0), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.ones(21, 30), atol=1e-5)
