"""ResNet at stride 8 and the wide ResNet-38: grids, dilations, what is trained, and files of weights with the names of others."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from tests.networks import new_classifier
from wsss.errors import ConfigError, WeightsError
from wsss.families import from_facts
from wsss.networks.backbones.method import rebuilt
from wsss.networks.backbones.resnet38_layers import ResNet38
from wsss.networks.backbones.resnet_layers import FrozenBatchNorm
from wsss.networks.folding import fold_batch_norm
from wsss.networks.irn import IRN

SIZES = [(1, 1), (33, 50), (64, 48)]


def method(depth: str = "tiny", **settings):
    return from_facts("backbone", {"method": "resnet_dilated", "depth": depth, "style": "torchvision", "trained_on": "imagenet", **settings})


def image(height=33, width=50, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def on_meta(build):
    with torch.device("meta"):
        return build()


def convolutions(net) -> dict[str, torch.nn.Conv2d]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, torch.nn.Conv2d)}


def draw_statistics(net, seed=0):
    """Random statistics, scales and shifts of batch norm instead of 0 and 1, under which mistakes would not show."""
    generator = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.2), (layer.running_mean, -0.2), (layer.running_var, 0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * abs(low) + low)
    return net


# ---- ResNet at stride 8

@pytest.mark.parametrize(("depth", "style"), [("tiny", "torchvision"), ("resnet50", "caffe")])
@pytest.mark.parametrize("size", SIZES)
def test_the_stages_have_stride_8_at_any_size(depth, style, size):
    net = on_meta(lambda: method(depth, style=style).new("frozen_batch"))
    stages = net.stages(torch.empty(1, 3, *size, device="meta"))
    assert net.strides == (4, 4, 8, 8, 8) and net.feature_stride == 8 and net.feature_channels == net.channels[-1]
    assert [tuple(stage.shape) for stage in stages] == [
        (1, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for channels, stride in zip(net.channels, net.strides)]


@pytest.mark.parametrize("style", ["torchvision", "caffe"])
def test_the_whole_resnet101_has_torchvisions_parameters(style):
    net = on_meta(lambda: method("resnet101", style=style).new("frozen_batch"))
    theirs = on_meta(lambda: torchvision.models.resnet101(weights=None, replace_stride_with_dilation=[False, True, True]))
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    assert sum(parameter.numel() for parameter in net.parameters()) == 42_500_160
    assert net(torch.empty(2, 3, 321, 321, device="meta")).shape == (2, 2048, 41, 41)


def test_the_features_are_those_of_torchvisions_dilated_network():
    net = draw_statistics(method("resnet50").new("frozen_batch")).eval()
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    assert not theirs.load_state_dict(net.state_dict(), strict=False).unexpected_keys
    for size in [(33, 50), (64, 48)]:
        x = image(*size)
        with torch.no_grad():
            expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))))))
            assert (net(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_strides_and_dilations_of_caffes_network():
    """deeplab-pytorch: the stride is in `reduce` and `shortcut` of the first block, all 3x3 convolutions of a layer are dilated."""
    layers = convolutions(on_meta(lambda: method("resnet101", style="caffe").new("frozen_batch")))
    assert {name for name, layer in layers.items() if layer.stride != (1, 1)} == {"conv1", "layer2.0.conv1", "layer2.0.downsample.0"}
    for name, layer in layers.items():
        dilation = {"layer3": 2, "layer4": 4}.get(name.split(".")[0], 1) if layer.kernel_size == (3, 3) else 1
        assert layer.dilation == (dilation, dilation) and (name == "conv1" or layer.padding == (dilation * (layer.kernel_size[0] // 2),) * 2)


def theirs_of_caffe(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a CaffeResNet by the names of deeplab-pytorch, with BGR colours."""
    found = {}
    for name, value in state.items():
        first, *rest = name.split(".")
        if first in ("conv1", "bn1"):
            key = f"layer1.conv1.{'conv' if first == 'conv1' else 'bn'}.{rest[0]}"
        else:
            block, part, *_, last = rest
            number = {"conv1": "reduce", "conv2": "conv3x3", "conv3": "increase", "bn1": "reduce", "bn2": "conv3x3", "bn3": "increase"}
            batch = part.startswith("bn") or rest[1:3] == ["downsample", "1"]
            key = f"layer{int(first[-1]) + 1}.block{int(block) + 1}.{number.get(part, 'shortcut')}.{'bn' if batch else 'conv'}.{last}"
        found[key] = value.flip(1) if key == "layer1.conv1.conv.weight" else value
    return found


def plain_caffe(tensors: dict[str, torch.Tensor], bgr: torch.Tensor, blocks: tuple[int, ...]) -> torch.Tensor:
    """The features of deeplab-pytorch's network, from its tensors and BGR colours of 0..255 less the mean."""
    def unit(x, name, stride=1, dilation=1):
        weight = tensors[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
        norm = [tensors[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *norm)
    x = F.max_pool2d(F.relu(unit(bgr, "layer1.conv1", 2)), 3, 2, 1)
    for layer, (number, stride, dilation) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4)), start=2):
        for block in range(1, number + 1):
            name, step = f"layer{layer}.block{block}", stride if block == 1 else 1
            y = F.relu(unit(x, f"{name}.reduce", step))
            y = unit(F.relu(unit(y, f"{name}.conv3x3", 1, dilation)), f"{name}.increase")
            x = F.relu(y + (unit(x, f"{name}.shortcut", step) if block == 1 else x))
    return x


@pytest.mark.parametrize("prefix", ["", "base."])
def test_a_file_of_deeplab_pytorchs_names_gives_its_features(prefix, tmp_path):
    source = draw_statistics(method("resnet50", style="caffe").new("frozen_batch", seed=3))
    tensors = theirs_of_caffe(source.state_dict())
    assert {"layer2.block1.shortcut.bn.running_var", "layer5.block3.conv3x3.conv.weight"} <= tensors.keys()
    file = tmp_path / "deeplabv1_resnet50-imagenet.pth"
    torch.save({f"{prefix}{name}": value for name, value in tensors.items() if "num_batches" not in name}
               | {f"{prefix}aspp.c0.weight": torch.zeros(2), f"{prefix}fc.bias": torch.zeros(2)}, file)
    loaded = method("resnet50", style="caffe", weights=str(file))
    net = loaded.new().eval()
    loaded.load(net)
    assert net.norm == "frozen_batch" and len(loaded.digest()) == 64 and str(loaded) == f"resnet50_caffe from {file}"
    rgb = torch.randint(0, 256, (1, 3, 33, 49), generator=torch.Generator().manual_seed(0)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in net.normalisation)
    bgr = rgb.flip(1) - torch.tensor((104.008, 116.669, 122.675)).view(3, 1, 1)
    with torch.no_grad():
        found, expected = net((rgb / 255 - mean) / std), plain_caffe(tensors, bgr, (3, 4, 6, 3))
    assert found.shape == (1, 2048, 5, 7) and (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_weights_that_are_not_there(tmp_path):
    caffe = method("resnet101", style="caffe", pretrained=True)
    with pytest.raises(WeightsError, match="the weights of resnet101_caffe cannot be downloaded from here: .* to deeplabv1_resnet101-imagenet.pth"):
        caffe.load(on_meta(lambda: caffe.new()))
    missing = method("resnet101", style="caffe", trained_on="coco", weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match="Set it to deeplabv1_resnet101-coco.pth or a file with the parameter names of resnet101_caffe_coco"):
        missing.digest()
    assert method("resnet101", pretrained=True).digest() == "resnet101-63fe2227.pth"
    with pytest.raises(WeightsError, match="the weights of resnet101_coco cannot be downloaded .* to a file of coco with torchvision's names"):   # not torchvision's of ImageNet
        method("resnet101", pretrained=True, trained_on="coco").fetch()


def test_weights_from_coco_are_only_used_when_asked_for_and_then_recorded():
    with pytest.raises(ConfigError, match="backbone.weights=deeplabv1_resnet101-coco.pth has COCO in its name"):
        method("resnet101", style="caffe", weights="deeplabv1_resnet101-coco.pth")
    asked = method("resnet101", style="caffe", weights="deeplabv1_resnet101-coco.pth", trained_on="coco")
    facts = on_meta(lambda: asked.new()).facts
    assert facts == {"method": "resnet_dilated", "depth": "resnet101", "style": "caffe", "trained_on": "coco", "norm": "frozen_batch"}
    assert on_meta(lambda: rebuilt(facts)).facts == facts


@pytest.mark.parametrize(("settings", "message"), [
    ({"depth": "resnet51"}, "backbone.depth='resnet51' is not possible"),
    ({"style": "pytorch"}, "backbone.style='pytorch' is not possible: expected one of torchvision, caffe"),
    ({"trained_on": "ade"}, "backbone.trained_on='ade' is not possible: expected one of imagenet, coco"),
    ({"style": "caffe"}, "backbone.style=caffe is not possible with backbone.depth=tiny: expected one of resnet50, resnet101")])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        method(**settings)


def test_an_older_networks_facts_build_the_same_network():
    net = rebuilt({"method": "resnet", "depth": "tiny", "norm": "group"})
    assert net.strides == (4, 4, 8, 16, 16) and net.facts == {"method": "resnet", "depth": "tiny", "norm": "group"}
    assert all(layer.dilation == (1, 1) for layer in convolutions(net).values())


# ---- the wide ResNet-38

@pytest.fixture(scope="module")
def wide():
    """The layers with an eighth of the channels; do not change it."""
    net = draw_statistics(ResNet38("frozen_batch", width=8)).eval()
    net.name, net.norm = "resnet38", "frozen_batch"
    return net


def test_the_whole_resnet38_has_the_published_shapes():
    net = on_meta(lambda: from_facts("backbone", {"method": "resnet38"}).new("frozen_batch"))
    assert net.channels == (256, 512, 1024, 4096) and net.feature_channels == 4096
    assert net(torch.empty(1, 3, 321, 321, device="meta")).shape == (1, 4096, 41, 41)
    state = {name: tuple(value.shape) for name, value in net.state_dict().items() if "num_batches" not in name}
    assert sum(len(name.split(".")) == 3 and name.endswith(".weight") and "conv" in name for name in state) == 42   # without conv1a
    assert state["conv1a.weight"] == (64, 3, 3, 3) and state["bn7.running_var"] == (4096,)
    assert state["b2.conv_branch1.weight"] == (128, 64, 1, 1) and state["b5.conv_branch1.weight"] == (1024, 512, 1, 1)
    assert state["b6.conv_branch2b1.weight"] == (1024, 512, 3, 3) and state["b7.conv_branch2b2.weight"] == (4096, 2048, 1, 1)
    assert "b5_1.conv_branch1.weight" not in state and "b4_5.bn_branch2b1.bias" in state
    dilations = {name: layer.dilation[0] for name, layer in convolutions(net).items() if layer.dilation != (1, 1)}
    assert dilations == {"b5.conv_branch2b1": 2, "b5_1.conv_branch2a": 2, "b5_1.conv_branch2b1": 2, "b5_2.conv_branch2a": 2,
                         "b5_2.conv_branch2b1": 2, "b6.conv_branch2b1": 4, "b7.conv_branch2b1": 4}


def test_resnet38_of_edam_has_no_last_relu_and_fewer_trained_layers(wide):
    method = from_facts("backbone", {"method": "resnet38", "relu": False, "frozen": ["b2", "b2_1"]})
    assert method.facts == {"method": "resnet38", "relu": False, "frozen": ["b2", "b2_1"]}
    assert from_facts("backbone", {"method": "resnet38"}).facts == {"method": "resnet38"}   # as before there were these settings
    net = ResNet38("frozen_batch", width=8, relu=False, frozen=method.frozen).eval()
    net.load_state_dict(wide.state_dict())
    x = torch.rand(1, 3, 33, 40)
    assert (net(x) < 0).any() and torch.equal(net(x).relu(), wide(x)) and torch.equal(net.stages(x)[-1], net(x))
    frozen = {name.split(".")[0] for name, parameter in net.named_parameters() if not parameter.requires_grad and ".bn_" not in name}
    assert frozen == {"conv1a", "b2", "b2_1", "bn7"} and not {name for name, parameter in net.b2.named_parameters() if parameter.requires_grad}
    with pytest.raises(ConfigError, match=r"backbone.frozen=\[.b9.\] is not possible: b9 is no layer of resnet38; expected names among conv1a, b2"):
        from_facts("backbone", {"method": "resnet38", "frozen": ["b9"]})


def plain_wide(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """AffinityNet's forward pass in evaluation mode, from the tensors."""
    def norm(x, name):
        return F.relu(F.batch_norm(x, *(state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))))

    def conv(x, name, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
    x = conv(x, "conv1a")
    blocks = {"b2": 2, "b2_1": 1, "b2_2": 1, "b3": 2, "b3_1": 1, "b3_2": 1, "b4": 2} | {f"b4_{i}": 1 for i in range(1, 6)}
    for name, stride, first, second in [(name, stride, 1, 1) for name, stride in blocks.items()] + [
            ("b5", 1, 1, 2), ("b5_1", 1, 2, 2), ("b5_2", 1, 2, 2)]:
        y = norm(x, f"{name}.bn_branch2a")
        shortcut = conv(y, f"{name}.conv_branch1", stride) if f"{name}.conv_branch1.weight" in state else x
        y = norm(conv(y, f"{name}.conv_branch2a", stride, first), f"{name}.bn_branch2b1")
        x = shortcut + conv(y, f"{name}.conv_branch2b1", 1, second)
    for name in ("b6", "b7"):
        y = norm(x, f"{name}.bn_branch2a")
        z = norm(conv(y, f"{name}.conv_branch2a"), f"{name}.bn_branch2b1")
        z = norm(conv(z, f"{name}.conv_branch2b1", 1, 4), f"{name}.bn_branch2b2")
        x = conv(y, f"{name}.conv_branch1") + conv(z, f"{name}.conv_branch2b2")
    return norm(x, "bn7")


@pytest.mark.parametrize("size", SIZES)
def test_the_features_and_grids_of_resnet38(wide, size):
    x = image(*size)
    with torch.no_grad():
        features, stages = wide(x), wide.stages(x)
        torch.testing.assert_close(features, plain_wide(wide.state_dict(), x))
    assert torch.equal(features, stages[-1])
    assert [tuple(stage.shape) for stage in stages] == [
        (1, channels, math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for channels, stride in zip(wide.channels, wide.strides)]


def test_resnet38_can_be_the_backbone_of_the_classifier_and_of_irn(wide):
    net = ResNet38("frozen_batch", width=8)
    net.name, net.norm = "resnet38", "frozen_batch"
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.weight" for name in convolutions(net)} - {"conv1a.weight"}
    classifier, before = new_classifier(net, 3).train(), {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    classifier(image(batch=2)).sum().backward()
    optimizer.step()
    assert {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])} == trained
    assert not any(layer.training for layer in net.modules() if isinstance(layer, FrozenBatchNorm)) and net.b6.dropout_2b1.training
    early = {id(parameter) for parameter in net.early_parameters()}
    assert {name.split("_")[0].split(".")[0] for name, parameter in net.named_parameters() if id(parameter) in early} == {"b2", "b3", "b4"}
    edge, displacement = IRN(wide)(image(64, 48))
    assert edge.shape[2:] == displacement.shape[2:] == (16, 12)


def test_resnet38_without_weights_learns_everything_and_folds(wide):
    net = ResNet38("group", width=8)
    net(image(batch=2)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    folded = ResNet38("frozen_batch", width=8).eval()
    folded.load_state_dict(wide.state_dict())
    fold_batch_norm(folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(image()), wide(image()), rtol=1e-4, atol=1e-4)
    assert 0 < sum(isinstance(layer, FrozenBatchNorm) for layer in folded.modules()) < sum(
        isinstance(layer, FrozenBatchNorm) for layer in wide.modules())


def test_files_of_resnet38s_names(wide):
    method = from_facts("backbone", {"method": "resnet38"})
    tensors = {**wide.state_dict(), "fc8.weight": torch.zeros(2)}   # of a classifier
    assert method.own(tensors).keys() == wide.state_dict().keys()
    with pytest.raises(WeightsError, match="the weights of resnet38 cannot be downloaded from here: .* to ilsvrc-cls_rna-a1_cls1000_ep-0001.pth"):
        method.fetch()
    missing = from_facts("backbone", {"method": "resnet38", "weights": "none.pth"})
    with pytest.raises(ConfigError, match="Set it to ilsvrc-cls_rna-a1_cls1000_ep-0001.pth .converted by .*. or a file"):
        missing.digest()
