"""The stored form of the maps, and the rebuild against torch's own bilinear resize."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.cams.maps import at_size, grids, in_frame, pack, pad_of, rebuild, unpack
from wsss.errors import ArgumentError

SIZES = [(375, 500), (97, 131), (1, 1), (16, 17), (700, 3)]


def random_maps(height, width, n_classes=2, stride=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n_classes, *grid, generator=generator) * 7 for grid in grids(height, width, stride)]


def built(packed, height, width, resolution="strided", **how):
    """`rebuild` of maps at stride 16, padded as in the official code."""
    return rebuild(packed, height, width, grids(height, width, 16), resolution, pad=16, **how)


def official(maps, height, width, resolution, eps=0.0, pad=16):
    """IRN make_cam, line by line: resize every scale, add, crop, divide by the maximum."""
    size = (math.ceil(height / 4), math.ceil(width / 4))
    if resolution == "full":
        size = (pad * math.ceil(height / pad), pad * math.ceil(width / pad))
    resized = [F.interpolate(m[None], size=size, mode="bilinear", align_corners=False)[0] for m in maps]
    total = torch.stack(resized).sum(dim=0)
    if resolution == "full":
        total = total[:, :height, :width]
    return total / (total.amax(dim=(1, 2), keepdim=True) + eps)


def test_grids_are_those_of_the_network():
    assert grids(375, 500, 16) == [(24, 32), (12, 16), (36, 47), (47, 63)]  # inputs 375x500, 188x250, 562x750, 750x1000
    assert grids(1, 1, 16) == [(1, 1)] * 4  # half a pixel is rounded to none, and one is taken
    assert grids(97, 131, 8, (0.5,)) == [(6, 9)]  # 48.5 and 65.5 are rounded to even: 48, 66


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("resolution", ["strided", "full"])
def test_rebuild_equals_resizing_and_adding(height, width, resolution):
    maps = random_maps(height, width)
    packed, _ = pack(maps)
    expected = official(maps, height, width, resolution)
    torch.testing.assert_close(built(packed, height, width, resolution), expected, rtol=0, atol=1e-3)
    exact = torch.cat([m.flatten(1) for m in maps], dim=1)  # not through float16
    torch.testing.assert_close(built(exact, height, width, resolution), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("resolution", ["strided", "full"])
def test_other_strides(stride, resolution):
    maps = random_maps(97, 131, stride=stride)
    ours = rebuild(pack(maps)[0], 97, 131, grids(97, 131, stride), resolution, pad=stride)
    torch.testing.assert_close(ours, official(maps, 97, 131, resolution, pad=stride), rtol=0, atol=1e-3)
    if resolution == "full":
        assert (ours - rebuild(pack(maps)[0], 97, 131, grids(97, 131, stride), "full")).abs().max() > 0.01   # without padding


def test_the_padding_is_that_of_the_first_stride_with_these_grids():
    for stride in (16, 14, 8, 4):
        assert pad_of(grids(97, 131, stride), 97, 131, (16, 4, 8, 14)) == stride
    assert pad_of([[97, 131]], 97, 131, (16, 4), [1.0]) == 1                      # the pixels of the image
    assert pad_of([[13, 17]], 97, 131, (16, 8, 4), [1.0, 0.5]) == 1               # one grid for all scales
    assert pad_of(grids(97, 131, 5), 97, 131, (16, 4)) == 5                       # of no stage
    assert pad_of([[1, 1]], 3, 4, (16, 4), [1.0]) == 16                           # of both strides


@pytest.mark.parametrize("size", [(224, 224), (203, 150)])
def test_a_patch_grid_covers_the_image_exactly(size):
    """The 14 x 14 tokens of a transformer, which has seen the image resized to its own size: without padding."""
    maps = [torch.rand(2, 14, 14, generator=torch.Generator().manual_seed(0))]
    packed, _ = pack(maps)
    for resolution, shape in (("full", size), ("strided", [math.ceil(side / 4) for side in size])):
        plain = at_size(maps[0], shape)
        expected = plain / plain.amax(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(rebuild(packed, *size, [(14, 14)], resolution), expected, rtol=0, atol=1e-3)


def test_a_map_at_full_resolution_comes_back_as_it_was():
    maps = torch.randn(2, 61, 45, generator=torch.Generator().manual_seed(0))
    packed, maxima = pack([maps])
    before = packed.clone()
    assert (packed < 0).any()
    full, strided = (rebuild(packed, 61, 45, [(61, 45)], resolution) for resolution in ("full", "strided"))
    assert torch.equal(full, packed.float().view(2, 61, 45) / (packed.amax(dim=1).float()[:, None, None]))
    torch.testing.assert_close(full, maps / maps.amax(dim=(1, 2), keepdim=True), rtol=0, atol=1e-3 * (maxima / maps.amax()).max().item())
    torch.testing.assert_close(strided, official([maps], 61, 45, "strided"), rtol=0, atol=2e-3)
    assert torch.equal(rebuild(packed.float(), 61, 45, [(61, 45)], "full"), full) and torch.equal(packed, before)


def test_stored_maps_are_taken_as_they_are():
    both = [torch.rand(2, 30, 50), torch.rand(2, 8, 13) - 3]
    packed, sizes = torch.cat([m.flatten(1) for m in both], dim=1), [(30, 50), (8, 13)]
    for resolution, expected in zip(("full", "strided"), both, strict=True):
        assert torch.equal(rebuild(packed, 30, 50, sizes, resolution, merge="stored"), expected)


def test_pack_divides_by_the_maximum_of_all_scales():
    maps = random_maps(40, 60)
    packed, maxima = pack(maps)
    assert packed.dtype == torch.float16 and packed.amax(dim=1).tolist() == [1, 1]
    assert maxima.tolist() == [max(m[k].max().item() for m in maps) for k in range(2)]
    for original, stored in zip(maps, unpack(packed, grids(40, 60, 16)), strict=True):
        torch.testing.assert_close(stored * maxima[:, None, None], original, rtol=5e-4, atol=1e-6)
    tiny, huge = pack([m * 1e-12 for m in maps])[0], pack([m * 1e12 for m in maps])[0]
    torch.testing.assert_close(tiny.float(), huge.float(), rtol=1e-3, atol=0)


def test_eps_is_in_units_of_the_stored_maps():
    maps = random_maps(40, 60)
    packed, maxima = pack(maps)
    ours = built(packed, 40, 60, "full", eps=3.0 / maxima)
    expected = official(maps, 40, 60, "full", eps=3.0)
    assert expected.max() < 0.9
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("resolution", ["strided", "full"])
def test_zero_map_stays_zero_and_constant_map_is_one(resolution):
    maps = random_maps(30, 50, n_classes=3)
    for m in maps:
        m[0], m[1] = 0, 0.2
    packed, maxima = pack(maps)
    rebuilt = built(packed, 30, 50, resolution)
    assert maxima[0] == 0 and not rebuilt[0].any()
    torch.testing.assert_close(rebuilt[1], torch.ones_like(rebuilt[1]))


def test_negative_values_are_kept_and_never_become_foreground():
    maps = random_maps(30, 50)
    for m in maps:
        m[0] -= 4  # positive and negative
        m[1] *= -1  # nowhere positive
    packed, _ = pack(maps)
    rebuilt = built(packed, 30, 50, "full")
    torch.testing.assert_close(rebuilt[0], official(maps, 30, 50, "full")[0], rtol=0, atol=1e-2)
    assert rebuilt[0].max() == 1 and rebuilt[0].min() < 0 and rebuilt[1].max() < 0


def unit(m):
    return (m - m.amin((1, 2), keepdim=True)) / (m - m.amin((1, 2), keepdim=True)).amax((1, 2), keepdim=True)


def test_maps_in_an_evaluation_frame():
    [coarse, fine] = random_maps(224, 224, stride=16)[:2]
    big = [F.interpolate(m[None], (224, 224), mode="bicubic", align_corners=False)[0] for m in (coarse, fine)]
    found = in_frame([coarse, fine], (224, 224), (224, 224), pad=16, cubic=True)
    torch.testing.assert_close(found, unit(big[0] + big[1]))
    assert found.amin((1, 2)).tolist() == [0, 0] and found.amax((1, 2)).tolist() == [1, 1]
    # F-CAM: brought to [0, 1] before the bilinear resize, so that the maximum, between two centres of cells, is below 1
    first = in_frame([coarse], (224, 224), (224, 224), normalise_first=True)
    torch.testing.assert_close(first, F.interpolate(unit(coarse)[None], (224, 224), mode="bilinear", align_corners=False)[0])
    assert in_frame([unit(coarse)], (30, 30), (30, 30), normalise_first=True).max() <= 1
    # the last cells reach beyond an image of 30 x 50 px
    odd = random_maps(30, 50)[0]
    cropped = F.interpolate(odd[None], (32, 64), mode="bilinear", align_corners=False)[0][:, :30, :50]
    torch.testing.assert_close(in_frame([odd], (30, 50), (15, 25), pad=16),
                               unit(F.interpolate(cropped[None], (15, 25), mode="bilinear", align_corners=False)[0]))
    assert in_frame([torch.ones(1, 3, 3)], (9, 9), (9, 9)).max() == 0 and in_frame([odd[:0]], (30, 50), (9, 9), cubic=True).shape == (0, 9, 9)


def test_no_class():
    packed, maxima = pack([m[:0] for m in random_maps(30, 50)])
    assert packed.shape == (0, sum(h * w for h, w in grids(30, 50, 16))) and maxima.shape == (0,)
    assert built(packed, 30, 50).shape == (0, 8, 13)
    assert built(packed, 30, 50, "full").shape == (0, 30, 50)


def test_stored_array_can_be_given_as_read_and_is_not_changed():
    packed = pack(random_maps(30, 50))[0].numpy()
    before = packed.copy()
    rebuilt = built(packed, 30, 50)
    assert torch.equal(rebuilt, built(torch.from_numpy(packed), 30, 50)) and np.array_equal(packed, before)


def test_wrong_arguments_are_refused():
    maps = random_maps(30, 50)
    packed, _ = pack(maps)
    with pytest.raises(ArgumentError, match=r"expected \(K, 70\) for the grids .* pass the grids of the stored maps"):
        rebuild(packed, 30, 50, grids(30, 70, 16))
    with pytest.raises(ArgumentError, match="resolution is 'half', expected 'full' or 'strided'"):
        built(packed, 30, 50, "half")
    with pytest.raises(ArgumentError, match="merge is 'mean', expected one of sum, stretched, resized, stored"):
        built(packed, 30, 50, merge="mean")
    with pytest.raises(ArgumentError, match="the same K"):
        pack([maps[0], maps[1][:1]])
    with pytest.raises(ArgumentError, match="the same K"):
        pack([])
    for value in (math.nan, math.inf, -math.inf):
        maps[2][1, 0, 0] = value
        with pytest.raises(ArgumentError, match="NaN or infinite"):
            pack(maps)


def test_resized_maps_keep_their_range():
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) / 4
    packed = maps.flatten(1).half()
    for resolution, size in (("full", (30, 50)), ("strided", (8, 13))):
        found = rebuild(packed, 30, 50, [(3, 4)], resolution, merge="resized")
        torch.testing.assert_close(found, at_size(maps.half().float(), size))
