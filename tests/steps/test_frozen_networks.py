"""Networks that are only used have their channels last and no batch norm; what they compute stays within rounding."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from steps.runtime.context import Runtime, Source, StepContext
from steps.runtime.networks import WEIGHTS, load_classifier, load_irn, new_irn
from steps.runtime.networks import new_classifier as new_classifier_of
from tests.networks import backbone_method, facts, new_backbone, new_classifier
from wsss.classifiers.classifier import Classifier
from wsss.classifiers.plain import Plain
from wsss.networks.backbones.resnet_layers import FrozenBatchNorm, ResNet
from wsss.networks.irn import IRN
from wsss.networks.weights import load_weights, save_weights


def trained(norm: str) -> ResNet:
    """A backbone whose batch norm, where it has one, is not that of the start."""
    backbone, draw = new_backbone("resnet18", norm), torch.Generator().manual_seed(1)
    for name, value in backbone.state_dict().items():
        if norm == "frozen_batch" and ("bn" in name or "downsample.1" in name) and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draw) + (0.5 if "var" in name or "weight" in name else -0.5))
    return backbone


@pytest.fixture(params=["group", "frozen_batch"])
def norm(request):
    return request.param


@pytest.fixture
def context(tmp_path, norm):
    for role, network in (("classifier", new_classifier(trained(norm), 3)), ("irn", IRN(trained(norm)))):
        (tmp_path / role).mkdir()
        save_weights(tmp_path / role / WEIGHTS, network, facts(network.backbone, 3))
    return StepContext("step", None, SimpleNamespace(classes=("a", "b", "c")), {}, tmp_path,
                       {role: (Source(role, folder=tmp_path / role),) for role in ("classifier", "irn")})


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the greatest value."""
    return float((one - other).abs().max() / one.abs().max())


def test_results_are_those_of_the_usual_layout_within_rounding(context, norm):
    images = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    plain = new_classifier(new_backbone("resnet18", norm), 3).eval()
    load_weights(context.input("classifier") / WEIGHTS, plain)
    classifier = load_classifier(context)
    assert not any(isinstance(module, FrozenBatchNorm) for module in classifier.modules())
    assert classifier.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert 0 <= difference(plain.features(images), classifier.features(images)) < 1e-5
    plain = IRN(new_backbone("resnet18", norm)).eval()
    load_weights(context.input("irn") / WEIGHTS, plain)
    with torch.inference_mode():
        assert difference(plain.edge_map(images), load_irn(context).edge_map(images)) < 1e-5


def test_early_layers_are_frozen_if_they_have_imagenet_weights(tmp_path):
    torch.save(new_backbone("tiny", "frozen_batch").state_dict(), tmp_path / "tiny.pth")
    frozen = {}
    for weights in (None, str(tmp_path / "tiny.pth")):
        methods = {"backbone": backbone_method("tiny", weights), "classifier": Plain(loss="soft_margin")}
        net = new_classifier_of(StepContext("step", SimpleNamespace(freeze_early=True), SimpleNamespace(classes=("a", "b")), {}, tmp_path,
                                            methods=methods))
        frozen[weights] = {name.split(".")[1] for name, value in net.named_parameters() if not value.requires_grad}
    assert list(frozen.values()) == [set(), {"conv1", "bn1", "layer1", "layer2"}]


def test_for_gradients_of_activations_the_weights_are_as_trained(context, norm):
    context = replace(context, runtime=Runtime(precision="float32"))
    trained, classifier = new_classifier(new_backbone("resnet18", norm), 3), load_classifier(context, gradients=True)
    load_weights(context.input("classifier") / WEIGHTS, trained)
    assert not classifier.training and not any(parameter.requires_grad for parameter in classifier.parameters())
    assert all(torch.equal(value, classifier.state_dict()[name]) for name, value in trained.state_dict().items())   # nothing is folded
    image = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classifier(image)[0, 0].backward()
    assert image.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in classifier.parameters())


def test_weights_cast_once_give_the_bits_of_weights_cast_in_every_call(context):
    images = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    for load, output in ((load_classifier, Classifier.features), (load_irn, IRN.edge_map)):
        uncast, cast = load(context), load(replace(context, runtime=Runtime(precision="bf16")))
        assert cast.backbone.layer1[0].conv1.weight.dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(output(uncast, images), output(cast, images))


def test_only_the_frozen_part_of_a_network_in_training_is_changed(context, norm):
    irn = new_irn(context)
    assert {name for name, _ in irn.backbone.named_buffers()} == {name for name, _ in trained(norm).named_buffers()}
    assert irn.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.is_contiguous() for name, parameter in irn.named_parameters() if name.startswith("fc_"))
    assert {name.split(".")[0][:3] for name, parameter in irn.named_parameters() if parameter.requires_grad} == {"fc_"}


def test_convolutions_standardise_their_weights_before_the_cast(tmp_path):
    """Those of timm's NFNets and BiT."""
    save_weights(tmp_path / WEIGHTS, network := new_classifier(new_backbone("test_nfnet"), 3), facts(network.backbone, 3))
    context = StepContext("step", None, SimpleNamespace(classes=("a", "b", "c")), {}, tmp_path,
                          {"classifier": (Source("classifier", folder=tmp_path),)})
    images = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    uncast, cast = load_classifier(context), load_classifier(replace(context, runtime=Runtime(precision="bf16")))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(uncast.features(images), cast.features(images))
