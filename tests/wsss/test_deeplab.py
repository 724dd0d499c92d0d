"""DeepLabV2 and DeepLabV1: logits, losses, labels and groups of parameters against plain forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline import config
from steps.runtime.learning_rate import poly_lr
from steps.runtime.schedule import OptimizerName
from steps.runtime.training import make_optimizer
from wsss.data.images import resize_mask
from wsss.errors import ConfigError
from wsss.families import from_facts
from wsss.networks.backbones.method import rebuilt
from wsss.segmenters.deeplab_v1 import DeepLabV1
from wsss.segmenters.deeplab_v2 import DeepLabV2
from wsss.segmenters.deeplab_v2_layers import balanced_cross_entropy, mean_cross_entropy, resize_labels

RATES, SCALES = [6, 12, 18, 24], [0.5, 0.75]
SIZE = 65   # its grids: 9, and of 32 and 48 pixels 4 and 6


def method(loss: str = "cross_entropy") -> DeepLabV2:
    return DeepLabV2(rates=RATES, scales=SCALES, loss=loss)


def backbone(norm: str = "frozen_batch", depth: str = "tiny"):
    facts = {"method": "resnet_dilated", "depth": depth, "style": "torchvision", "trained_on": "imagenet"}
    return from_facts("backbone", facts).new(norm, 3)


def network(loss: str = "cross_entropy", norm: str = "frozen_batch", labels: int = 4):
    net = method(loss).new(backbone(norm), labels, seed=1)
    with torch.no_grad():   # so that no part of the logits is too small to be seen
        for convolution in net.pyramid:
            convolution.weight.mul_(20), convolution.bias.add_(torch.arange(labels) / 10)
    return net


def drawn(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(batch: int, size: int = SIZE) -> torch.Tensor:
    """Blocks of the labels 0 to 3 and 255."""
    blocks = np.random.default_rng(0).choice([0, 0, 1, 2, 3, 255], (batch, 13, 13)).astype(np.uint8)
    return torch.from_numpy(blocks.repeat(5, 1).repeat(5, 2)[:, :size, :size])


def plain_logits(net, x: torch.Tensor) -> list[torch.Tensor]:
    """deeplab-pytorch, libs/models/msc.py and deeplabv2.py: scales 1, 0.5 and 0.75, then the maximum."""
    def at(x):
        features = net.backbone.features(x)
        return sum(F.conv2d(features, conv.weight, conv.bias, padding=rate, dilation=rate) for conv, rate in zip(net.pyramid, RATES))
    found = [at(x)]
    for scale in (0.5, 0.75):
        smaller = [int(side * scale) for side in x.shape[2:]]
        found.append(at(F.interpolate(x, size=smaller, mode="bilinear", align_corners=False)))
    same = [F.interpolate(each, size=found[0].shape[2:], mode="bilinear", align_corners=False) for each in found]
    return [*found, torch.stack(same).max(0)[0]]


def plain_labels(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """deeplab-pytorch, main.py: resize_labels."""
    resized = [np.array(Image.fromarray(label.numpy().astype(np.float32)).resize(size[::-1], resample=Image.NEAREST)) for label in labels]
    return torch.from_numpy(np.stack(resized)).long()


def test_the_logits_of_all_scales_and_their_maximum():
    net, x = network().eval(), drawn((2, 3, SIZE, 81))
    with torch.no_grad():
        found, expected = net.all_logits(x), plain_logits(net, x)
        assert torch.equal(net(x), found[-1])
    assert [tuple(each.shape[2:]) for each in found] == [(9, 11), (4, 5), (6, 8), (9, 11)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(found[0], found[-1])   # another scale is sometimes the greatest


def test_the_loss_is_the_sum_of_four_cross_entropies_and_the_mean_of_the_parts():
    net, images, labels = network().train(), drawn((4, 3, SIZE, SIZE)), labels_of(4)
    criterion, expected = torch.nn.CrossEntropyLoss(ignore_index=255), 0.0
    with torch.no_grad():
        for part in (slice(0, 2), slice(2, 4)):   # ITER_SIZE 2
            for logits in plain_logits(net, images[part]):
                expected += float(criterion(logits, plain_labels(labels[part], logits.shape[2:]))) / 2
        total = sum(method().counts(labels[part]) for part in (slice(0, 2), slice(2, 4)))
        parts = [method().losses(net, images[part], labels[part], total)["loss"] for part in (slice(0, 2), slice(2, 4))]
    assert int(total) == 4 and float(sum(parts)) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_reaches_all_scales():
    net = network().train()
    method().losses(net, drawn((2, 3, SIZE, SIZE)), labels_of(2), torch.tensor(2))["loss"].backward()
    learns = {name for name, parameter in net.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert learns == {name for name, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("size", [(33, 33), (41, 41), (31, 24), (81, 7), (200, 150), (1, 1), (321, 241)])
def test_labels_are_resized_as_by_pillow(size):
    for shape in ((321, 321), (240, 333), (65, 1)):
        labels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *shape), dtype=np.uint8))
        found = resize_labels(labels, size)
        assert found.dtype == torch.uint8
        for ours, label in zip(found, labels, strict=True):
            np.testing.assert_array_equal(ours.numpy(), resize_mask(label.numpy(), size))


def test_the_balanced_loss_by_hand():
    """Probabilities of the true label 1/2, 1/4, ...: the cross-entropy is log 2 times the exponent."""
    exponents = torch.tensor([[1., 2., 3., 4., 9.], [2., 4., 5., 9., 9.]])          # of two images with five pixels
    labels = torch.tensor([[0, 0, 1, 2, 255], [1, 2, 1, 255, 255]], dtype=torch.uint8)   # the second has no background
    probability = 0.5 ** exponents
    logits = torch.log((1 - probability) / 2)[:, None].repeat(1, 3, 1)
    logits.scatter_(1, labels.long().clamp(max=2)[:, None], probability.log()[:, None])
    logits, labels = logits[:, :, None], labels[:, None]
    expected = math.log(2) * (((1 + 2) / 2 + (3 + 4) / 2) + (0 + (2 + 4 + 5) / 3)) / 2
    assert float(balanced_cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    assert float(mean_cross_entropy(logits, labels)) == pytest.approx(math.log(2) * (1 + 2 + 3 + 4 + 2 + 4 + 5) / 7, rel=1e-6)


def test_the_balanced_loss_does_not_depend_on_the_parts():
    net, images, labels, balanced = network("balanced").train(), drawn((3, 3, SIZE, SIZE)), labels_of(3), method("balanced")
    with torch.no_grad():
        whole = balanced.losses(net, images, labels, torch.tensor(3))["loss"]
        parts = [balanced.losses(net, images[part], labels[part], torch.tensor(3))["loss"] for part in (slice(0, 1), slice(1, 3))]
        plain = sum(balanced_cross_entropy(logits, plain_labels(labels, logits.shape[2:]).byte()) for logits in plain_logits(net, images))
        other = method().losses(net, images, labels, torch.tensor(3))["loss"]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5) and float(whole) == pytest.approx(float(plain), rel=1e-5)
    assert abs(float(whole) - float(other)) > 0.01


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced"])
def test_a_batch_without_a_labelled_pixel_has_loss_zero(loss):
    net, labels = network(loss), torch.full((1, 33, 33), 255, dtype=torch.uint8)
    value = method(loss).losses(net, drawn((1, 3, 33, 33)), labels, method(loss).counts(labels))["loss"]
    value.backward()
    assert float(value.detach()) == 0 and all(parameter.grad.isfinite().all() for parameter in net.pyramid.parameters())


def test_the_pyramid_starts_with_small_weights_and_no_biases():
    net = method().new(backbone(depth="resnet50"), 21)
    weights = torch.cat([convolution.weight.flatten() for convolution in net.pyramid]).detach()
    assert [(each.weight.shape, each.padding, each.dilation) for each in net.pyramid] == [
        ((21, 2048, 3, 3), (rate, rate), (rate, rate)) for rate in RATES]
    assert weights.std().item() == pytest.approx(0.01, rel=0.01) and abs(weights.mean().item()) < 1e-4
    assert not any(convolution.bias.any() for convolution in net.pyramid)


def test_the_groups_of_parameters():
    """Convolutions of the backbone; weights of the pyramid; its biases. Batch norm is in none of them."""
    net = network()
    settings = config.typed(config.compose(["segmenter=deeplab_v2_stock"])).train_seg
    groups = make_optimizer(settings, *method().groups(net, settings.head_lr_mult)).param_groups
    assert settings.optimizer is OptimizerName.sgd
    assert [(group["lr"], group["weight_decay"], group["momentum"]) for group in groups] == [
        (pytest.approx(2.5e-4), 5e-4, 0.9), (pytest.approx(2.5e-3), 5e-4, 0.9), (pytest.approx(5e-3), 0.0, 0.9)]
    convolutions = [module.weight for module in net.backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [len(group["params"]) for group in groups] == [len(convolutions), 4, 4] and len(convolutions) == 12   # with the first one
    assert {id(each) for each in groups[0]["params"]} == {id(each) for each in convolutions}
    assert all(each.ndim == 4 for each in groups[1]["params"]) and all(each.ndim == 1 for each in groups[2]["params"])
    scratch = network(norm="group")   # everything is trained
    assert len(list(scratch.parameters())) == sum(len(parameters) for parameters, *_ in method().groups(scratch, 10.0))


def test_batch_norm_keeps_its_bits_in_training():
    net = network().train()
    optimizer = torch.optim.SGD([{"params": parameters} for parameters, *_ in method().groups(net, 10.0)], lr=0.01)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    method().losses(net, drawn((2, 3, SIZE, SIZE)), labels_of(2), torch.tensor(2))["loss"].backward()
    optimizer.step()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    norms = {f"{name}.{key}" for name, module in net.named_modules() if isinstance(module, torch.nn.BatchNorm2d) for key in module.state_dict()}
    assert len(norms) == 12 * 5 and changed == net.state_dict().keys() - norms


def test_the_learning_rate_changes_every_ten_steps():
    """deeplab-pytorch, libs/utils/lr_scheduler.py, by hand: (1 - step / 20,000)^0.9 of the last multiple of 10."""
    factor = poly_lr(0.9, interval=10)
    assert factor(0, 20000) == factor(9, 20000) == 1
    assert factor(10, 20000) == factor(19, 20000) == pytest.approx(0.9995 ** 0.9)
    assert factor(10005, 20000) == pytest.approx(0.5 ** 0.9) and factor(19999, 20000) == pytest.approx(0.0005 ** 0.9)


@pytest.mark.parametrize(("preset", "expected"), [
    ("deeplab_v2_stock", (20000, 10, 2, 2.5e-4, [0.5, 1.5], "cross_entropy")),
    ("deeplab_v2_advcam", (30000, 10, 2, 2.5e-4, [0.5, 2.0], "balanced")),
    ("deeplab_v2_lpcam_coco", (100000, 20, 2, 2e-4, [0.5, 1.5], "cross_entropy"))])
def test_the_presets(preset, expected):
    for words in ([f"segmenter={preset}"], ["experiment=shapes_seg", f"segmenter={preset}", "backbone=vgg16"]):
        chosen = config.typed(config.compose(words))
        train = chosen.train_seg
        assert (train.steps, train.batch_size, train.parts, train.lr, train.scale, chosen.segmenter.loss) == expected
        assert (chosen.segmenter.rates, chosen.segmenter.scales, train.crop_size, train.scale_step) == (RATES, SCALES, 321, 0.25)
        assert (train.backbone.method, train.backbone.depth, train.backbone.style) == ("resnet_dilated", "resnet101", "torchvision")
        assert chosen.backbone.name == ("vgg16" if len(words) == 3 else "tf_efficientnet_lite0")
        assert (chosen.infer_seg.scales, chosen.infer_seg.flip, chosen.infer_seg.crf) == ([1.0], False, True)


def test_a_preset_of_another_one_can_be_the_backbone_of_the_segmentation_network():
    """They set values of `backbone` itself if the file that they build on is not included in their place."""
    for name, settings in (("tiny", {"method": "resnet", "depth": "tiny"}), ("vgg16_28", {"method": "vgg", "output_stride": 8}),
                           ("tf_efficientnet_lite0", {"method": "timm", "network": "tf_efficientnet_lite0", "output_stride": None}),
                           ("resnet101_caffe", {"method": "resnet_dilated", "depth": "resnet101", "style": "caffe", "trained_on": "imagenet"})):
        chosen = config.typed(config.compose(["backbone=resnet50", "segmenter=deeplab_v2_stock", f"backbone@train_seg.backbone={name}"]))
        assert chosen.train_seg.backbone.facts == settings and chosen.backbone.facts == {"method": "resnet", "depth": "resnet50"}


def test_the_facts_build_it_again():
    net = network("balanced")
    assert net.facts == {"segmenter": {"method": "deeplab_v2", "rates": RATES, "scales": SCALES, "loss": "balanced"}}
    again = from_facts("segmenter", net.facts["segmenter"]).new(rebuilt(net.backbone.facts), 4).eval()
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(again(drawn((1, 3, 40, 33))), net.eval()(drawn((1, 3, 40, 33))))


@pytest.mark.parametrize(("settings", "message"), [
    ({"rates": []}, r"segmenter.rates=\[\] is not possible: expected at least one dilation"),
    ({"rates": [0, 6]}, r"segmenter.rates=\[0, 6\] is not possible"),
    ({"scales": [1.0]}, r"segmenter.scales=\[1.0\] is not possible: expected factors between 0 and 1"),
    ({"loss": "focal"}, "segmenter.loss=focal is not possible: expected one of cross_entropy, balanced")])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DeepLabV2(**{"rates": RATES, "scales": SCALES, "loss": "balanced"} | settings)


# ---- DeepLabV1

def test_the_logits_of_deeplab_v1():
    net, x = DeepLabV1(rate=12, width=16).new(backbone("group"), 4, seed=1).eval(), drawn((2, 3, 50, 33))
    with torch.no_grad():
        hidden = F.relu(F.conv2d(net.backbone.features(x), net.reduce.weight, net.reduce.bias, padding=12, dilation=12))
        expected = F.conv2d(hidden, net.classifier.weight, net.classifier.bias, padding=12, dilation=12)
        torch.testing.assert_close(net(x), expected)
    assert expected.shape == (2, 4, 7, 5) and net.facts == {"segmenter": {"method": "deeplab_v1", "rate": 12, "width": 16}}
    bound = math.sqrt(6 / (9 * (32 + 16)))   # Xavier
    assert 0.9 * bound < net.reduce.weight.abs().max() <= bound


def test_the_preset_of_resnet38():
    chosen = config.typed(config.compose(["experiment=shapes_seg", "segmenter=deeplab_v1_resnet38"]))
    train = chosen.train_seg
    assert (train.epochs, train.steps, train.batch_size, train.crop_size, train.lr, train.momentum, train.weight_decay) == (
        30, None, 4, 321, 7e-4, 1e-5, 0)
    assert (train.backbone.method, chosen.segmenter.rate, chosen.segmenter.width) == ("resnet38", 12, 512)


@pytest.mark.parametrize("key", ["rate", "width"])
def test_impossible_settings_of_deeplab_v1_are_refused(key):
    with pytest.raises(ConfigError, match=f"segmenter.{key}=0 is not possible: expected at least 1"):
        DeepLabV1(**{"rate": 12, "width": 16} | {key: 0})
