"""MCTformer against a plain re-statement of the official files in float64, operation by operation."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm, multilabel_soft_margin_loss

from tests.networks import new_backbone, new_classifier
from wsss.cams.legrad import LeGrad
from wsss.cams.maps import pack, rebuild
from wsss.cams.mctformer import MCTformerMaps
from wsss.cams.method import image_pairs, multi_scale_maps
from wsss.cams.occlusion import Occlusion
from wsss.classifiers.classifier import linear_weights, prototype_weights
from wsss.classifiers.mctformer import MCTformer
from wsss.errors import ConfigError

CLASSES, HEADS, DEPTH = 3, 2, 6
VIT = "test_vit"   # 64-d, 6 blocks, 2 heads, patches of 16; positions on 10 x 10 cells


def network(cell_head=True, name=VIT):
    net = MCTformer(cell_head).new(new_backbone(name, "frozen_batch"), CLASSES, seed=3).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():   # else all tokens of classes are the same, and the attention nearly uniform
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net.double()


def plain_forward(state, x):
    """models.py, MCTformerV2.forward_features with vision_transformer.py, Block and Attention: no norm after the last block."""
    def linear(values, name):
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    net, count, width = "backbone.net.", state["tokens"].shape[1], state["tokens"].shape[2]
    patches = conv2d(x, state[net + "patch_embed.proj.weight"], state[net + "patch_embed.proj.bias"], stride=16)
    h, w = patches.shape[2:]
    table = state[net + "pos_embed"][:, 1:]
    side = math.isqrt(table.shape[1])
    if (h, w) != (side, side):   # interpolate_pos_encoding
        table = interpolate(table.reshape(1, side, side, width).permute(0, 3, 1, 2), mode="bicubic",
                            scale_factor=((h + 0.1) / side, (w + 0.1) / side)).permute(0, 2, 3, 1).reshape(1, h * w, width)
    positions = torch.cat([state["positions"], table], dim=1)
    tokens = torch.cat([state["tokens"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1) + positions
    weights = []
    for i in range(DEPTH):
        block = f"{net}blocks.{i}."
        norm = [layer_norm(tokens, [width], state[f"{block}norm1.weight"], state[f"{block}norm1.bias"], 1e-6)]
        b, n, _ = tokens.shape
        q, k, v = linear(norm[0], f"{block}attn.qkv").reshape(b, n, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(-1)
        weights.append(attention)
        tokens = tokens + linear((attention @ v).transpose(1, 2).reshape(b, n, width), f"{block}attn.proj")
        inner = layer_norm(tokens, [width], state[f"{block}norm2.weight"], state[f"{block}norm2.bias"], 1e-6)
        tokens = tokens + linear(gelu(linear(inner, f"{block}mlp.fc1")), f"{block}mlp.fc2")
    return tokens[:, :count], tokens[:, count:].permute(0, 2, 1).reshape(len(x), width, h, w), torch.stack(weights).mean(2)


def plain_maps(state, x, last, given=None, refine=True):
    """models.py, forward(return_att=True), and engine.py, generate_attention_maps_ms, of one image without its resizing: V2 if there
    is a convolution, with the maps `given` in place of its own."""
    _, features, attention = plain_forward(state, x)
    n, count, (h, w) = len(x), CLASSES, features.shape[2:]
    maps = attention[-last:].sum(0)[:, :count, count:].reshape(n, count, h, w)
    if given is not None:
        maps = maps * given
    elif "cells.weight" in state:
        maps = maps * torch.relu(conv2d(features, state["cells.weight"], state["cells.bias"], padding=1))
    if not refine:
        return maps
    patch = attention[:, :, count:, count:].sum(0)   # (B, hw, hw)
    return torch.matmul(patch.unsqueeze(1), maps.reshape(n, count, -1, 1)).reshape(n, count, h, w)


@pytest.mark.parametrize("size", [(160, 160), (48, 80)])
@pytest.mark.parametrize("cell_head", [True, False])
def test_forward_losses_and_gradients(cell_head, size):
    net, labels = network(cell_head), torch.tensor([[1, 0, 1], [0, 0, 0.]], dtype=torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    state = {**net.state_dict(), **parameters}
    tokens, features, _ = plain_forward(state, x)
    torch.testing.assert_close(net(x), tokens.mean(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(net.features(x), features, rtol=0, atol=1e-6)
    wanted = multilabel_soft_margin_loss(tokens.mean(-1), labels)   # engine.py, train_one_epoch
    if cell_head:
        logits = conv2d(features, state["cells.weight"], state["cells.bias"], padding=1).mean((2, 3))
        wanted = wanted + multilabel_soft_margin_loss(logits, labels)
    losses = MCTformer(cell_head).losses(net, x, labels)
    torch.testing.assert_close(losses["loss"].double(), wanted, rtol=0, atol=1e-6)   # `losses` are computed in float32
    assert set(losses) == ({"loss", "class_tokens", "cells"} if cell_head else {"loss"})
    ours, theirs = (torch.autograd.grad(loss, list(parameters.values())) for loss in (losses["loss"], wanted))
    for name, one, other in zip(parameters, ours, theirs, strict=True):   # all parameters that are trained have one
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
    assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == {
        "backbone.net.cls_token", "backbone.net.norm.weight", "backbone.net.norm.bias"}


def test_tokens_start_as_copies_of_the_class_token_and_its_position():
    backbone = new_backbone(VIT, "frozen_batch", seed=5)
    net = MCTformer(True).new(backbone, CLASSES)
    for ours, theirs in ((net.tokens, backbone.net.cls_token), (net.positions, backbone.net.pos_embed[:, :1])):
        assert ours.shape == (1, CLASSES, 64) and torch.equal(ours, theirs.expand_as(ours))


@pytest.mark.parametrize("cell_head", [True, False])
@pytest.mark.parametrize(("last", "refine"), [(3, True), (6, False)])
def test_maps(cell_head, last, refine):
    net = network(cell_head)
    pair = torch.randn(2, 3, 48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    maps = MCTformerMaps(last, refine).maps(net, net.features, pair, [2, 0])
    wanted = plain_maps(net.state_dict(), pair, last, refine=refine)[:, [2, 0]]
    assert maps.shape == (2, 2, 3, 4) and not torch.allclose(wanted[:, 0], wanted[:, 1], rtol=0.05)
    torch.testing.assert_close(maps.double(), wanted, rtol=1e-5, atol=1e-6)   # attention is summed in float32
    assert MCTformerMaps(last, refine).maps(net, net.features, pair, []).shape == (2, 0, 3, 4)


def test_maps_of_an_image_are_those_of_the_official_files():
    """engine.py, generate_attention_maps_ms: the sum of the resized maps over scales and mirror images, by least and greatest."""
    net, image = network().float(), np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    method = MCTformerMaps(3, True)
    grids = multi_scale_maps(method, net, net.features, image, [1, 2], [1.0, 2.0], normalisation=net.backbone.normalisation)
    packed, _ = pack(grids)
    ours = rebuild(packed, 48, 80, [each.shape[1:] for each in grids], "full", pad=16, merge=method.merge)
    total = torch.zeros(2, 48, 80, dtype=torch.float64)
    for pair in image_pairs(image, [1.0, 2.0], normalisation=net.backbone.normalisation):
        state = network().state_dict()
        resized = interpolate(plain_maps(state, pair.double(), 3)[:, [1, 2]], size=(48, 80), mode="bilinear", align_corners=False)
        total += resized[0] + resized[1].flip(-1)
    least, greatest = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    torch.testing.assert_close(ours.double(), (total - least) / (greatest - least + 1e-8), rtol=0, atol=4e-3)   # float16


def test_maps_after_lpcam_are_its_maps_in_place_of_the_convolution():
    net, classes = network(), [1, 0, 1, 0]   # as make_lpcam: LPCAM-F and LPCAM of the two classes
    pair = torch.randn(1, 3, 48, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pair = torch.cat([pair, pair.flip(-1)])
    given = torch.rand(4, 3, 4, dtype=torch.float64)
    ours = MCTformerMaps(3, True).refined(net, pair, given, classes)
    for start in (0, 2):
        by_class = torch.zeros(2, CLASSES, 3, 4, dtype=torch.float64)
        by_class[0, [1, 0]], by_class[1, [1, 0]] = given[start:start + 2], given[start:start + 2].flip(-1)
        wanted = plain_maps(net.state_dict(), pair, 3, by_class)
        torch.testing.assert_close(ours[start:start + 2].double(), (wanted[0] + wanted[1].flip(-1))[[1, 0]],
                                   rtol=1e-5, atol=1e-6)


def test_weights_of_prototypes():
    """A region of equal features adds the sum of all taps to the logits of its middle."""
    net = network()
    feature = torch.randn(64, dtype=torch.float64)
    middle = net.cell_maps(feature[None, :, None, None].expand(1, -1, 5, 5))[0, :, 2, 2] - net.cells.bias
    torch.testing.assert_close(prototype_weights(net, "make_lpcam", "all") @ feature, middle)
    assert torch.equal(prototype_weights(net, "make_lpcam", "centre"), net.cells.weight[:, :, 1, 1])
    for taps in ("all", "centre"):
        with pytest.raises(ConfigError, match="make_lpcam needs a classifier that is linear in its features, ClassTokens is not"):
            prototype_weights(network(False), "make_lpcam", taps)
    with pytest.raises(ConfigError, match="CAM needs a classifier that is linear"):
        linear_weights(net, "CAM")


def test_what_decays():
    net = network()
    groups = MCTformer(True).groups(net, 2.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    found = [({names[id(each)] for each in parameters}, factor, decays) for parameters, factor, decays in groups]
    assert [(factor, decays) for _, factor, decays in found] == [(1.0, True), (1.0, False), (2.0, True), (2.0, False)]
    assert found[2][0] == {"cells.weight"} and found[3][0] == {"cells.bias", "tokens", "positions"}
    assert "backbone.net.pos_embed" in found[1][0] and "backbone.net.patch_embed.proj.weight" in found[0][0]
    assert all(net.get_parameter(name).ndim > 1 for name in found[0][0])
    assert sum(len(names) for names, *_ in found) == sum(parameter.requires_grad for parameter in net.parameters())


def test_attention_is_read_without_changing_the_network():
    net = network()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    before = net(x)
    hooks = [len(module._forward_hooks) for module in net.modules()]
    attended = net.attended(x, [0], 1)
    assert attended.of_cells.shape == (1, 4, 4) and attended.of_classes.shape == (1, 1, 4)
    assert torch.equal(net(x), before) and [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(block.attn.fused_attn for block in net.backbone.net.blocks)


def test_the_attention_of_one_block_at_a_time_is_counted_by_estimates():
    """`steps.runtime.needs` counts the outputs of modules, on torch's meta device."""
    with torch.device("meta"):
        net = MCTformer(True).new(new_backbone(VIT), CLASSES).eval()
        outputs = []
        for module in net.modules():
            module.register_forward_hook(lambda module, inputs, output: outputs.append(tuple(getattr(output, "shape", ()))))
        maps = MCTformerMaps(3, True).maps(net, net.features, torch.empty(2, 3, 160, 320), [0, 1])
    tokens = CLASSES + 10 * 20
    assert outputs.count((2, HEADS, tokens, tokens)) == DEPTH and maps.shape == (2, 2, 10, 20)


@pytest.mark.parametrize("name", ["tiny", "tf_efficientnet_lite0", "test_vit2"])
def test_other_backbones_are_refused(name):
    with torch.device("meta"):
        backbone = new_backbone(name)
    with pytest.raises(ConfigError, match=f"need a vision transformer of timm with one class token .* {name} is none"):
        MCTformer(True).new(backbone, CLASSES)


def test_methods_that_do_not_fit():
    net = network()
    with pytest.raises(ConfigError, match="MCTformer's maps need a network with a token for each class, LinearClassifier has none"):
        MCTformerMaps(3, True).check(new_classifier(new_backbone("tiny"), CLASSES))
    with pytest.raises(ConfigError, match="cam.last_blocks=7 is not possible: test_vit has 6 blocks, expected a number from 1 to 6"):
        MCTformerMaps(7, True).check(net)
    with pytest.raises(ConfigError, match="cam.last_blocks=0 is not possible: expected at least 1"):
        MCTformerMaps(0, True)
    for method in (LeGrad(0), Occlusion(16, 16, 4)):
        with pytest.raises(ConfigError, match="needs logits of the features, those of ClassAndCellTokens are of its class tokens"):
            method.check(net)
    with pytest.raises(ConfigError, match="needs logits of the features"):
        net.head(net.features(torch.zeros(1, 3, 32, 32, dtype=torch.float64)))
