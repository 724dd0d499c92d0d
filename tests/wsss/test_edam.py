"""EDAM against a plain re-statement of the official files, in float64, with a loop over the classes and modules of their own."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, normalize

from pipeline.config import compose, typed
from steps.runtime.learning_rate import poly_lr
from tests.networks import new_backbone
from wsss.cams.edam import EdamMasks
from wsss.cams.maps import pack, rebuild
from wsss.cams.method import image_pairs, multi_scale_maps
from wsss.classifiers.collaborative import ClassTransformers, positions
from wsss.classifiers.edam import EDAM
from wsss.errors import ConfigError

SIDE = 3


class Norm(nn.Module):
    """network/utils/layer_norm.py."""

    def __init__(self, size):
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.b_2


class Block(nn.Module):
    """network/transformer.py, without dropout: one class, one sequence (1, T, d)."""

    def __init__(self, size, heads, wide):
        super().__init__()
        self.heads = heads
        self.linear_layers = nn.ModuleList(nn.Linear(size, size) for _ in range(3))
        self.output_linear, self.w_1, self.w_2 = nn.Linear(size, size), nn.Linear(size, wide), nn.Linear(wide, size)
        self.first, self.second = Norm(size), Norm(size)

    def attention(self, x):
        query, key, value = (layer(x).view(1, -1, self.heads, x.shape[2] // self.heads).transpose(1, 2)
                             for layer in self.linear_layers)
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(-1)
        return self.output_linear((weights @ value).transpose(1, 2).reshape(1, -1, x.shape[2]))

    def forward(self, x):
        x = x + self.attention(self.first(x))
        y = self.w_1(self.second(x))
        return x + self.w_2(0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y ** 3))))


def plain_blocks(stacked, heads):
    """The transformers of a network as one module for each class."""
    n_classes, wide, size = stacked.expand.weight.shape
    found = []
    for index in range(n_classes):
        block = Block(size, heads, wide).double()
        pairs = {stacked.query: block.linear_layers[0], stacked.key: block.linear_layers[1], stacked.value: block.linear_layers[2],
                 stacked.mix: block.output_linear, stacked.expand: block.w_1, stacked.shrink: block.w_2}
        for ours, theirs in pairs.items():
            theirs.weight.data, theirs.bias.data = ours.weight[index].detach().clone(), ours.bias[index].detach().clone()
        for ours, theirs in ((stacked.norm1, block.first), (stacked.norm2, block.second)):
            theirs.a_2.data, theirs.b_2.data = ours.weight[index].detach().clone(), ours.bias[index].detach().clone()
        found.append(block)
    return found


def plain_table(cells, size):
    """network/embedding/position.py: (cells, size)."""
    table, position = torch.zeros(cells, size, dtype=torch.float64), torch.arange(cells, dtype=torch.float64)[:, None]
    speeds = (torch.arange(0, size, 2, dtype=torch.float64) * -(math.log(10000.0) / size)).exp()
    table[:, 0::2], table[:, 1::2] = torch.sin(position * speeds), torch.cos(position * speeds)
    return table


def plain_masks(net, features):
    return torch.abs(normalize(net.mask_layer(features)))


def plain_logits(net, blocks, features):
    """network/resnet38_EDAM_cls.py, Net.forward, of the features (2, D, h, w) of a pair: logits (2, C)."""
    masks, x = plain_masks(net, features), net.reduction(features)
    (n, size, h, w), places = x.shape, plain_table(features.shape[2] * features.shape[3], x.shape[1])
    logits = []
    for index, block in enumerate(blocks):
        masked = (x * masks[:, index:index + 1]).permute(0, 2, 3, 1).reshape(n, h * w, size)
        sequence = torch.cat([masked[j] + places + net.segments[j] for j in range(n)])[None]      # 1, n h w, size
        pooled = block(sequence).view(n, h, w, size).permute(0, 3, 1, 2).mean((2, 3))
        logits.append(pooled @ net.outputs[index, 0])
    return torch.stack(logits, 1)


@pytest.fixture
def case():
    torch.manual_seed(0)
    method = EDAM(hidden=8, heads=2, feed_forward=12, dropout=0.1, side=SIDE)
    net = method.new(new_backbone("tiny", "frozen_batch"), 4, seed=3).double().eval()
    with torch.no_grad():
        for parameter in (net.transformers.norm1.bias, net.transformers.norm2.weight):   # else all classes have the same
            parameter.add_(torch.rand_like(parameter))
    stride = net.backbone.feature_stride
    images = torch.rand(3, 2, 3, SIDE * stride, SIDE * stride, dtype=torch.float64)      # three pairs
    labels = (torch.rand(3, 2, 4) < 0.4).double()
    return method, net, images, labels


def test_logits_loss_and_gradients_are_those_of_the_official_code(case):
    method, net, images, labels = case
    blocks = plain_blocks(net.transformers, 2)
    features = net.features(images.flatten(0, 1)).unflatten(0, (3, 2))
    wanted = torch.stack([plain_logits(net, blocks, pair) for pair in features])
    torch.testing.assert_close(net.collaborative_head(features), wanted, rtol=0, atol=1e-10)
    loss = method.losses(net, images, labels)["loss"]
    official = binary_cross_entropy_with_logits(wanted.flatten(), labels.flatten())
    torch.testing.assert_close(loss.double(), official, rtol=0, atol=1e-6)      # `losses` are computed in float32
    shared = [net.mask_layer.weight, net.reduction.weight, net.segments, net.outputs, net.backbone.layer4[0].conv1.weight]
    theirs = torch.autograd.grad(official, [*shared, *[block.w_1.weight for block in blocks]])
    ours = torch.autograd.grad(loss, [*shared, net.transformers.expand.weight])
    for mine, other in zip(ours, [*theirs[:5], torch.stack(theirs[5:])], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_one_image_alone_is_a_group_of_one(case):
    _, net, images, _ = case
    features = net.features(images[:, 0])
    wanted = torch.cat([plain_logits(net, plain_blocks(net.transformers, 2), each[None]) for each in features])
    torch.testing.assert_close(net(images[:, 0]), wanted, rtol=0, atol=1e-10)
    assert not torch.allclose(net.collaborative_head(features[None])[0], wanted)     # together they are seen otherwise


def test_masks(case):
    _, net, images, _ = case
    features = net.features(images[:, 0])
    masks = net.class_masks(features)
    torch.testing.assert_close(masks, plain_masks(net, features), rtol=0, atol=1e-12)
    torch.testing.assert_close((masks ** 2).sum(1), torch.ones_like(masks[:, 0]), rtol=0, atol=1e-9)
    assert net.class_weights() is None and masks.min() >= 0


def test_maps_are_those_of_the_official_code(case):
    """infer_cls.py: masks of each scale and its mirror image in the size of the image, summed, divided by the maximum."""
    net, image, scales = case[1].float(), np.random.default_rng(0).integers(0, 256, (41, 33, 3)).astype(np.uint8), (1.0, 0.5, 2.0)
    total = torch.zeros(5, 41, 33)
    for pair in image_pairs(image, scales):
        for number, each in enumerate(pair):
            masks = interpolate(plain_masks(net, net.features(each[None])), (41, 33), mode="bilinear", align_corners=False)[0]
            total += masks.flip(-1) if number else masks
    wanted = (total / total.amax((1, 2), keepdim=True))[[2, 0]]
    maps = multi_scale_maps(EdamMasks(), net, net.features, image, [2, 0], scales)
    stored = rebuild(pack(maps)[0], 41, 33, [each.shape[1:] for each in maps], "full", pad=1)
    torch.testing.assert_close(stored, wanted.detach(), rtol=0, atol=2e-3)   # stored in float16
    assert EdamMasks.exact_grids and multi_scale_maps(EdamMasks(), net, net.features, image, [], scales)[0].shape[0] == 0


def test_positions_are_the_official_table_and_go_with_the_place_on_other_grids():
    like = torch.empty(1, 8, dtype=torch.float64)
    torch.testing.assert_close(positions(4, 4, 4, like), plain_table(16, 8), rtol=0, atol=1e-12)
    fine, coarse = positions(9, 9, 3, like).view(9, 9, 8), plain_table(9, 8).view(3, 3, 8)
    torch.testing.assert_close(fine[1::3, 1::3], coarse, rtol=0, atol=1e-12)           # the centres of its cells
    assert positions(3, 7, 46, like).shape == (21, 8)


def test_dropout_is_drawn_in_training_only():
    blocks, tokens = ClassTransformers(2, 4, 2, 4, 0.5), torch.rand(2, 1, 5, 4)
    blocks.train()
    torch.manual_seed(1)
    first = blocks(tokens)
    torch.manual_seed(1)
    assert torch.equal(first, blocks(tokens)) and not torch.equal(first, blocks(tokens))
    assert torch.equal(blocks.eval()(tokens), blocks(tokens)) and (first == 0).any()


def test_learning_rates(case):
    method, net, _, _ = case
    (slow, one), (fast, ten) = method.groups(net, 10.0)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert (one, ten) == (1.0, 10.0)
    assert {names[id(each)] for each in fast} == {"mask_layer.weight", "reduction.weight", "outputs"}
    assert {"segments", "transformers.query.weight", "transformers.norm1.bias"} <= {names[id(each)] for each in slow}
    both = [id(each) for each in [*slow, *fast]]
    assert len(both) == len(set(both)) and set(both) == {id(each) for each in net.parameters() if each.requires_grad}


def test_a_partner_shares_a_class(case):
    method = case[0]
    labels = {"a": (0, 1), "b": (1,), "c": (2,), "d": (0,), "e": (), "f": (3,)}
    draw = np.random.default_rng(0)
    drawn = {image_id: {method.members(image_id, ("a", "c"), labels, draw) for _ in range(40)} for image_id in labels}
    assert drawn == {"a": {("a", "b"), ("a", "d")}, "b": {("b", "a")}, "d": {("d", "a")},
                     "c": {("c", "c")}, "e": {("e", "e")}, "f": {("f", "f")}}
    views = [(torch.full((3, 4, 4), value), torch.tensor([value, 1.0])) for value in (0.0, 1.0)]
    images, classes = method.mix(views, draw)
    assert images.shape == (2, 3, 4, 4) and images[1].eq(1).all() and classes.tolist() == [[0, 1], [1, 1]]


def test_the_schedule_is_that_of_the_official_optimiser():
    """tool/torchutils.py, PolyOptimizer: the factor of each step."""
    def official(step, warm_up_step=2000, max_step=33050):
        if step < warm_up_step:
            return 0.1 + (step / warm_up_step) * 0.9
        return (1 - (step - warm_up_step) / (max_step - warm_up_step)) ** 0.9
    train = typed(compose(["experiment=edam_voc12", "data.root=x"])).train_cam
    rate = poly_lr(train.power, train.warmup, start=train.warmup_start)
    for step in (0, 1, 1000, 1999, 2000, 2001, 17000, 33049):
        assert rate(step, train.steps) == pytest.approx(official(step), rel=1e-9)
    assert [round(factor * train.crop_size) for factor in train.resize_long] == [256, 512]


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("hidden", 7, "an even multiple of heads=2"), ("heads", 0, "at least 1"), ("dropout", 1.0, r"a share in \[0, 1\)"),
    ("side", 0, "at least 1"), ("feed_forward", 0, "at least 1")])
def test_impossible_settings(key, value, expected):
    settings = {"hidden": 8, "heads": 2, "feed_forward": 8, "dropout": 0.1, "side": 4, key: value}
    with pytest.raises(ConfigError, match=rf"classifier.{key}={value} is not possible: expected {expected}"):
        EDAM(**settings)
