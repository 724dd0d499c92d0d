"""Paths, affinities and IRN's losses against a plain form of the official ones and against the reference case."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.reference import EXPECTED, REFERENCE
from tests.wsss.reference_networks import reference_image, reference_irn
from wsss.errors import ArgumentError
from wsss.refinement import affinity
from wsss.refinement.affinity import affinity_losses, edge_to_affinity, pair_counts
from wsss.refinement.paths import path_pixels, search_paths

LOSSES = ("pos_aff", "neg_aff", "dp_fg", "dp_bg")


def plain_path(dy: int, dx: int) -> list[tuple[int, int]]:
    """The pixels between (0, 0) and (dy, dx) whose distance from the line is below 1."""
    ys, xs = range(dy + 1), range(min(dx, 0), max(dx, 0) + 1)
    return [(y, x) for y in ys for x in xs if abs(dy * x - dx * y) / np.hypot(dy, dx) < 1]


def plain_pairs(height: int, width: int, radius: int, all_pairs: bool):
    """Every (source, direction) as (y, x, dy, dx)."""
    directions = [(0, x) for x in range(1, radius)]
    directions += [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if np.hypot(y, x) < radius]
    for dy, dx in directions:
        for y in range(height):
            for x in range(width):
                interior = y < height - radius + 1 and radius - 1 <= x < width - radius + 1
                if (interior or all_pairs) and y + dy < height and 0 <= x + dx < width:
                    yield y, x, dy, dx


def plain_losses(logits, displacement, labels, radius, all_pairs):
    """The formulas of recipe section 1.7, pair by pair."""
    edge, eps = torch.sigmoid(logits[:, 0]), 1e-5
    terms = {name: [] for name in ("bg", "fg", "neg", "dp_bg", "dp_fg")}
    for image in range(len(labels)):
        for y, x, dy, dx in plain_pairs(*labels.shape[1:], radius, all_pairs):
            first, second = int(labels[image, y, x]), int(labels[image, y + dy, x + dx])
            if 255 in (first, second):
                continue
            affinity = 1 - torch.stack([edge[image, y + py, x + px] for py, px in plain_path(dy, dx)]).max()
            difference = displacement[image, :, y, x] - displacement[image, :, y + dy, x + dx]
            if first != second:
                terms["neg"].append(-torch.log(1 + eps - affinity))
            elif first == 0:
                terms["bg"].append(-torch.log(affinity + eps))
                terms["dp_bg"].append(difference.abs().sum())
            else:
                terms["fg"].append(-torch.log(affinity + eps))
                terms["dp_fg"].append((difference - torch.tensor([dy, dx])).abs().sum())
    mean = {name: sum(values) / ((2 if "dp" in name else 1) * len(values) + eps) for name, values in terms.items()}
    return torch.stack([mean["bg"] / 2 + mean["fg"] / 2, mean["neg"], mean["dp_fg"], mean["dp_bg"]])


def random_case(batch=2, height=8, width=11, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, height, width, generator=draw, dtype=dtype).requires_grad_()
    displacement = torch.randn(batch, 2, height, width, generator=draw, dtype=dtype).requires_grad_()
    labels = torch.tensor([0, 0, 3, 7, 255])[torch.randint(5, (batch, height, width), generator=draw)]
    return logits, displacement, labels


@pytest.mark.parametrize(("radius", "directions"), [(1, 0), (2, 4), (5, 34), (10, 152)])
def test_parts_of_a_path_have_exactly_its_pixels(radius, directions):
    paths = search_paths(radius)
    assert len(paths) == directions
    for (dy, dx), parts in paths.items():
        pixels = {(y, x - min(dx, 0)) for y, x in plain_path(dy, dx)}
        assert set().union(*({(y + p.down, x + p.right) for y, x in path_pixels(p.direction)} for p in parts)) == pixels
        assert path_pixels((dy, dx)) == pixels


@pytest.mark.parametrize(("height", "width", "radius"), [(9, 7, 5), (3, 13, 5), (12, 2, 5), (11, 9, 10), (1, 1, 5)])
def test_affinity_is_one_minus_the_strongest_edge_on_the_path(height, width, radius):
    edge = torch.rand(height, width, generator=torch.Generator().manual_seed(1))
    affinity = edge_to_affinity(edge, radius)
    seen = 0
    for y, x, dy, dx in plain_pairs(height, width, radius, all_pairs=True):
        expected = 1 - max(edge[y + py, x + px] for py, px in plain_path(dy, dx))
        assert affinity[dy, dx][y, x + min(dx, 0)] == expected
        seen += 1
    assert seen == sum(affinity[direction].numel() for direction in search_paths(radius))


@pytest.mark.parametrize("at_once", [1, 200, 2**16])   # a direction, some, all of one dy
@pytest.mark.parametrize("all_pairs", [False, True])
def test_losses_and_gradients_of_the_plain_form(all_pairs, at_once, monkeypatch):
    monkeypatch.setattr(affinity, "AT_ONCE", at_once)
    logits, displacement, labels = random_case()
    weights = torch.tensor([1.0, 0.3, 0.7, 2.0], dtype=torch.float64)
    plain = plain_losses(logits, displacement, labels, 4, all_pairs)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), (logits, displacement))
    losses = affinity_losses(logits, displacement, labels, 4, all_pairs)
    ours = torch.stack([getattr(losses, name) for name in LOSSES])
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=0)
    assert losses.total.item() == pytest.approx(plain.sum().item() / 2)
    gradients = torch.autograd.grad((ours * weights).sum(), (logits, displacement))
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-8, atol=1e-12)


def test_reference_losses():
    expected, size = EXPECTED["irn_loss"], EXPECTED["irn_loss"]["crop"]
    images, labels = [], []
    for image_id in expected["images"]:
        image = reference_image(image_id)[:, :size, :size]
        label = imageio.imread(REFERENCE / "SegmentationClass" / f"{image_id}.png")[:size, :size]
        padding = (0, size - image.shape[2], 0, size - image.shape[1])
        images.append(F.pad(image, padding))
        labels.append(F.pad(torch.from_numpy(label), padding, value=255)[2::4, 2::4])  # nearest: the centre of each 4 x 4
    model = reference_irn().train()
    with torch.no_grad():
        losses = affinity_losses(*model(torch.stack(images)), torch.stack(labels), expected["radius"])
    for name in (*LOSSES, "total"):
        assert float(getattr(losses, name)) == pytest.approx(expected[name], rel=1e-5)
    for name in ("n_bg_pos", "n_fg_pos", "n_neg"):
        assert int(getattr(losses, name)) == expected[name]


def test_a_batch_spread_over_ranks_has_the_gradient_of_the_whole():
    logits, displacement, labels = random_case()
    affinity_losses(logits, displacement, labels, 4).total.backward()
    whole = logits.grad.clone(), displacement.grad.clone()
    logits.grad = displacement.grad = None
    counts = sum(pair_counts(labels[[rank]], 4) for rank in (0, 1)) / 2
    for rank in (0, 1):
        losses = affinity_losses(logits[[rank]], displacement[[rank]], labels[[rank]], 4, counts=counts)
        (losses.total / 2).backward()
    torch.testing.assert_close((logits.grad, displacement.grad), whole, rtol=1e-4, atol=1e-9)  # the 1e-5 beside the counts


def test_nothing_to_learn_from_gives_zero_and_low_precision_is_summed_in_float32():
    for logits, displacement, labels in (random_case(1, 1, 1), random_case(1, 5, 5)):
        losses = affinity_losses(logits, displacement, torch.full_like(labels, 255), 5, all_pairs=True)
        losses.total.backward()
        assert losses.total == 0 and int(losses.n_neg) == 0
        assert not logits.grad.any() and not displacement.grad.any()

    logits, displacement, labels = random_case(dtype=torch.float32)
    with torch.no_grad():
        exact = affinity_losses(logits, displacement, labels, 4).total
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = affinity_losses(logits.bfloat16(), displacement.bfloat16(), labels, 4).total
    assert low.dtype == torch.float32 and float(low) == pytest.approx(float(exact), rel=1e-2)


def test_wrong_arguments_say_what_to_do():
    logits, displacement, labels = random_case()
    with pytest.raises(ArgumentError, match=r"labels have shapes .*expected \(B, 1, h, w\)"):
        affinity_losses(logits, displacement, labels[:, ::2], 4)
    with pytest.raises(ArgumentError, match="class numbers of an integer type"):
        affinity_losses(logits, displacement, labels.float(), 4)
    with pytest.raises(ArgumentError, match=r"8 x 11 .* at least 10 x 19: use a larger crop.* or all_pairs=True"):
        affinity_losses(logits, displacement, labels, 10)
