"""Decoders of segmentation-models-pytorch on the project's backbones, against smp's own networks."""

import importlib.util
import re
from functools import cache

import pytest
import torch

from wsss.errors import BackendError, ConfigError
from wsss.families import from_facts
from wsss.networks.folding import fold_batch_norm
from wsss.segmenters.smp import ARCHITECTURES, PACKAGE, SMP

CONVNEXT, VIT = "test_convnext", "test_vit4"
needs_package = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="segmentation-models-pytorch is not installed")
STRIDE = {"deeplabv3": 16, "deeplabv3plus": 16}   # of the last stage; others: 32
ON_VIT = {"unet", "deeplabv3", "segformer", "dpt"}   # those that work with four stages of stride 16
EVEN = {"unet", "pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer", "dpt"}   # with stages of stride 4, 8, 16, 16


@cache
def backbone(name: str = CONVNEXT, stride: int | None = 32):
    return from_facts("backbone", {"method": "timm", "network": name, "output_stride": stride}).new("frozen_batch")


def network(architecture: str):
    return SMP(architecture).new(backbone(stride=STRIDE.get(architecture, 32)), 4, seed=1)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@needs_package
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_of_any_size_get_logits_of_that_size_and_every_layer_learns(architecture):
    net = network(architecture)
    assert net.training and net.facts == {"segmenter": {"method": "smp", "architecture": architecture}}
    for size in ((37, 50), (5, 7)):
        net.zero_grad()
        logits = net(drawn(2, 3, *size))
        assert logits.shape == (2, 4, *size)
        (logits * drawn(*logits.shape)).sum().backward()
    unused = {name for name, parameter in net.named_parameters() if parameter.grad is None and parameter.requires_grad}
    behind = r"backbone\.net\.(norm_pre|head)" + (r"|backbone\.net\.stages\.[23]" if architecture == "pspnet" else "")   # smp's reads two stages
    dpt = r"|decoder\.fusion_blocks\.0\.residual_conv_block1" if architecture == "dpt" else ""
    assert not [name for name in unused if not re.match(behind + dpt, name)]


@needs_package
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "dpt"])   # smp's has the class token
@torch.no_grad()
def test_the_network_is_that_of_smp_with_the_same_weights(architecture):
    import segmentation_models_pytorch as smp

    net, x = network(architecture).eval(), drawn(2, 3, 256, 288)
    own = smp.create_model(architecture, f"tu-{CONVNEXT}", None, classes=4, **({"encoder_output_stride": 16} if architecture in STRIDE else {}),
                           **({"encoder_output_stride": 32} if architecture == "pan" else {})).eval()
    names = {"backbone.net.": "encoder.model.", "decoder.": "decoder.", "head.": "segmentation_head."}
    state = {re.sub(rf"^{prefix}", new, name): value for name, value in net.state_dict().items() for prefix, new in names.items()
             if name.startswith(prefix)}
    state = {re.sub(r"\.(stem|stages)\.(\d)", r".\1_\2", name): value for name, value in state.items()}
    own.load_state_dict({name: state[name] for name in own.state_dict()})
    torch.testing.assert_close(net(x), own(x), rtol=1e-5, atol=1e-5)


@needs_package
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_folded_decoders_give_the_same_logits(architecture):
    net, x = network(architecture).eval(), drawn(1, 3, 37, 50)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5), layer.running_var.uniform_(0.5, 1.5)
    before = net(x)
    torch.testing.assert_close(fold_batch_norm(net)(x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


@needs_package
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("name", "stride", "works", "strides"), [(VIT, None, ON_VIT, "16, 16, 16, 16"), (CONVNEXT, 16, EVEN, "4, 8, 16, 16")])
def test_what_does_not_fit_the_stages_is_refused_when_it_is_built(architecture, name, stride, works, strides):
    state = torch.get_rng_state()
    if architecture in works:
        assert SMP(architecture).new(backbone(name, stride), 4).training
    else:
        with pytest.raises(ConfigError, match=f"segmenter.architecture={architecture} does not work with the stages of {name}, which have "
                                              f"strides {strides} .*Choose another architecture"):
            SMP(architecture).new(backbone(name, stride), 4)
    assert torch.equal(torch.get_rng_state(), state)


@needs_package
def test_equal_seeds_give_equal_networks_and_smp_has_no_further_encoder():
    import segmentation_models_pytorch as smp

    one, other = network("unet").state_dict(), network("unet").state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not [name for name in smp.encoders.encoders if name.startswith("wsss")]


@needs_package
def test_norms_of_the_decoder_do_not_decay():
    net = network("upernet")
    names, groups = {parameter: name for name, parameter in net.named_parameters()}, SMP("upernet").groups(net, 10.0)
    assert [group[1:] for group in groups] == [(1.0, True), (1.0, False), (10.0, True), (10.0, False)]
    assert {names[parameter] for parameter in groups[3][0]} == {
        name for name, parameter in net.named_parameters() if name.startswith("decoder.") and parameter.ndim == 1}
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert sum(len(group[0]) for group in groups) == len(trained)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"segmenter.architecture='unett' is no decoder.*unet.*: expected one of unet, unetplusplus, "):
        SMP("unett")


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="segmenter=smp needs the package segmentation-models-pytorch, which is not installed. Install it by "
                                           "pip install 'segmentation-models-pytorch>=0.6', or choose another segmenter"):
        SMP("unet").new(backbone(), 4)
