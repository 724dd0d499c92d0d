"""timm's networks and VGG16 as backbones: grids at any size, features, stages, norms, attention, weights, and IRN on them."""

import math
from collections import OrderedDict
from fractions import Fraction
from functools import cache
from pathlib import Path
from threading import Thread, get_ident

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from torch.nn.modules.batchnorm import _BatchNorm

from tests.networks import new_classifier
from wsss.cams.gradients import stage_maps
from wsss.errors import ArgumentError, ConfigError, WeightsError
from wsss.families import from_facts
from wsss.networks.backbones.backbone import StagedBackbone
from wsss.networks.backbones.timm_networks import measured
from wsss.networks.backbones.timm_weights import converted
from wsss.networks.irn import IRN, resized
from wsss.networks.weights import save_tensors

SIZES = [(20, 33), (75, 61), (64, 96)]
IMAGENET = (0.485, 0.456, 0.406)

# network: channels and strides of the stages, channels and stride of the features, number of stage modules
TIMM = {"resnet18": ((64, 128, 256, 512), (4, 8, 16, 16), 512, 16, 4),
        "test_efficientnet": ((24, 32, 48, 64), (4, 8, 16, 16), 256, 16, 5),
        "deit_tiny_patch16_224": ((192,) * 4, (16,) * 4, 192, 16, 5),
        "test_vit4": ((96,) * 4, (16,) * 4, 96, 16, 5),                         # pools before its last norm
        "convnext_femto": ((48, 96, 192, 384), (4, 8, 16, 16), 384, 16, 5),
        "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), (4, 8, 16, 32), 768, 32, 5),
        "vit_small_patch14_dinov2": ((384,) * 4, (14,) * 4, 384, 14, 5)}
VGG = {"vgg16": ((256, 512, 512), (4, 8, 16), 512, 16, 3), "vgg16_28": ((256, 512, 512), (4, 8, 8), 512, 8, 3)}
ALL = {**TIMM, **VGG}
FAST = [name for name in ALL if name not in ("vit_small_patch14_dinov2", "vgg16_28")]


def method(name: str, weights: str | Path | None = None, pretrained: bool = False, output_stride: int | None = None):
    if name in VGG:
        layers = {"method": "vgg", "output_stride": 8 if name == "vgg16_28" else 16}
    else:
        layers = {"method": "timm", "network": name, "output_stride": output_stride}
    return from_facts("backbone", {**layers, "pretrained": pretrained, "weights": None if weights is None else str(weights)})


@cache
def backbone(name: str, norm: str = "frozen_batch"):
    """In evaluation mode; do not change it."""
    return method(name).new(norm).eval()


def image(height: int = 64, width: int = 96, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def ceil(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


@pytest.mark.parametrize("name", ALL)
def test_channels_and_grids_at_any_size(name):
    net, (channels, strides, feature_channels, feature_stride, modules) = backbone(name), ALL[name]
    assert (net.channels, net.strides, net.feature_channels, net.feature_stride) == (channels, strides, feature_channels, feature_stride)
    assert net.name == name.removesuffix("_28") and net.norm == "frozen_batch" and len(net.stage_modules) == modules
    for size in SIZES:
        with torch.no_grad():
            stages, features = net.stages(image(*size)), net(image(*size))
        assert [tuple(stage.shape) for stage in stages] == [(1, D, *ceil(size, s)) for D, s in zip(channels, strides, strict=True)]
        assert features.shape == (1, feature_channels, *ceil(size, feature_stride))


@pytest.mark.parametrize("name", FAST)
def test_stage_modules_deliver_the_stages_and_the_features(name):
    net, size, outputs = backbone(name), (45, 77), []
    handles = [module.register_forward_hook(lambda module, args, output: outputs.append(output)) for module in net.stage_modules]
    try:
        with torch.no_grad():
            features = net(image(*size))
            found, stages = list(outputs), net.stages(image(*size))
    finally:
        for handle in handles:
            handle.remove()
    maps = [net.as_map(output, size) for output in found]
    assert len(maps) == len(net.stage_modules) and torch.equal(maps[-1], features)
    assert all(map(torch.equal, maps, stages)) and len(maps) - len(stages) in (0, 1)


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224",
                                  "vit_small_patch14_dinov2"])
def test_features_are_what_timms_own_classifier_pools(name):
    """At a size that needs no padding."""
    net = backbone(name)
    x = image(3 * max(net.strides), 4 * max(net.strides))
    original = timm.create_model(name, num_classes=0, **net.layout.options).eval()
    original.load_state_dict(net.net.state_dict())
    with torch.no_grad():
        features, output = net(x), original.forward_features(x)
        if output.ndim == 3:   # its classifier reads the class token; the features are the others
            torch.testing.assert_close(features.flatten(2).transpose(1, 2), output[:, original.num_prefix_tokens:])
        else:
            torch.testing.assert_close(features.mean((2, 3)), original(x))


@pytest.mark.parametrize("name", ["convnext_femto", "test_vit4"])
def test_a_norm_after_the_pooling_normalises_every_cell(name):
    net, x = backbone(name), image()
    with torch.no_grad():
        features, before = net(x), net.net.forward_features(x)
        if name == "convnext_femto":
            expected = net.net.head.norm(before)
        else:
            expected = net.net.fc_norm(before)[:, net.net.num_prefix_tokens:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(features, expected)
    assert features.square().mean((1, 2, 3)).item() == pytest.approx(1, rel=0.05)   # with their first scale and shift


def test_the_padding_is_zero_after_normalisation():
    """ConvNeXt rounds grids down; ResNet and EfficientNet round up and see no padding, so that their bits do not change."""
    net, x = backbone("convnext_femto"), image(50, 70)
    with torch.no_grad():
        expected = net(F.pad(x, (0, 10, 0, 14)))   # to multiples of 16
        assert torch.equal(net(x), expected)
    assert net.layout.multiple == 16 and backbone("swin_tiny_patch4_window7_224").layout.multiple == 32
    assert all(backbone(name).layout.multiple == 1 for name in ("resnet18", "test_efficientnet", "deit_tiny_patch16_224"))


def test_the_stride():
    with torch.device("meta"):
        assert method("resnet18", output_stride=8).new("group").strides == (4, 8, 8, 8)
    assert method("swin_tiny_patch4_window7_224", output_stride=32).remark() == ""
    assert method("resnet18").remark() == method("deit_tiny_patch16_224").remark() == ""
    assert method("swin_tiny_patch4_window7_224").remark() == \
        "swin_tiny_patch4_window7_224 has features at stride 32: timm cannot change its stride"
    for name, stride in (("swin_tiny_patch4_window7_224", 16), ("deit_tiny_patch16_224", 8)):
        with pytest.raises(ConfigError, match=rf"backbone.output_stride={stride} is not possible: {name} has features at stride \d+, which"):
            method(name, output_stride=stride)
    with pytest.raises(ConfigError, match="backbone.output_stride=4 is not possible with VGG16: expected 16 or 8"):
        from_facts("backbone", {"method": "vgg", "output_stride": 4, "pretrained": False, "weights": None})


@pytest.mark.parametrize(("name", "message"), [
    ("resnet19", r"backbone.network='resnet19' is no network of timm 1\.\d+\.\d+\w*; did you mean 'resnet18'\? \(known: timm.list_models"),
    ("resnet18.a1_in2k", "did you mean 'resnet18.a1_in1k'"),
    ("hrnet_w18_small", "hrnet_w18_small cannot be a backbone: AttributeError: .*HighResolutionNet.* has no attribute"),
    ("maxvit_tiny_rw_224", "cannot be a backbone: AssertionError: height .* must be divisible by window"),
    ("inception_v3", "cannot be a backbone: (ArgumentError: its stages .* do not have the size|AttributeError: )")])
def test_networks_that_cannot_be_used_are_refused_with_the_reason(name, message):
    with pytest.raises(ConfigError, match=message):
        method(name)


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_batch_norm_becomes_group_norm_with_its_activation(name):
    net, batch = method(name).new("group").train(), backbone(name)
    assert not any(isinstance(module, _BatchNorm) for module in net.modules()) and all(p.requires_grad for p in net.parameters())
    pairs = [(module, dict(batch.named_modules())[path]) for path, module in net.named_modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(pairs) == sum(isinstance(module, _BatchNorm) for module in batch.modules())
    for group, norm in pairs:
        assert group.num_channels // group.num_groups == 8 and type(group.act) is type(getattr(norm, "act", torch.nn.Identity()))
    x = image(batch=2)
    torch.testing.assert_close(net(x)[:1], net(x[:1]))   # an image does not depend on the others of its batch


def test_a_group_of_channels_that_are_no_multiple_of_eight():
    net = method("mobilenetv3_small_050").new("group")   # 16, 8, 40, 56, 24, 64, ... channels
    odd = method("ghostnet_050").new("group")            # 4, 12, 20, ... channels
    sizes = {(module.num_channels % 8 == 0, module.num_channels // module.num_groups) for each in (net, odd) for module in each.modules()
             if isinstance(module, torch.nn.GroupNorm)}
    assert sizes == {(True, 8), (False, 4), (False, 2)}


STEMS = {"resnet18": ("net.conv1", "net.bn1"), "test_efficientnet": ("net.conv_stem", "net.bn1"), "convnext_femto": ("net.stem",),
         "deit_tiny_patch16_224": ("net.cls_token", "net.pos_embed", "net.patch_embed"), "swin_tiny_patch4_window7_224": ("net.patch_embed",),
         "vgg16": ("layers.0.",)}


@pytest.mark.parametrize("name", STEMS)
def test_with_weights_the_stem_and_the_statistics_stay(name):
    net = backbone(name)
    assert {key for key, p in net.named_parameters() if not p.requires_grad} == {
        key for key, _ in net.named_parameters() if key.startswith(STEMS[name])}
    trained = method(name).new("frozen_batch").train()
    assert not any(module.training for module in trained.modules() if isinstance(module, _BatchNorm))
    assert trained.training and all(p.requires_grad for p in method(name).new("group").parameters())


@pytest.mark.parametrize(("name", "number"), [
    ("resnet18", 1), ("test_efficientnet", 1), ("convnext_femto", 1), ("swin_tiny_patch4_window7_224", 1), ("vgg16", 1),
    ("vgg16_28", 1),                                       # the later stages have stride 8 too
    ("deit_tiny_patch16_224", 0), ("test_vit4", 0)])       # the first quarter of the blocks
def test_the_early_parameters_are_those_up_to_the_first_stage_of_stride_8(name, number):
    net = backbone(name)
    early = {id(parameter) for parameter in net.early_parameters()}
    for i, module in enumerate(net.stage_modules[:len(net.strides)]):
        last = [p for p in module.parameters() if p.requires_grad][-1:]
        assert all((id(p) in early) == (i <= number) for p in last)
    assert early and not net.training and all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_attention_is_timms_own(name):
    net, x = backbone(name), image(batch=2)
    with torch.no_grad():
        found = net.attention(x)
        features = net(x)
    blocks, recorded = net.net.blocks, []
    original = method(name).new("frozen_batch").eval()
    original.load_state_dict(net.state_dict())
    for block in original.net.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: recorded.append(output))
    with torch.no_grad():
        original(x)
    n = math.prod(ceil((64, 96), net.feature_stride)) + net.net.num_prefix_tokens
    assert len(found) == len(blocks) and all(each.shape == (2, blocks[0].attn.num_heads, n, n) for each in found)
    for ours, theirs in zip(found, recorded, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found[0].sum(-1), torch.ones(found[0].shape[:3]))
    assert all(block.attn.fused_attn and not block.attn._forward_hooks and not block._forward_hooks for block in blocks) and torch.equal(net(x), features)


@pytest.mark.parametrize("name", ["resnet18", "convnext_femto", "swin_tiny_patch4_window7_224", "vgg16"])
def test_others_have_no_attention(name):
    with torch.no_grad():
        assert backbone(name).attention(image()) is None


def test_attention_is_of_the_own_thread():
    """Another thread uses the network while the first is in the middle of it."""
    net, main, calls = backbone("deit_tiny_patch16_224"), get_ident(), []

    def disturb(module, args):
        if get_ident() == main:
            other = Thread(target=lambda: calls.append(net(image(32, 32)).detach()))
            other.start()
            other.join()
    with torch.no_grad():
        alone = net.attention(image())
        handle = net.net.blocks[3].register_forward_pre_hook(disturb)
        try:
            found = net.attention(image())
        finally:
            handle.remove()
    assert len(calls) == 1 and len(found) == len(alone) and all(map(torch.equal, found, alone))


def test_the_normalisation_is_the_networks():
    assert backbone("resnet18").normalisation.mean == backbone("vgg16").normalisation.mean == IMAGENET
    with torch.device("meta"):
        net = method("vit_small_patch16_224").new("frozen_batch")
    assert net.normalisation.mean == net.normalisation.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224", "vgg16"])
def test_weights_come_from_the_seed_alone(name):
    measured.cache_clear()   # the first network is not another one because it is measured
    state = torch.get_rng_state()
    nets = [method(name).new("group", seed).state_dict() for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    assert any(not torch.equal(nets[0][key], nets[2][key]) for key in nets[0])
    with torch.device("meta"):
        meta = method(name).new("group", 5)
    assert all(parameter.is_meta for parameter in meta.parameters()) and {k: v.shape for k, v in meta.state_dict().items()} == {
        k: v.shape for k, v in nets[0].items()}


@pytest.mark.parametrize("name", FAST)
def test_logits_have_gradients_at_every_stage(name):
    net, size = new_classifier(method(name).new("frozen_batch"), 3).eval().requires_grad_(False), (45, 77)
    number = len(net.backbone.stage_modules)
    maps = stage_maps(net, image(*size, batch=2), [0, 2], range(number), lambda activation, gradient: (activation * gradient).sum(1))
    strides = (*net.backbone.strides, net.backbone.feature_stride)[:number]
    assert [tuple(each.shape) for each in maps] == [(2, 2, *ceil(size, stride)) for stride in strides]
    assert all(each.abs().max() > 0 for each in maps)


# ---- weights

def original(name: str, seed: int = 1, **more) -> dict[str, torch.Tensor]:
    """The tensors of timm's network with a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **more).state_dict()


@pytest.mark.parametrize(("name", "n_classes"), [("resnet18", 1000), ("deit_tiny_patch16_224", 7), ("convnext_femto", 1000),
                                                 ("test_vit4", 0)])
def test_a_local_file_of_timms_tensors(name, n_classes, tmp_path):
    tensors = original(name, num_classes=n_classes)
    save_tensors(tmp_path / "mine.safetensors", tensors)
    loaded = method(name, tmp_path / "mine.safetensors")
    net, state = loaded.new("frozen_batch"), torch.get_rng_state()
    loaded.load(net)
    assert loaded.starts_from_weights and loaded.at_hand() and len(loaded.digest()) == 64 and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, tensors[key.removeprefix("net.")]) for key, value in net.state_dict().items())


def test_timm_sees_the_classifier_of_a_file():
    """By it, timm tells its own files of Swin from those of the authors, whose stages end where the next one's begin."""
    name = "swin_tiny_patch4_window7_224"
    tensors = original(name, num_classes=7)
    assert all(torch.equal(value, tensors[key]) for key, value in converted(tensors, name, measured(name, None).options, "FILE").items())


def test_a_file_with_its_authors_names_is_converted_by_timm(tmp_path):
    """ConvNeXt's own files: `downsample_layers.0.0.weight` is timm's `stem.0.weight`."""
    tensors = original("convnext_femto")
    theirs = OrderedDict()
    for key, value in tensors.items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm", "norm").replace("head.fc", "head")
        if ".downsample." in key:
            stage, rest = key.removeprefix("stages.").split(".downsample.")
            key = f"downsample_layers.{stage}.{rest}"
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        if "grn" in key or "pwconv" in key and value.ndim == 4:
            value = value.flatten(1)
        theirs[key] = value
    torch.save(theirs, tmp_path / "convnext.pth")
    loaded = method("convnext_femto", tmp_path / "convnext.pth")
    net = loaded.new("frozen_batch")
    loaded.load(net)
    assert all(torch.equal(value, tensors[key.removeprefix("net.")]) for key, value in net.state_dict().items())


def test_files_of_another_network_are_refused_with_names(tmp_path):
    torch.save(original("resnet34"), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other.pth: the \d+ tensors are not those of resnet18: .*Unexpected key.*layer1.2.conv1.weight"):
        method("resnet18", tmp_path / "other.pth").load(method("resnet18").new("frozen_batch"))
    with pytest.raises(WeightsError, match="are not those of convnext_femto: it has other names. Choose the backbone"):
        method("convnext_femto", tmp_path / "other.pth").load(method("convnext_femto").new("frozen_batch"))
    assert str(method("resnet18", tmp_path / "other.pth")) == f"resnet18 from {tmp_path}/other.pth"
    tensors = original("deit_tiny_patch16_224")
    torch.save({key: value for key, value in tensors.items() if "blocks.3" not in key}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="Missing key.*blocks.3.norm1.weight"):
        method("deit_tiny_patch16_224", tmp_path / "part.pth").load(method("deit_tiny_patch16_224").new("frozen_batch"))
    with pytest.raises(WeightsError, match="ImageNet weights of resnet18 come with batch norm"):
        method("resnet18", tmp_path / "other.pth").load(method("resnet18").new("group"))


def test_vgg16_has_torchvisions_layers_and_file(tmp_path, monkeypatch):
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(weights=None)
    drawn = {key: torch.randn(value.shape) * 0.01 for key, value in theirs.features.state_dict().items()}
    torch.save({**{f"features.{key}": value for key, value in drawn.items()}, "classifier.0.bias": torch.zeros(2)}, tmp_path / "vgg.pth")
    loaded = method("vgg16", tmp_path / "vgg.pth")
    net, x = loaded.new("frozen_batch").eval(), image()
    loaded.load(net)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    layers.load_state_dict(drawn)
    with torch.no_grad():
        torch.testing.assert_close(net(x), layers[:30](x))   # even sides: torchvision's grids
    assert method("vgg16", pretrained=True).digest() == "vgg16-397923af.pth"
    assert torchvision.models.VGG16_Weights.IMAGENET1K_V1.url.endswith("/vgg16-397923af.pth")


def test_vgg16_starts_with_torchvisions_initialiser():
    net = backbone("vgg16")
    for layer in (net.layers[0], net.layers[10]):
        assert not layer.bias.any()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * layer.out_channels)), rel=0.05)   # fan out


def test_what_identifies_and_provides_published_weights(monkeypatch, tmp_path):
    deit = method("deit_tiny_patch16_224", pretrained=True)
    assert deit.digest() == "deit_tiny_patch16_224.fb_in1k" and str(deit) == "deit_tiny_patch16_224 from ImageNet weights"
    assert method("vit_small_patch14_dinov2.lvd142m", pretrained=True).digest() == "vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(ConfigError, match="timm has no ImageNet weights of backbone.network=test_vit4: set backbone.pretrained=false"):
        method("test_vit4", pretrained=True).digest()
    missing = method("deit_tiny_patch16_224", tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="Set it to a weights file of deit_tiny_patch16_224 by timm or"):
        missing.digest()

    files = {}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name, revision: files.get((repository, name)))
    assert not deit.at_hand()
    files["timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors"] = "/somewhere"
    assert deit.at_hand()


def test_without_a_network_the_message_names_the_file_and_the_alternatives(monkeypatch):
    asked = []

    def offline(url, timeout):
        asked.append(url)
        raise OSError("no route to host")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    deit = method("deit_tiny_patch16_224", pretrained=True)
    with pytest.raises(WeightsError, match="cannot download the ImageNet weights of deit_tiny_patch16_224.fb_in1k: no route to host. On a machine "
                       "with .* download model.safetensors of https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k, copy it .* "
                       "backbone.weights=FILE; .* or use backbone=tf_efficientnet_lite0"):
        deit.load(deit.new())
    assert [url.rpartition("/")[2] for url in asked] == ["model.safetensors"]   # once, without the retries of timm's download


def test_downloaded_weights_are_loaded(monkeypatch):
    create, tensors = timm.create_model, original("deit_tiny_patch16_224")

    def download(name, pretrained=False, pretrained_cfg_overlay=None, **more):
        if pretrained and pretrained_cfg_overlay is None:
            pretrained_cfg_overlay = {"state_dict": tensors}
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=pretrained_cfg_overlay, **more)
    def without_safetensors(url, timeout):
        raise LocalEntryNotFoundError("no such file")   # timm then looks for the other name
    monkeypatch.setattr(timm, "create_model", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", without_safetensors)
    deit = method("deit_tiny_patch16_224", pretrained=True)
    net = deit.new()
    deit.load(net)
    assert all(torch.equal(value, tensors[key.removeprefix("net.")]) for key, value in net.state_dict().items())


# ---- IRN

@pytest.mark.parametrize("name", FAST)
def test_irn_on_any_of_them(name):
    irn = IRN(method(name).new("frozen_batch")).train()
    edge, displacement = irn(image(45, 77, batch=2))
    assert edge.shape == (2, 1, 12, 20) and displacement.shape == (2, 2, 12, 20)
    (edge.mean() + displacement.square().mean()).backward()
    branches = [parameter for group in irn.parameter_groups() for parameter in group]
    assert all(parameter.grad is not None for parameter in branches)
    assert len([key for key, _ in irn.named_children() if key.startswith("fc_edge")]) == len(irn.backbone.strides) + 1
    for pad_to in (0, 64):
        edge = irn.eval().edge_map(image(31, 46, batch=2), pad_to)
        assert edge.shape == (1, 8, 12) and 0 < edge.min() and edge.max() < 1


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_irn_has_the_numbers_of_torchs_upsampling(name):
    """As in the official network: bilinear by a whole factor, cropped to the grid of the finest stage."""
    irn, x = IRN(method(name).new("frozen_batch")).eval(), image(45, 77, batch=2)

    def branch(kind, number, x, factor):
        conv, norm, *_ = irn.get_submodule(f"fc_{kind}{number}")
        x = norm(conv(x))
        return (torch.nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)(x) if factor > 1 else x).relu()
    with torch.no_grad():
        edge, displacement = irn(x)
        stages, strides = irn.backbone.stages(x), irn.backbone.strides
        edges = [branch("edge", i + 1, stage, stride // 4)[..., :12, :20] for i, (stage, stride) in enumerate(zip(stages, strides))]
        assert torch.equal(edge, irn.fc_edge6(torch.cat(edges, 1)))
        parts = [branch("dp", i + 1, stage, max(1, stride // 8)) for i, (stage, stride) in enumerate(zip(stages, strides))]
        coarse = branch("dp", 6, torch.cat([part[..., :6, :10] for part in parts[1:]], 1), 2)[..., :12, :20]
        assert torch.equal(displacement, irn.fc_dp7(torch.cat([parts[0], coarse], 1)))


@pytest.mark.parametrize("factor", [Fraction(2), Fraction(7, 2), Fraction(7, 4), Fraction(7, 8), Fraction(8)])
def test_a_resize_by_the_stride_itself(factor):
    """A cell (i) of the result lies at (i + 0.5) / factor - 0.5, whatever the number of cells."""
    h, w = 3, 5
    cells = torch.arange(float(w)).expand(1, 1, h, w)
    out = resized(cells, factor)
    assert out.shape == (1, 1, math.ceil(factor * h), math.ceil(factor * w))
    expected = ((torch.arange(out.shape[3]) + 0.5) / float(factor) - 0.5).clamp(0, w - 1)
    torch.testing.assert_close(out[0, 0], expected.expand_as(out[0, 0]))


@pytest.mark.parametrize("strides", [(16,), (4, 4), (4, 4, 4, 4, 8), (4, 16, 8), (2, 4, 8), (4, 8, 16, 16, 32, 32)])
def test_irn_refuses_stages_on_which_it_cannot_stand(strides):
    net = StagedBackbone([torch.nn.Identity()] * len(strides), (8,) * len(strides), strides, backbone("resnet18").normalisation)
    with pytest.raises(ArgumentError, match=f"the backbone has stages of stride {', '.join(map(str, strides))}; expected two to five"):
        IRN(net)
