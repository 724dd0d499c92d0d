"""Classifiers of torchvision and timm, trained by other programs, as train_cam.weights."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from pipeline.config import compose, typed
from steps.runtime.context import methods_of
from steps.runtime.imported_networks import imported_classifier
from wsss.data.dataset import Dataset
from wsss.errors import WeightsError

DATASET = Dataset(name="mine", root=Path("photos"), classes=("a", "b", "c"), lists={"train": (), "val": (), "all": ()}, labels={}, image_files={})


def read(path, *overrides: str):
    methods = methods_of(typed(compose(overrides)), "train_cam")
    return imported_classifier(str(path), f"train_cam.weights={path.name}", methods, DATASET)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).eval()


@pytest.mark.parametrize("form", ["plain", "checkpoint", "parallel", "compiled", "lightning"])
def test_a_resnet_of_torchvision_gives_the_same_maps(resnet18, form, tmp_path):
    state = resnet18.state_dict()
    content = {"plain": state, "checkpoint": {"epoch": 3, "model_state_dict": state},
               "parallel": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
               "compiled": {f"_orig_mod.{name}": value for name, value in state.items()},
               "lightning": {"state_dict": {f"model.{'backbone.' * (not name.startswith('fc'))}{name}": value for name, value in state.items()}}}
    torch.save(content[form], tmp_path / "mine.pth")
    net, notes = read(tmp_path / "mine.pth", "backbone=resnet18")
    assert len(notes) == 1 and notes[0].startswith("the bias of its head (at most 0.0")
    assert torch.equal(net.class_weights(), resnet18.fc.weight)
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        for block in resnet18.layer4:   # at the stride of the backbone
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                    layer.stride = (1, 1)
        torch.testing.assert_close(net.eval()(x) + resnet18.fc.bias, resnet18(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifier_with_bias_keeps_that_of_the_file(bias, tmp_path):
    source = torchvision.models.resnet18(num_classes=3)
    source.fc = nn.Linear(512, 3, bias=bias)
    torch.save(source.state_dict(), tmp_path / "mine.pth")
    if not bias:
        with pytest.raises(WeightsError, match="classifier.bias"):
            read(tmp_path / "mine.pth", "backbone=resnet18", "classifier=gap")
        return
    net, notes = read(tmp_path / "mine.pth", "backbone=resnet18", "classifier=gap")
    assert notes == [] and torch.equal(net.classifier.bias, source.fc.bias) and torch.equal(net.class_weights(), source.fc.weight)


def test_a_network_of_timm(tmp_path):
    net = timm.create_model("resnet10t", num_classes=3).eval()
    torch.save({"model": net.state_dict()}, tmp_path / "t.pth")
    ours, _ = read(tmp_path / "t.pth", "backbone=timm", "backbone.network=resnet10t", "backbone.output_stride=32", "backbone.pretrained=false")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x) + net.fc.bias, net(x), rtol=1e-4, atol=1e-5)


def test_a_class_token_is_told(tmp_path):
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "v.pth")
    _, notes = read(tmp_path / "v.pth", "backbone=timm", f"backbone.network={name}", "backbone.pretrained=false")
    assert any(note.startswith("it classified by its class token") for note in notes)


@pytest.mark.parametrize(("name", "classes", "message"), [
    ("resnet34", 3, "is the state dict of resnet34, and cannot be read as|does not fit the network"),
    ("resnet50", 3, r"mine.pth is the state dict of resnet50; backbone resnet18 needs .* \(3, 512\).*fc.weight \(3, 2048\). Set backbone=resnet50$"),
    ("resnet18", 5, r"the file has fc.weight \(5, 512\). Use it with a data set of its 5 classes, in its order$"),
    ("densenet121", 3, "is the state dict of a DenseNet of torchvision; backbone"),
    ("alexnet", 3, r"is the state dict of a VGG or AlexNet .*classifier.1.weight \(4096, 9216\), ")])
def test_another_network_is_told_by_what_it_is(name, classes, message, tmp_path):
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(num_classes=classes)
    torch.save({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in net.state_dict().items()}, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=message):
        read(tmp_path / "mine.pth", "backbone=resnet18")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('run')",)


def test_a_pickled_model_is_called_so_and_not_run(resnet18, tmp_path):
    torch.save(resnet18, tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"holds a whole pickled model or other Python objects \(torchvision.models.resnet.ResNet\).*torch.save\(model.state_dict\(\), FILE\)"):
        read(tmp_path / "whole.pth", "backbone=resnet18")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(WeightsError, match="damaged or not a weights file|pickled model"):
        read(tmp_path / "evil.pth", "backbone=resnet18")
