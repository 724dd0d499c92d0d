"""The export to ONNX: pooling of any size, the second exporter, and networks that no file can hold."""

import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.networks import new_backbone
from wsss.errors import ConfigError
from wsss.resize import resize
from wsss.segmenters import to_onnx
from wsss.segmenters.deeplab_v2 import DeepLabV2
from wsss.segmenters.fpn import FPN
from wsss.segmenters.smp import SMP
from wsss.segmenters.to_onnx import adaptive_pool, export_onnx
from wsss.segmenters.upernet import UPerNet

onnx = pytest.mark.skipif(not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
                          reason='pip install -e ".[onnx]"')


class Pyramid(nn.Module):
    """A network with the pyramid pooling of PSPNet and UperNet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(bins) for bins in (1, 2, 3, 6))
        self.head = nn.Conv2d(40, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([x, *(resize(pool(x), x.shape[2:]) for pool in self.pools)], 1))


class Fixed(nn.Module):
    """A network that takes the size of its input for a number."""

    def forward(self, x):
        return torch.cat([x, x[:, :1] * float(int(x.shape[2]) % 7)], 1)


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 40, (3, 5), (None, 4), (2, None)])
def test_adaptive_pooling_is_that_of_torch(bins):
    x = torch.randn(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adaptive_pool(x, bins), F.adaptive_avg_pool2d(x, bins))


def deeplab():
    return DeepLabV2(rates=[1, 2], scales=[0.5, 0.75], loss="balanced").new(new_backbone("tiny"), 4, seed=1)


def upernet():
    return UPerNet(width=8, auxiliary_width=8, auxiliary_weight=0.4, dropout=0.1, swin=False).new(new_backbone("tiny"), 4, seed=1)


def unet():
    pytest.importorskip("segmentation_models_pytorch", exc_type=ImportError)
    return SMP(architecture="unet").new(new_backbone("tiny"), 4, seed=1)


@onnx
@pytest.mark.parametrize("network", [Pyramid, lambda: FPN(width=16).new(new_backbone("tf_efficientnet_lite0", "frozen_batch"), 4, seed=1),
                                     deeplab, upernet, unet], ids=["pyramid pooling", "same padding", "scales", "upernet", "padded"])
def test_networks_whose_layers_depend_on_the_size_are_exported(network, tmp_path):
    import onnx
    facts = export_onnx(network().eval(), tmp_path / "net.onnx", {"labels": "[1, 2]"})
    assert facts["largest_difference"] < 1e-5 and len(facts["checked"]) == 5
    model = onnx.load(tmp_path / "net.onnx")
    assert {each.key: each.value for each in model.metadata_props} == {"labels": "[1, 2]"}
    sides = [[side.dim_param or side.dim_value for side in each.type.tensor_type.shape.dim] for each in (*model.graph.input, *model.graph.output)]
    assert sides[0] == ["batch", 3, "height", "width"]


@onnx
def test_the_second_exporter_takes_what_tracing_does_not(tmp_path, monkeypatch, capfd):
    def gone(module, path):
        os.write(1, b"a graph")   # as C++ does
        raise TypeError("this exporter is gone")
    monkeypatch.setattr(to_onnx, "_by_tracing", gone)
    facts = export_onnx(Pyramid().eval(), tmp_path / "net.onnx", {})
    assert facts["exporter"] == "by torch export" and facts["largest_difference"] < 1e-5
    assert "a graph" not in capfd.readouterr().out


@onnx
def test_a_network_for_one_size_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be exported to ONNX for images of any size \(by tracing: the results differ by .*; by torch export: "):
        export_onnx(Fixed().eval(), tmp_path / "net.onnx", {})
