"""The networks and heads of the CAM paper, wsolevaluation and F-CAM, and Caffe's ten crops."""

import dataclasses
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import yaml
from torch import nn

from wsss.cams import crops
from wsss.cams.cam import CAM
from wsss.cams.crops import CORNERS, CROP, RESIZED, crop_pairs, placed, ten_crop_logits, ten_crop_maps
from wsss.cams.gradcam import GradCAM
from wsss.cams.signed_cam import SignedCAM
from wsss.data.images import IMAGENET, resize_image
from wsss.errors import ConfigError, WeightsError
from wsss.families import from_facts
from wsss.networks.facts import PRETRAINED
from wsss.networks.weights import pretrained_name

CONF = Path(__file__).parents[2] / "conf/backbone"

# preset: millions of parameters with 200 classes, channels and side of the features of an image of 224 px, added channels
NETWORKS = {"alexnet_gap": (5.035, 1024, 13, 1024), "alexnet_star_gap": (4.343, 512, 13, 1024), "vgg16_gap": (19.639, 1024, 14, 1024),
            "vgg16_gap_28": (19.639, 1024, 28, 1024), "googlenet_gap": (11.148, 1024, 14, 1024), "inception_v3_14": (25.688, 1024, 14, 2048),
            "inception_v3_28": (25.688, 1024, 28, 2048), "resnet50_14": (23.918, 2048, 14, 0), "resnet50_28": (23.918, 2048, 28, 0)}
FCAM = {"vgg16_gap_28": 19.6, "inception_v3_28": 25.6, "resnet50_28": 23.9}   # its runtime table, #PCL, cut off after a digit


@cache
def settings(preset: str) -> dict:
    """The values of a file of conf/backbone and of the presets that it is derived from."""
    values = yaml.safe_load((CONF / f"{preset}.yaml").read_text())
    base, = [each for each in values.pop("defaults") if each != "_self_"]
    return {**(settings(base.removesuffix("@_here_")) if isinstance(base, str) else {"method": base["/schema/backbone@_here_"]}), **values}


def method(preset: str, **changes):
    return from_facts("backbone", {**settings(preset), **changes})


def head(loss: str = "softmax", pooling: str = "gap", dropout: float = 0.0):
    return from_facts("classifier", {"method": "pooled", "loss": loss, "pooling": pooling, "dropout": dropout})


def image(height: int = 64, width: int = 96, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("preset", NETWORKS)
def test_parameters_and_maps_are_the_papers(preset):
    millions, channels, side, _ = NETWORKS[preset]
    with torch.device("meta"):
        backbone = method(preset).new()
        net = head().new(backbone, 200)
        features, odd = backbone(torch.empty(1, 3, 224, 224)), backbone.stages(torch.empty(1, 3, 75, 61))
    assert features.shape == (1, channels, side, side) and (backbone.feature_channels, backbone.feature_stride) == (channels, 224 // side // 8 * 8)
    count = sum(parameter.numel() for parameter in net.parameters())
    assert round(count / 1e6, 3) == millions
    assert preset not in FCAM or math.floor(count / 1e5) / 10 == FCAM[preset]
    if not preset.startswith("alexnet"):   # any size: as all backbones
        assert [tuple(each.shape[1:]) for each in odd] == [(D, -(-75 // s), -(-61 // s)) for D, s in zip(backbone.channels, backbone.strides)]


@pytest.mark.parametrize("preset", NETWORKS)
def test_the_layers_of_the_papers_learn_at_the_rate_of_the_head(preset):
    with torch.device("meta"):
        backbone = method(preset).new()
        net = head().new(backbone, 20)
    (first, one), (second, ten) = head().groups(net, 10.0)
    named = {id(parameter): name for name, parameter in net.named_parameters()}
    fast, slow = {named[id(parameter)] for parameter in second}, {named[id(parameter)] for parameter in first}
    own = "backbone.layer4." if preset.startswith("resnet") else "backbone.layers.added."
    assert (one, ten) == (1.0, 10.0) and fast == {name for name in named.values() if name.startswith((own, "classifier."))}
    assert slow == {name for name, parameter in net.named_parameters() if parameter.requires_grad and name not in fast}
    assert {name for name in named.values()} - fast - slow == {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("preset", ["alexnet_gap", "resnet50_14"])
def test_recam_trains_them_at_the_rate_of_the_backbone(preset):
    recam = from_facts("classifier", {"method": "recam", "weight": 1.0, "map_weights": "product"})
    with torch.device("meta"):
        net = recam.new(method(preset).new(), 20)
    (others, one), (second, ten) = recam.groups(net, 10.0)
    assert (one, ten) == (1.0, 10.0) and [id(each) for each in second] == [id(net.second.weight)]
    assert {id(each) for each in others} == {id(each) for each in net.parameters() if each.requires_grad} - {id(net.second.weight)}


@pytest.mark.parametrize("preset", ["alexnet_gap", "googlenet_gap", "inception_v3_28"])
def test_stages_are_the_outputs_of_their_modules_and_folding_keeps_them(preset):
    from wsss.networks.folding import fold_batch_norm

    net, x, outputs = method(preset).new("frozen_batch").eval(), image(45, 77), []
    for module in net.stage_modules:
        module.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        features = net(x)
        found, stages = list(outputs), net.stages(x)
        folded = fold_batch_norm(net)(x)
    assert all(map(torch.equal, found, stages)) and len(found) == len(stages) == len(net.strides) and torch.equal(found[-1], features)
    torch.testing.assert_close(folded, features, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def drawn(name: str, tmp_path: Path):
    """torchvision's layers before the cut with weights and statistics that no layer starts with, and a file of them and others."""
    options = {} if name == "alexnet" else {"aux_logits": False, "init_weights": False, "transform_input": True}
    with torch.device("meta"):   # of AlexNet's 61 million weights nearly all are behind the cut
        net = getattr(torchvision.models, name)(weights=None, **options).eval()
    draws = torch.Generator().manual_seed(3)
    for layer in [layer for key, layer in net.named_children() if key not in BEHIND]:
        layer.to_empty(device="cpu")
        for name_of, value in layer.state_dict().items():
            if value.ndim == 4:
                value.normal_(0, math.sqrt(2 / value[0].numel()), generator=draws)
            elif value.is_floating_point():
                value.uniform_(*((0.5, 2.0) if name_of.endswith("var") else (0.5, 1.5) if "bn.weight" in name_of else (-0.1, 0.1)), generator=draws)
    tensors = {key: value for key, value in net.state_dict().items() if not value.is_meta}
    torch.save({**tensors, "fc.weight": torch.zeros(3, 2), "aux1.conv.bn.bias": torch.zeros(2), "classifier.1.bias": torch.zeros(2)},
               tmp_path / f"{name}.pth")
    return net, tmp_path / f"{name}.pth"


BEHIND = ("avgpool", "dropout", "fc", "classifier", "Mixed_7a", "Mixed_7b", "Mixed_7c", "maxpool4", "inception5a", "inception5b")


class Reached(Exception):
    """The layer before the cut has its output."""


@pytest.mark.parametrize("preset", ["alexnet_gap", "googlenet_gap"])
def test_torchvisions_layers_and_files(preset, tmp_path):
    """Of an image in [0, 1], normalised by each network's own rule; up to the layer before the added ones."""
    theirs, file = drawn(preset.removesuffix("_gap"), tmp_path)
    loaded = method(preset, weights=str(file))
    net = loaded.new().eval()
    started = {name: value.clone() for name, value in net.state_dict().items() if ".added." in name}
    loaded.load(net)
    assert len(started) == 2 and all(torch.equal(net.state_dict()[name], value) for name, value in started.items())
    x, outputs = torch.rand(1, 3, 127 if preset == "alexnet_gap" else 96, 64, generator=torch.Generator().manual_seed(1)), []

    def normalised(normalisation):
        return (x - torch.tensor(normalisation.mean)[:, None, None]) / torch.tensor(normalisation.std)[:, None, None]
    last = theirs.features[11] if preset == "alexnet_gap" else theirs.inception4e

    def stop(module, args, output):
        outputs.append(output)
        raise Reached
    last.register_forward_hook(stop)
    with torch.no_grad():
        with pytest.raises(Reached):
            theirs(normalised(IMAGENET))
        torch.testing.assert_close(net.stages(normalised(net.normalisation))[-2], outputs[0])


def test_inception_has_torchvisions_layers_with_a_padding_of_one(tmp_path):
    """The layers of torchvision's file, computed one after another with the paddings of wsolevaluation."""
    theirs, file = drawn("inception_v3", tmp_path)
    x = image(65, 64)
    for preset, stride in (("inception_v3_14", 2), ("inception_v3_28", 1)):
        loaded = method(preset, weights=str(file))
        net = loaded.new().eval()
        loaded.load(net)

        def block(module, x, stride=1):
            x = F.conv2d(x, module.conv.weight, None, stride, tuple(side // 2 for side in module.conv.kernel_size))
            return F.relu(module.bn(x))
        with torch.no_grad():
            y = block(theirs.Conv2d_2b_3x3, block(theirs.Conv2d_2a_3x3, block(theirs.Conv2d_1a_3x3, x, 2)))
            y = F.max_pool2d(y, 3, 2, 1)
            y = block(theirs.Conv2d_4a_3x3, block(theirs.Conv2d_3b_1x1, y))
            y = theirs.Mixed_5d(theirs.Mixed_5c(theirs.Mixed_5b(F.max_pool2d(y, 3, 2, 1))))
            a = theirs.Mixed_6a
            double = block(a.branch3x3dbl_3, block(a.branch3x3dbl_2, block(a.branch3x3dbl_1, y)), stride)
            y = torch.cat([block(a.branch3x3, y, stride), double, F.max_pool2d(y, 3, stride, 1)], dim=1)
            y = theirs.Mixed_6e(theirs.Mixed_6d(theirs.Mixed_6c(theirs.Mixed_6b(y))))
            torch.testing.assert_close(net.stages(x)[-2], y)
    net.train()
    assert [module.p for module in net.layers.added if isinstance(module, nn.Dropout)] == [0.5, 0.5]


def test_the_files_of_torchvision():
    assert all(PRETRAINED[name] == pretrained_name(name) for name in ("alexnet", "googlenet", "inception_v3"))
    assert method("googlenet_gap").digest() == "googlenet-1378be20.pth" and method("vgg16_gap").digest() == "vgg16-397923af.pth"


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "classifier.1.bias": torch.zeros(5)}, tmp_path / "alexnet.pth")
    loaded = method("vgg16_gap", weights=str(tmp_path / "alexnet.pth"))
    with torch.device("meta"), pytest.raises(WeightsError, match=r"alexnet.pth \(vgg16\) does not fit the network. \d+ missing: layers.0.bias, layers.2.weight"):
        loaded.load(loaded.new())


def test_from_scratch_there_is_group_norm():
    net = method("googlenet_gap", pretrained=False).new().train()
    groups = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()) and {g.num_channels // g.num_groups for g in groups} == {8}
    x = image(batch=2)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_alexnet_takes_small_images():
    net = method("alexnet_star_gap").new().eval()
    with torch.no_grad():
        assert net(image(5, 40)).shape == net.stages(image(5, 40))[-1].shape == (1, 512, 1, 2)


@pytest.mark.parametrize(("changes", "message"), [
    ({"groups": 0}, "backbone.groups=0 is not possible: expected at least 1"),
    ({"groups": 3}, r"backbone.added=\[1024\] is not possible with backbone.groups=3: expected numbers of channels that are multiples"),
    ({"added": [0]}, r"backbone.added=\[0\] is not possible with backbone.groups=1"),
    ({"dropout": 1.0}, r"backbone.dropout=1.0 is not possible: expected a share in \[0, 1\)"),
    ({"output_stride": 32}, "backbone.output_stride=32 is not possible with vgg16: expected 16 or 8")])
def test_impossible_layers_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        method("vgg16_gap", **changes)
    if "output_stride" in changes:
        with pytest.raises(ConfigError, match="backbone.output_stride=32 is not possible with resnet50: expected 16 or 8"):
            method("resnet50_28", **changes)


def test_without_added_layers_it_is_the_network_alone():
    with torch.device("meta"):
        plain = from_facts("backbone", {"method": "vgg", "output_stride": 8, "pretrained": True, "weights": None}).new()
        net = method("vgg16_gap_28", added=[]).new()
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert net.channels == plain.channels and net.head_parameters() == []


# ---- heads

@cache
def tiny():
    return from_facts("backbone", {"method": "resnet", "depth": "tiny", "pretrained": False, "weights": None}).new()


@pytest.mark.parametrize("pooling", ["gap", "gmp"])
def test_a_head_pools_and_adds_a_bias(pooling):
    net = head(pooling=pooling).new(tiny(), 4).eval()
    assert not net.classifier.bias.any() and net.classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
    nn.init.uniform_(net.classifier.bias)
    with torch.no_grad():
        features = net.features(image(batch=2))
        cells = features.flatten(2)
        pooled = cells.mean(2) if pooling == "gap" else cells.max(2).values
        torch.testing.assert_close(net(image(batch=2)), pooled @ net.classifier.weight.flatten(1).T + net.classifier.bias)
        maps = CAM().maps(net, net.features, image(batch=2), [2, 0])   # without the bias
        torch.testing.assert_close(maps, F.conv2d(features, net.classifier.weight[[2, 0]]).relu())
    assert CAM().check(net) is None


def test_the_dropout_is_of_the_pooled_features_in_training_alone():
    net = head(dropout=0.5).new(tiny(), 4)
    features = torch.ones(64, net.backbone.feature_channels, 2, 2)
    nn.init.constant_(net.classifier.weight, 1.0)
    with torch.no_grad():
        logits, expected = net.train().head(features), float(net.backbone.feature_channels)
        assert logits.std(0).min() > 0 and logits.mean().item() == pytest.approx(expected, rel=0.1)
        torch.testing.assert_close(net.eval().head(features), torch.full((64, 4), expected))


def test_gradients_of_a_maximum_are_at_its_cell():
    net = head(pooling="gmp").new(tiny(), 3).eval().requires_grad_(False)
    x = image(batch=2)
    features = net.features(x)
    weights = net.class_weights()[[1]] / features[0, 0].numel()
    expected = torch.einsum("kd,bdhw->bkhw", weights, features).relu()
    torch.testing.assert_close(GradCAM(-1).maps(net, net.features, x, [1]), expected)   # the mean of a gradient that has one cell


@pytest.mark.parametrize(("changes", "message"), [
    ({"pooling": "max"}, "classifier.pooling='max' is not possible: expected one of gap, gmp"),
    ({"dropout": -0.5}, r"classifier.dropout=-0.5 is not possible: expected a share in \[0, 1\)"),
    ({"loss": "mse"}, "classifier.loss='mse' is not possible")])
def test_impossible_heads_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        head(**changes)


def test_softmax_is_the_cross_entropy_of_the_one_class():
    method, labels = head(), torch.eye(4)[[2, 0]]
    net = method.new(tiny(), 4).eval()
    logits = net(image(batch=2))
    torch.testing.assert_close(method.losses(net, image(batch=2), labels)["loss"], F.cross_entropy(logits, torch.tensor([2, 0])))
    torch.testing.assert_close(method.probabilities(logits).sum(1), torch.ones(2))


# ---- ten crops

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)


def test_the_crops_are_the_corners_and_the_centre_with_their_mirror_images():
    resized = torch.from_numpy(resize_image(PHOTO, (256, 256)) / np.float32(255))
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    whole = ((resized - mean) / std).permute(2, 0, 1)
    pairs = list(crop_pairs(PHOTO))
    assert len(pairs) == 5 and CORNERS == ((0, 0), (0, 32), (32, 0), (32, 32), (16, 16)) and (RESIZED, CROP) == (256, 224)
    for (top, left), pair in zip(CORNERS, pairs):
        torch.testing.assert_close(pair[0], whole[:, top:top + 224, left:left + 224])
        assert torch.equal(pair[1], pair[0].flip(-1))


def test_maps_of_crops_are_placed_and_summed(monkeypatch):
    """Worked out by hand: an image of 4x4, crops of 3x3."""
    monkeypatch.setattr(crops, "RESIZED", 4)
    monkeypatch.setattr(crops, "CROP", 3)
    monkeypatch.setattr(crops, "CORNERS", ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)))
    at = torch.zeros(2, 1, 3, 3)
    at[0, 0, 0, 1], at[1, 0, 0, 2] = 1.0, -2.0   # the mirror image's is at column 0
    empty = torch.zeros(2, 1, 3, 3)
    assert placed([at, empty, empty, at, empty])[0].tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    ones = placed([torch.full((2, 2, 1, 1), -1.0)] * 5)
    assert ones.shape == (2, 4, 4) and ones[0].tolist() == [[4, 6, 6, 2], [6, 10, 10, 4], [6, 10, 10, 4], [2, 4, 4, 2]]


@dataclasses.dataclass
class Position(CAM):
    """The values of the input itself: where each crop is taken from."""

    def maps(self, net, features_of, pair, classes):
        return pair[:, :1].expand(-1, len(classes), -1, -1)


def test_a_crop_is_placed_where_it_was_taken():
    found, = ten_crop_maps(Position(), None, None, PHOTO, [0, 3])
    resized = torch.from_numpy(resize_image(PHOTO, (256, 256))[..., 0] / np.float32(255))
    times = torch.zeros(256, 256)
    for top, left in CORNERS:
        times[top:top + 224, left:left + 224] += 2
    torch.testing.assert_close(found, ((resized - IMAGENET.mean[0]) / IMAGENET.std[0]).abs().mul(times).expand(2, -1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("maker", [CAM(), SignedCAM(), GradCAM(-1)], ids=lambda maker: maker.method)
def test_ten_crops_of_a_network(maker):
    net = head().new(tiny(), 3).eval().requires_grad_(False)
    found, = ten_crop_maps(maker, net, net.features, PHOTO, [1])
    logits = ten_crop_logits(net, PHOTO)
    assert found.shape == (1, 256, 256) and found.min() >= 0 and found.max() > 0 and not found.requires_grad
    torch.testing.assert_close(logits, torch.cat([net(pair) for pair in crop_pairs(PHOTO)]).mean(0))
    assert ten_crop_maps(maker, net, net.features, PHOTO, [])[0].shape == (0, 256, 256)
