"""Networks that are only used have their channels last and no batch norm; what they compute stays within rounding."""

from types import SimpleNamespace

import pytest
import torch

from steps.runtime.networks import WEIGHTS, load_classifier, load_irn, new_irn
from wsss.classifiers.plain import Classifier
from wsss.networks.backbones.resnet import FrozenBatchNorm, ResNet, resnet
from wsss.networks.irn import IRN
from wsss.networks.weights import load_weights, save_weights


def trained(norm: str) -> ResNet:
    """A backbone whose batch norm, where it has one, is not that of the start."""
    backbone, draw = resnet("resnet18", norm), torch.Generator().manual_seed(1)
    for name, value in backbone.state_dict().items():
        if norm == "frozen_batch" and ("bn" in name or "downsample.1" in name) and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draw) + (0.5 if "var" in name or "weight" in name else -0.5))
    return backbone


@pytest.fixture(params=["group", "frozen_batch"])
def context(tmp_path, request):
    for step, network in (("train_cam", Classifier(trained(request.param), 3)), ("train_irn", IRN(trained(request.param)))):
        (tmp_path / step).mkdir()
        save_weights(tmp_path / step / WEIGHTS, network, {"backbone": "resnet18", "norm": request.param, "n_classes": 3})
    return SimpleNamespace(inputs={step: tmp_path / step for step in ("train_cam", "train_irn")}, device=torch.device("cpu"),
                           dataset=SimpleNamespace(classes=("a", "b", "c")), seed=0, norm=request.param,
                           precision="float32")


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative to the greatest value."""
    return float((one - other).abs().max() / one.abs().max())


def test_results_are_those_of_the_usual_layout_within_rounding(context):
    images = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    plain = Classifier(resnet("resnet18", context.norm), 3).eval()
    load_weights(context.inputs["train_cam"] / WEIGHTS, plain)
    classifier = load_classifier(context)
    assert not any(isinstance(module, FrozenBatchNorm) for module in classifier.modules())
    assert classifier.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert 0 <= difference(plain.features(images), classifier.features(images)) < 1e-5
    plain = IRN(resnet("resnet18", context.norm)).eval()
    load_weights(context.inputs["train_irn"] / WEIGHTS, plain)
    with torch.inference_mode():
        assert difference(plain.edge_map(images), load_irn(context).edge_map(images)) < 1e-5


def test_weights_cast_once_give_the_bits_of_weights_cast_in_every_call(context):
    images = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    for load, output in ((load_classifier, Classifier.features), (load_irn, IRN.edge_map)):
        context.runtime.precision = "float32"
        uncast = load(context)
        context.runtime.precision = "bf16"
        cast = load(context)
        assert cast.backbone.layer1[0].conv1.weight.dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(output(uncast, images), output(cast, images))


def test_only_the_frozen_part_of_a_network_in_training_is_changed(context):
    irn = new_irn(context)
    assert {name for name, _ in irn.backbone.named_buffers()} == {name for name, _ in trained(context.norm).named_buffers()}
    assert irn.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.is_contiguous() for name, parameter in irn.named_parameters() if name.startswith("fc_"))
    assert {name.split(".")[0][:3] for name, parameter in irn.named_parameters() if parameter.requires_grad} == {"fc_"}
