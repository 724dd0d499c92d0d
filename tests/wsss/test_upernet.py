"""UPerNet against a plain form of mmsegmentation's forward pass, its sizes, losses, groups and presets."""

import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from pipeline import config
from steps.runtime.learning_rate import poly_lr
from steps.runtime.schedule import OptimizerName
from steps.runtime.training import make_optimizer
from tests.networks import new_backbone
from wsss.errors import ConfigError
from wsss.families import from_facts
from wsss.networks.backbones.method import rebuilt
from wsss.networks.folding import fold_batch_norm
from wsss.segmenters.upernet import UPerNet
from wsss.segmenters.upernet_layers import pool, pool_by_matrices

SWIN = "swin_tiny_patch4_window7_224"


def method(**changed) -> UPerNet:
    return UPerNet(**{"width": 12, "auxiliary_width": 8, "auxiliary_weight": 0.4, "dropout": 0.1, "swin": False, **changed})


def network(name: str = "tiny", n_labels: int = 4, **changed):
    """With batch norm that has statistics and scales of its own."""
    net = method(**changed).new(new_backbone(name), n_labels, seed=1)
    draws = torch.Generator().manual_seed(5)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_mean, -0.5), (layer.running_var, 0.5)):
                tensor.data.uniform_(low, low + 1, generator=draws)
    return net


@cache
def swin():
    """Do not change it."""
    return network(SWIN, swin=True).eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(net, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """UPerHead.forward and FCNHead.forward of mmsegmentation in evaluation mode, with functions of torch only."""
    state = net.state_dict()

    def convs(name: str, x: torch.Tensor, padding: int = 0) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=padding)
        mean, var, weight, bias = (state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, mean, var, weight, bias, eps=1e-5))

    def large(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
    inputs = list(net.backbone.stages(x)[-4:])
    if "norms.0.weight" in state:
        inputs = [F.layer_norm(each.movedim(1, 3), each.shape[1:2], state[f"norms.{i}.weight"], state[f"norms.{i}.bias"], 1e-5).movedim(3, 1)
                  for i, each in enumerate(inputs)]
    last = len(inputs) - 1
    laterals = [convs(f"head.lateral.{i}", inputs[i]) for i in range(last)]
    pyramid = [large(convs(f"head.pooled.{i}", F.adaptive_avg_pool2d(inputs[-1], side)), inputs[-1]) for i, side in enumerate((1, 2, 3, 6))]
    laterals.append(convs("head.bottleneck", torch.cat([inputs[-1], *pyramid], dim=1), 1))
    for i in range(last, 0, -1):
        laterals[i - 1] = laterals[i - 1] + large(laterals[i], laterals[i - 1])
    outs = [convs(f"head.smooth.{i}", laterals[i], 1) for i in range(last)] + [laterals[-1]]
    outs = [outs[0], *(large(each, outs[0]) for each in outs[1:])]
    fused = convs("head.fuse", torch.cat(outs, dim=1), 1)
    auxiliary = convs("auxiliary.0", inputs[max(last - 1, 0)], 1)
    return (F.conv2d(fused, state["head.classifier.1.weight"], state["head.classifier.1.bias"]),
            F.conv2d(auxiliary, state["auxiliary.2.weight"], state["auxiliary.2.bias"]))


@pytest.mark.parametrize(("name", "size"), [("tiny", (37, 53)), ("resnet18", (65, 33)), ("deit_tiny_patch16_224", (37, 50)), (SWIN, (65, 50))])
@torch.no_grad()
def test_both_heads_are_those_of_mmsegmentation(name, size):
    net = swin() if name == SWIN else network(name).eval()
    x = drawn(2, 3, *size)
    logits, auxiliary = net.both(x)
    expected, expected_auxiliary = plain(net, x)
    stages = net.backbone.stages(x)[-4:]
    assert logits.shape == (2, 4, *stages[0].shape[2:]) and auxiliary.shape == (2, 4, *stages[-2].shape[2:])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(auxiliary, expected_auxiliary, rtol=1e-5, atol=1e-5)
    assert torch.equal(net(x), logits)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (7, 16), (16, 5)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pooling_is_adaptive_average_pooling(size, side):
    x = drawn(2, 3, *size)
    torch.testing.assert_close(pool_by_matrices(x, side), F.adaptive_avg_pool2d(x, side))
    assert torch.equal(pool(x, side), F.adaptive_avg_pool2d(x, side)) and pool_by_matrices(x.bfloat16(), side).dtype == torch.bfloat16


@torch.no_grad()
def test_folded_heads_give_the_same_logits():
    net, x = network().eval(), drawn(1, 3, 37, 53)
    before = net(x)
    fold_batch_norm(net)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.head.modules())
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)


def test_the_network_has_the_size_in_the_papers():
    """60 M parameters with the 150 classes of ADE20K (Liu et al., Swin Transformer, table 3): the backbone, four norms, the heads."""
    with torch.device("meta"):
        net = UPerNet(512, 256, 0.4, 0.1, True).new(new_backbone(SWIN), 150)
    backbone = 28_288_354 - 769_000   # timm's number without the classifier
    head = 4 * (768 * 512 + 1024) + (9 * 2816 * 512 + 1024) + (672 * 512 + 3 * 1024) + 3 * (9 * 512 * 512 + 1024) + (9 * 2048 * 512 + 1024)
    last, auxiliary = 513 * 150 + 257 * 150, 9 * 384 * 256 + 512
    found = sum(parameter.numel() for parameter in net.parameters())
    assert found == backbone + 2 * (96 + 192 + 384 + 768) + head + last + auxiliary and round(found / 1e6) == 60
    assert net.backbone.layout.indices == (0, 1, 2, 3) and net.norms[3].normalized_shape == (768,)


def test_a_swin_transformer_of_mmsegmentation_shifts_windows_in_every_stage():
    shifts = [[block.shift_size for block in layer.blocks] for layer in swin().backbone.net.layers]
    assert shifts == [[(0, 0), (3, 3)] * n for n in (1, 1, 3, 1)]
    with torch.device("meta"):
        other = method().new(new_backbone(SWIN), 4)
    assert tuple(other.backbone.net.layers[3].blocks[1].shift_size) == (0, 0)
    assert not any(isinstance(norm, nn.LayerNorm) for norm in other.norms)


def test_the_loss_is_the_mean_over_all_pixels_of_the_batch_in_any_parts():
    net, images = network().eval(), drawn(5, 3, 32, 48)
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 3, 255], (5, 32, 48)).astype(np.uint8))
    with torch.no_grad():
        expected = []
        for logits in plain(net, images):
            large = F.interpolate(logits, (32, 48), mode="bilinear", align_corners=False).log_softmax(1)
            chosen = [large[i, int(labels[i, y, x]), y, x] for i in range(5) for y in range(32) for x in range(48) if labels[i, y, x] != 255]
            expected.append(-float(sum(chosen)) / (5 * 32 * 48))
        total = method().counts(labels)
        parts = [method().losses(net, images[part], labels[part], total) for part in (slice(0, 3), slice(3, 5))]
    found = {name: float(sum(part[name] for part in parts)) for name in parts[0]}
    assert total == 5 * 32 * 48 and list(found) == ["loss", "decode", "auxiliary"]
    assert [found["decode"], found["auxiliary"]] == pytest.approx(expected, rel=1e-4)
    assert found["loss"] == pytest.approx(expected[0] + 0.4 * expected[1], rel=1e-4)


def test_everything_is_trained_with_the_stem_and_norms_and_tables_do_not_decay():
    with torch.device("meta"):
        net = method(swin=True).new(new_backbone(SWIN, "frozen_batch"), 4)
    names, groups = {parameter: name for name, parameter in net.named_parameters()}, method().groups(net, 3.0)
    assert [group[1:] for group in groups] == [(1.0, True), (1.0, False), (3.0, True), (3.0, False)]
    assert sorted(names[parameter] for group in groups for parameter in group[0]) == sorted(names.values())
    kept = [[names[parameter] for parameter in groups[i][0]] for i in (1, 3)]
    assert {name.rpartition(".")[2] for name in kept[0]} == {"weight", "bias", "relative_position_bias_table"}
    assert all("norm" in name or name.endswith("relative_position_bias_table") for name in kept[0])
    assert len(kept[0]) == 2 * (2 * 12 + 1 + 3 + 1) + 12   # norms of the blocks, the patches, between the stages and at the end; tables
    assert {name for name in kept[1] if name.startswith("norms.")} == {f"norms.{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert len(kept[1]) == 2 * (4 + 13)                    # batch norms: 4 pooled, 3 + 3 of the pyramid, 3 others of the two heads


def test_adamw_with_warm_up_and_linear_decay_as_in_mmsegmentation():
    settings = SimpleNamespace(optimizer=OptimizerName.adamw, lr=6e-5, weight_decay=0.01)
    optimizer = make_optimizer(settings, *method().groups(network("resnet18"), 1.0))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0, 0.01, 0.0]
    assert all(group["betas"] == (0.9, 0.999) and group["lr"] == 6e-5 for group in optimizer.param_groups)
    rate = poly_lr(1.0, 0.0375, 1)
    for step, factor in ((0, 1 / 1500), (749, 0.5 * (1 - 749 / 40000)), (1499, 1 - 1499 / 40000), (20000, 0.5), (39999, 1 / 40000)):
        assert rate(step, 40000) == pytest.approx(factor, rel=1e-9)


@pytest.mark.parametrize(("key", "value", "expected"), [("width", 0, "at least 1"), ("auxiliary_width", 0, "at least 1"),
                                                        ("auxiliary_weight", -1.0, "0 or more"), ("dropout", 1.0, r"a share in \[0, 1\)")])
def test_impossible_settings_are_refused(key, value, expected):
    with pytest.raises(ConfigError, match=f"segmenter.{key}={value} is not possible: expected {expected}"):
        method(**{key: value})


PRESETS = [f"{size}{ending}" for size in ("tiny", "small", "base") for ending in ("", "_coco")]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_chooses_its_backbone_and_the_command_line_another(name):
    found = config.compose([f"segmenter=upernet_swin_{name}"])
    assert found.train_seg.backbone.network == f"swin_{name.removesuffix('_coco')}_patch4_window7_224.ms_in1k"
    assert found.train_seg.backbone.drop_path == 0.3 and found.segmenter.swin and found.backbone.network == "tf_efficientnet_lite0"
    assert round(found.train_seg.steps * found.train_seg.warmup) == 1500 and found.train_seg.steps == (80000 if "coco" in name else 40000)
    other = config.compose(["experiment=shapes_seg", f"segmenter=upernet_swin_{name}", "backbone@train_seg.backbone=tiny"])
    assert other.train_seg.backbone.depth == "tiny" and other.segmenter == found.segmenter


def test_an_experiment_chooses_a_preset_and_the_command_line_another(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ndefaults: [shapes_seg, override /segmenter: upernet_swin_tiny, _self_]\n")
    words = f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"
    found, light = config.compose(words), config.compose([*words, "segmenter=light"])
    assert found.train_seg.backbone.network == "swin_tiny_patch4_window7_224.ms_in1k" and found.train_seg.lr == 6e-5
    assert light.train_seg.backbone is None and light.train_seg.lr == 2e-4 and light.segmenter.method == "fpn"
    assert config.compose([*words, "backbone@train_seg.backbone=tiny"]).train_seg.backbone.depth == "tiny"


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vgg16_28", "tiny", "swin_base", "resnet50"])
def test_every_preset_of_a_backbone_can_be_that_of_a_step(name):
    found = config.compose(["backbone=resnet101", f"backbone@train_seg.backbone={name}"])
    assert found.train_seg.backbone == config.compose([f"backbone={name}"]).backbone and found.backbone.depth == "resnet101"


# Drop path of timm's networks.

def backbone_facts(**more) -> dict:
    return {"method": "timm", "network": SWIN, "output_stride": None, **more}


def test_paths_are_dropped_as_in_mmsegmentation():
    with torch.device("meta"):
        net = from_facts("backbone", backbone_facts(drop_path=0.3)).new()
    rates = [layer.drop_prob for layer in net.modules() if isinstance(layer, DropPath)]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(1, 12) for _ in range(2)], abs=1e-6)


def test_facts_name_the_drop_path_only_if_it_is_chosen():
    assert from_facts("backbone", backbone_facts()).facts == backbone_facts()
    chosen = from_facts("backbone", backbone_facts(drop_path=0.3))
    assert chosen.facts == backbone_facts(drop_path=0.3)
    with torch.device("meta"):
        again = rebuilt(chosen.new("frozen_batch").facts)
    assert again.facts == {**chosen.facts, "norm": "frozen_batch"} and math.isclose(again.net.layers[3].blocks[1].drop_path1.drop_prob, 0.3, rel_tol=1e-6)


def test_an_impossible_drop_path_is_refused():
    with pytest.raises(ConfigError, match=r"backbone.drop_path=1.0 is not possible: expected null or a share in \[0, 1\)"):
        from_facts("backbone", backbone_facts(drop_path=1.0))
    with pytest.raises(ConfigError, match="backbone.drop_path=0.1 is not possible: timm's vgg11 has no paths that can be dropped"):
        from_facts("backbone", {**backbone_facts(drop_path=0.1), "network": "vgg11"})
