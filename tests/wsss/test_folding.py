"""Batch norm is taken into the convolution before it where, by the flow of data, nothing else reads what that makes."""

import copy

import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.models.densenet import DenseNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tests.networks import new_backbone
from wsss.networks.folding import fold_batch_norm


class PreActivation(nn.Module):
    """Norm, ReLU, convolution, with a shortcut from before the norm. In the order of definition `norm2` comes after `conv1`."""

    def __init__(self, shortcut: bool = True):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm3, self.shortcut = nn.BatchNorm2d(4), shortcut

    def forward(self, x):
        x = self.stem(x)
        y = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        y += x if self.shortcut else 0
        return self.norm3(y)


class Returned(PreActivation):
    def forward(self, x):
        x = self.stem(x)
        return x, self.norm1(x)


class Reused(PreActivation):
    def forward(self, x):
        return self.norm1(self.stem(x)) + self.norm2(self.stem(x + 1))


def with_statistics(network: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=draw) + (0.5 if name.endswith("var") else -0.5))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(("network", "left"), [(PreActivation(), ["norm1", "norm3"]), (PreActivation(False), ["norm3"]),
                                               (Returned(), ["norm1", "norm2", "norm3"]), (Reused(), ["norm1", "norm2", "norm3"])])
def test_what_can_be_folded_by_the_flow_of_data(network, left):
    network, x = with_statistics(network), torch.rand(2, 3, 20, 30)
    key = f"{network}{left}"
    folded, again = fold_batch_norm(copy.deepcopy(network), key), fold_batch_norm(copy.deepcopy(network), key)   # without a probe
    torch.testing.assert_close(folded(x), again(x), rtol=0, atol=0)
    assert [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)] == left
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "tf_efficientnet_lite0"])
def test_our_backbones_fold_all_theirs(name):
    """In them each convolution is followed by its batch norm in the order of definition too: the same bits."""
    network = with_statistics(new_backbone(name, "frozen_batch"))
    convolutions, norms = ([module for module in network.modules() if isinstance(module, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    folded, x = fold_batch_norm(copy.deepcopy(network)), torch.rand(1, 3, 64, 64)
    now = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) and len(now) == len(norms)
    for conv, norm, one in zip(convolutions, norms, now):
        assert torch.equal(fuse_conv_bn_eval(conv, norm).weight, one.weight)
    before = network(x)
    assert 0 < (folded(x) - before).abs().max() < 1e-5 * before.abs().max()


def dense() -> nn.Module:
    """A pre-activation network of timm with batch norm."""
    return DenseNet(growth_rate=8, block_config=(2, 2), num_classes=0)


@pytest.mark.parametrize(("build", "left"), [(lambda: timm.create_model("resnet18", num_classes=0), 0), (dense, 6),
                                             (lambda: timm.create_model("vgg11_bn", num_classes=0).features, 0)])
def test_networks_of_timm_fold(build, left):
    """In the pre-activation network the norms of what is concatenated stay: the first of each layer, of the transition and of the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = with_statistics(build())
    folded, x = fold_batch_norm(copy.deepcopy(network)), torch.rand(1, 3, 64, 96)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left
    before = network(x)
    assert 0 < (folded(x) - before).abs().max() < 1e-4 * before.abs().max()


def test_a_convolution_that_computes_its_weights_is_left_alone():
    network = with_statistics(nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    folded, x = fold_batch_norm(copy.deepcopy(network)), torch.rand(1, 3, 20, 20)
    assert [isinstance(module, nn.BatchNorm2d) for module in folded] == [False, True, False, False]
    torch.testing.assert_close(folded(x), network(x))
