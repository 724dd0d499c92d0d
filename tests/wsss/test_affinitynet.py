"""AffinityNet against a plain re-statement of the official files, in float64, pair by pair."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.networks import new_backbone
from wsss.errors import ArgumentError
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.backbones.resnet38_layers import ResNet38
from wsss.refinement.affinity import pair_counts
from wsss.refinement.crf import DenseCRF
from wsss.refinement.feature_affinity import AT_ONCE, feature_affinity, feature_affinity_losses, pair_distances
from wsss.refinement.psa_label import background_scores, pooled_label, psa_label
from wsss.refinement.walk import affinity_walk
from wsss.refiners.method import SeedImage
from wsss.refiners.psa import PSA

RADIUS = 5
KERNELS = {"gaussian_sxy": 3.0, "gaussian_compat": 3.0, "bilateral_sxy": 80.0, "bilateral_srgb": 13.0, "bilateral_compat": 10.0}
SETTINGS = {"beta": 8.0, "exp_times": 4, "scale_steps": False, "radius": RADIUS, "all_pairs": False, "alpha": None}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(height, width, radius, all_pairs):
    """Source and destination of each pair (tool/pyutils.py, get_indices_of_pairs)."""
    reach = radius - 1
    directions = [(0, x) for x in range(1, radius)] + [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x * x + y * y < radius * radius]
    for (y, x), (dy, dx) in product(product(range(height), range(width)), directions):
        inside = y + dy < height and 0 <= x + dx < width
        if inside and (all_pairs or y < height - reach and reach <= x < width - reach):
            yield (y, x), (y + dy, x + dx)


def affinity_of(features, one, other):
    return math.exp(-(features[:, one[0], one[1]] - features[:, other[0], other[1]]).abs().mean())


def plain_loss(features, labels, radius, all_pairs):
    """train_aff.py and voc12/data.py, ExtractAffinityLabelInRadius."""
    sums, counts = dict.fromkeys(("bg", "fg", "neg"), 0.0), dict.fromkeys(("bg", "fg", "neg"), 1e-5)
    for image, label in zip(features, labels):
        for one, other in pairs(*label.shape, radius, all_pairs):
            a, b = int(label[one]), int(label[other])
            if 255 in (a, b):
                continue
            kind = "neg" if a != b else "fg" if a else "bg"
            affinity = affinity_of(image, one, other)
            sums[kind] -= math.log(affinity + 1e-5) if kind != "neg" else math.log(1 + 1e-5 - affinity)
            counts[kind] += 1
    means = {kind: sums[kind] / counts[kind] for kind in sums}
    return means["bg"] / 4 + means["fg"] / 4 + means["neg"] / 2


@pytest.mark.parametrize(("height", "width", "radius", "all_pairs"), [(9, 11, 5, False), (7, 6, 5, True), (3, 2, 3, True), (1, 4, 3, True)])
def test_the_loss(height, width, radius, all_pairs):
    features = draw(2, 6, height, width)
    labels = torch.from_numpy(np.random.default_rng(1).choice([0, 1, 2, 255], (2, height, width))).byte()
    found = feature_affinity_losses(features, labels, radius, all_pairs)
    assert found.total.item() == pytest.approx(plain_loss(features, labels, radius, all_pairs), abs=1e-6)


@pytest.mark.parametrize("at_once", [AT_ONCE, 30])
def test_its_gradient_by_parts_of_the_features(monkeypatch, at_once):
    monkeypatch.setattr("wsss.refinement.feature_affinity.AT_ONCE", at_once)
    features = draw(2, 3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pair_distances(x, 3), features)
    labels = torch.from_numpy(np.random.default_rng(1).choice([0, 1, 255], (2, 4, 3)))
    assert torch.autograd.gradcheck(lambda x: feature_affinity_losses(x, labels, 3, True).total, features)


def test_two_parts_of_a_batch_add_up_to_the_loss_of_the_whole():
    features, labels = draw(4, 3, 6, 6), torch.from_numpy(np.random.default_rng(2).choice([0, 1, 2], (4, 6, 6)))
    whole, total = feature_affinity_losses(features, labels, 3, True).total, pair_counts(labels, 3, True)
    parts = [feature_affinity_losses(features[part::2], labels[part::2], 3, True, total).total for part in range(2)]
    torch.testing.assert_close(sum(parts), whole)


def test_labels_of_another_grid_are_refused():
    with pytest.raises(ArgumentError, match=r"feature_affinity_losses: features is \(2, 3, 4, 4\) and labels \(2, 4, 5\)"):
        feature_affinity_losses(draw(2, 3, 4, 4), torch.zeros(2, 4, 5, dtype=torch.uint8))


def dense_walk(x, features, beta, steps, all_pairs):
    """infer_aff.py: a dense matrix, whose columns are divided by their sums, to the power `steps`."""
    height, width = features.shape[1:]
    matrix = torch.eye(height * width, dtype=torch.float64)
    for (y, x_), (y2, x2) in pairs(height, width, RADIUS, all_pairs):
        i, j = y * width + x_, y2 * width + x2
        matrix[i, j] = matrix[j, i] = affinity_of(features, (y, x_), (y2, x2)) ** beta
    return (x.flatten(1) @ torch.linalg.matrix_power(matrix / matrix.sum(0, keepdim=True), steps)).view_as(x)


@pytest.mark.parametrize("all_pairs", [False, True])
@pytest.mark.parametrize(("height", "width"), [(10, 12), (2, 3), (1, 1)])
def test_the_walk(height, width, all_pairs):
    x, features = draw(2, height, width).abs(), draw(5, height, width, seed=1)
    found = affinity_walk(x, feature_affinity(features, RADIUS, all_pairs), 8.0, 64)
    torch.testing.assert_close(found, dense_walk(x, features, 8.0, 64, all_pairs), rtol=0, atol=1e-6)


def test_a_constant_stays_and_the_columns_weighted_mass_is_kept():
    """T has columns of sum 1, so a constant is kept; with the column sums D as weights the sum of each map is kept, too."""
    features = draw(4, 9, 10)
    affinity = feature_affinity(features, RADIUS)
    constant = affinity_walk(torch.full((1, 9, 10), 0.3), affinity, 8.0, 64)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3), rtol=0, atol=1e-7)
    columns = torch.ones(90, dtype=torch.float64)
    for (y, x), (y2, x2) in pairs(9, 10, RADIUS, True):
        near = affinity_of(features, (y, x), (y2, x2)) ** 8
        columns[y * 10 + x] += near
        columns[y2 * 10 + x2] += near
    maps = draw(2, 9, 10).abs()
    before, after = ((each.flatten(1) @ columns) for each in (maps, affinity_walk(maps, affinity, 8.0, 64)))
    torch.testing.assert_close(after, before, rtol=1e-8, atol=0)


@pytest.mark.parametrize("alpha", [None, 1.5, 16.0])
def test_the_refiner_is_the_official_walk_of_maps_and_background(alpha):
    seeds, features = (0.6 * draw(2, 20, 24).abs()).clamp(max=1), draw(6, 10, 12, seed=1)
    method = PSA(**{**SETTINGS, "alpha": alpha})
    found = method.maps(SeedImage(lambda: seeds.float(), None, None, features=lambda: features.float()))
    background = (1 - seeds.amax(0)) ** alpha if alpha else torch.full((20, 24), 0.4, dtype=torch.float64)
    pooled = F.avg_pool2d(torch.cat([background[None], seeds])[None], 2)[0]
    scores = F.interpolate(dense_walk(pooled, features, 8.0, 16, False)[None], scale_factor=2, mode="bilinear")[0]
    expected = scores.argmax(0)
    mine = torch.cat([torch.full_like(found[:1], 0.5 if alpha else 0.4), found]).argmax(0)
    assert len(expected.unique()) >= 2 and (mine == expected).all() and ((expected == 0).any() or alpha == 16)
    assert found.shape == seeds.shape and 0 <= found.min() and found.max() <= 1
    assert PSA(**SETTINGS).maps(SeedImage(lambda: seeds[:0].float(), None, None, features=lambda: features)).shape == (0, 20, 24)


def test_odd_sizes_and_steps_in_proportion_to_the_area():
    seeds, features = torch.rand(1, 19, 23), torch.rand(4, 10, 12)
    image = SeedImage(lambda: seeds, None, None, features=lambda: features)
    assert PSA(**SETTINGS).maps(image).shape == (1, 19, 23)
    few = PSA(**{**SETTINGS, "exp_times": 8, "scale_steps": True})    # 256 * (20 * 24) / (94 * 125) = 10
    same = PSA(**{**SETTINGS, "exp_times": 0})
    assert not torch.equal(few.maps(image), PSA(**{**SETTINGS, "exp_times": 8}).maps(image))
    torch.testing.assert_close(same.maps(image).mean(), seeds.mean(), rtol=0.1, atol=0)


def plain_network(net, x):
    """network/resnet38_aff.py on network/resnet38d.py: the activations that b5, b6 begin with, and the features."""
    b, seen = net.backbone, {}
    hooks = [getattr(b, name).conv_branch1.register_forward_pre_hook(lambda module, args, name=name: seen.setdefault(name, args[0])) for name in ("b5", "b6")]
    last = b.features(x)
    for hook in hooks:
        hook.remove()
    parts = [F.elu(F.conv2d(values, layer.weight)) for values, layer in ((seen["b5"], net.f8_3), (seen["b6"], net.f8_4), (last, net.f8_5))]
    return F.elu(F.conv2d(torch.cat(parts, 1), net.f9.weight))


@torch.inference_mode()
def test_the_network_on_a_resnet38():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ResNet38("frozen_batch", width=2).double()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.add_(0.1), module.bias.add_(0.2)
    net = AffinityNet(backbone, seed=1).double().eval()
    assert [tuple(p.shape) for name, p in net.named_parameters() if name.startswith("f")] == [(64, 16, 1, 1), (128, 32, 1, 1), (256, 128, 1, 1), (448, 448, 1, 1)]
    x = draw(1, 3, 48, 64)
    torch.testing.assert_close(net(x), plain_network(net, x), rtol=0, atol=1e-6)
    assert torch.equal(net(x[..., :43, :62]), net(F.pad(x[..., :43, :62], (0, 2, 0, 5))))   # infer_aff.py


@pytest.mark.parametrize("name", ["tiny", "tf_efficientnet_lite0", "resnet18"])
@torch.inference_mode()
def test_any_backbone_has_features_at_stride_8(name):
    net = AffinityNet(new_backbone(name)).eval()
    assert net(torch.zeros(1, 3, 61, 50)).shape == (1, 448, 8, 7)
    backbone, head = net.parameter_groups()
    assert len(head) == 4 and {*backbone, *head} == {p for p in net.parameters() if p.requires_grad}


def test_the_stem_of_a_resnet38_is_what_the_official_code_does_not_train():
    backbone = ResNet38("frozen_batch", width=2)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    assert {names[id(parameter)].split(".")[0] for parameter in backbone.stem_parameters()} == {"b2", "b2_1", "b2_2"}
    assert not backbone.conv1a.weight.requires_grad and new_backbone("tiny").stem_parameters() == []


def test_the_labels_are_two_crfs():
    generator = np.random.default_rng(0)
    image = np.zeros((24, 24, 3), np.uint8)
    image[4:14, 4:14] = 200
    image = np.clip(image + generator.integers(0, 20, image.shape), 0, 255).astype(np.uint8)
    maps = torch.zeros(2, 24, 24)
    maps[0, 5:13, 5:13], maps[1, 16:22, 16:22] = 0.9, 0.35
    found = psa_label(image, maps, [3, 6], low_alpha=1.0, high_alpha=12.0, iterations=10, kernels=KERNELS)
    crf, labels = DenseCRF(image, **KERNELS), []
    for alpha in (1.0, 12.0):
        scores = torch.cat([((1 - maps.amax(0)) ** alpha)[None], maps])
        labels.append(crf.inference(-scores.clamp(1e-5, 1).log(), 10).argmax(0))
    low, high = labels
    expected = torch.tensor([255, 4, 7])[low]   # voc12/data.py: label[la == 0] = 255, then label[ha == 0] = 0
    expected[high == 0] = 0
    assert torch.equal(found.long(), expected) and {0, 4} <= set(found.unique().tolist())
    none = psa_label(image, maps[:0], [], low_alpha=1.0, high_alpha=12.0, iterations=1, kernels=KERNELS)
    assert none.shape == (24, 24) and not none.any()
    assert background_scores(torch.tensor([[[-0.5, 0.25]]]), 2.0).tolist() == [[1.0, 0.5625]]
    with pytest.raises(ArgumentError, match="psa_label: .* low_alpha=3, high_alpha=2; expected"):
        psa_label(image, maps, [3, 6], low_alpha=3, high_alpha=2, iterations=1, kernels=KERNELS)


def test_a_cell_has_the_label_of_the_mean_of_both_sets():
    """voc12/data.py: the mean of each set over 8 x 8 pixels, and its greatest; here one class, so two maps a set."""
    generator = np.random.default_rng(3)
    low = torch.from_numpy(generator.random((16, 24)) < 0.5)          # foreground with the low exponent
    high = low | torch.from_numpy(generator.random((16, 24)) < 0.5)   # and with the high one
    label = torch.where(~high, 0, torch.where(low, 5, 255)).byte()
    means = {name: F.avg_pool2d(each[None].double(), 4)[0] for name, each in (("low", low), ("high", high))}
    expected = torch.full((4, 6), 255)
    expected[means["low"] > 0.5] = 5
    expected[means["high"] < 0.5] = 0
    clear = means["high"] != 0.5    # a tie
    found = pooled_label(label, 4)
    assert set(expected[clear].tolist()) == {0, 5, 255} and torch.equal(found[clear].long(), expected[clear])
    assert pooled_label(torch.full((8, 8), 255, dtype=torch.uint8), 8).tolist() == [[255]]
    with pytest.raises(ArgumentError, match=r"pooled_label: label is \(9, 8\) and stride is 8"):
        pooled_label(torch.zeros(9, 8, dtype=torch.uint8), 8)
