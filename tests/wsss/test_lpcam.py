"""LPCAM equals the official code on the reference case, and its identities hold against loops over prototypes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.reference import IDS, REFERENCE, load
from tests.wsss.test_cam import reference_features
from wsss.cams.lpcam import class_probability, lpcam_maps, mean_direction, select_prototypes, split_cells
from wsss.cams.maps import grids, pack, rebuild
from wsss.errors import ArgumentError


def prototypes(kind, classes):
    with np.load(REFERENCE / "prototypes.npz") as file:
        return torch.stack([mean_direction(torch.from_numpy(file[f"{kind}_{c}"])) for c in classes])


@pytest.mark.parametrize("image_id", IDS)
def test_lpcam_equals_official(image_id):
    features, size = reference_features(image_id)
    expected = load("lpcam", image_id)
    foreground, background = prototypes("fg", expected["keys"]), prototypes("bg", expected["keys"])
    maps = [lpcam_maps(f, foreground, background)[1] for f in features]
    exact = torch.cat([m.flatten(1) for m in maps], dim=1)
    for resolution, name in (("strided", "cam"), ("full", "high_res")):
        for flat, tolerance in ((pack(maps)[0], 1e-3), (exact, 5e-5)):
            ours = rebuild(flat, *size, grids(*size, 16), resolution, pad=16).numpy()
            np.testing.assert_allclose(ours, expected[name], rtol=0, atol=tolerance)


def test_selection_equals_official():
    with np.load(REFERENCE / "selection.npz") as file:
        centers, prob, fg_mask, bg_mask = (torch.from_numpy(file[name]) for name in ("centers", "prob", "fg_mask", "bg_mask"))
    weight = torch.from_numpy(np.load(REFERENCE / "classifier_weight.npy"))
    torch.testing.assert_close(class_probability(centers, weight), prob, rtol=1e-3, atol=1e-7)
    assert fg_mask.any() and bg_mask.any()
    for c in range(20):
        kept, background = select_prototypes(centers, centers, weight, c)
        assert torch.equal(background, bg_mask[:, c])
        if fg_mask[:, c].any():
            assert torch.equal(kept, fg_mask[:, c])
        else:
            assert kept.nonzero().tolist() == [[prob[:, c].argmax().item()]]


# Centres whose probability of class 0 is known: softmax of (log p, log(1 - p)).
def centers_of(*probabilities):
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1).float().reshape(-1, 2)


def test_selection_rules():
    weight = torch.eye(2)
    fg, bg = centers_of(0.89, 0.91, 0.99), centers_of(0.01, 0.06, 0.5, 0.89, 0.91)
    kept, background = select_prototypes(fg, bg, weight, 0)
    assert kept.tolist() == [False, True, True] and background.tolist() == [False, True, True, True, False]
    _, coco = select_prototypes(fg, bg, weight, 0, bg_low=0, bg_high=0.4)
    assert coco.tolist() == [True, True, False, False, False]
    none_passes, _ = select_prototypes(centers_of(0.2, 0.6, 0.3), bg, weight, 0)
    assert none_passes.tolist() == [False, True, False]
    kept, background = select_prototypes(centers_of(), centers_of(), weight, 0)
    assert len(kept) == len(background) == 0
    with pytest.raises(ArgumentError, match="class_index is 2, expected 0 to 1"):
        select_prototypes(fg, bg, weight, 2)


def random_features(seed=0, dimension=16, grid=(3, 5)):
    return torch.randn(2, dimension, *grid, generator=torch.Generator().manual_seed(seed)).relu()


def mean_similarity(features, prototypes):
    """As the official loop: one prototype at a time."""
    return torch.stack([F.cosine_similarity(features, p[:, None, None], dim=0) for p in prototypes]).mean(dim=0)


def test_maps_equal_a_loop_over_prototypes():
    features, generator = random_features(), torch.Generator().manual_seed(1)
    fg = [torch.rand(n, 16, generator=generator) * 10 ** torch.arange(n)[:, None] for n in (1, 4)]
    bg = [torch.rand(n, 16, generator=generator) for n in (0, 3)]
    ours = lpcam_maps(features, *(torch.stack([mean_direction(p) for p in group]) for group in (fg, bg)))
    f = features[0] + features[1].flip(-1)
    for c in range(2):
        foreground = mean_similarity(f, fg[c])
        torch.testing.assert_close(ours[0][c], foreground)
        torch.testing.assert_close(ours[1][c], F.relu(foreground - mean_similarity(f, bg[c])) if len(bg[c]) else foreground)


def test_zero_features_constant_features_and_a_class_that_is_its_background():
    features = random_features()
    features[0, :, 0, 0] = features[1, :, 0, -1] = 0  # the mirror image's cell is at the other end
    foreground, background = torch.rand(2, 16), torch.zeros(2, 16)
    only, full = lpcam_maps(features, foreground, background)
    assert torch.equal(only, full) and (only[:, 0, 0] == 0).all() and (only[:, 0, 1:] > 0).all()
    assert not any(m.any() for m in lpcam_maps(torch.zeros(2, 16, 3, 5), foreground, background))
    constant = lpcam_maps(torch.ones(2, 16, 3, 5), mean_direction(torch.ones(1, 16))[None], torch.zeros(1, 16))[1]
    torch.testing.assert_close(constant, torch.ones(1, 3, 5))
    assert lpcam_maps(features, foreground[:0], background[:0])[1].shape == (0, 3, 5)

    direction = mean_direction(torch.rand(3, 16))[None]
    assert lpcam_maps(random_features(), direction, direction)[1].max() < 1e-6   # two rows of one product: equal but for rounding


def test_the_relu_without_background_matters_for_negative_prototypes_only():
    features = torch.rand(2, 3, 4, 5)
    foreground, background = torch.tensor([[1.0, 1, 1], [-1, -1, -1], [1, 0, 0]]), torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 1, 0]])
    official, paper = (lpcam_maps(features, foreground, background, relu_without_background=relu) for relu in (False, True))
    assert torch.equal(official[0], paper[0])   # LPCAM-F stays
    assert torch.equal(official[1][[0, 2]], paper[1][[0, 2]])
    assert (official[1][1] < 0).all() and (paper[1][1] == 0).all()


def test_mean_direction():
    torch.testing.assert_close(mean_direction(torch.tensor([[3.0, 0], [0, 0.5]])), torch.tensor([0.5, 0.5]))
    assert mean_direction(torch.zeros(0, 4)).tolist() == [0, 0, 0, 0]  # no prototype: the term vanishes


def test_split_by_the_map():
    cam = torch.zeros(6, 8)
    cam[:2, :4], cam[2, 2], cam[3, 3] = 1, 0.5, 0.9  # (2, 2) is what nearest neighbour takes for cell (1, 1), not (3, 3)
    foreground, background = split_cells(cam, (3, 4), 0.5)
    assert foreground.nonzero().tolist() == [[0, 0], [0, 1]]
    assert background.sum() == 12 - 3 and not background[1, 1]  # equal to the threshold: in neither
    for value, *sizes in ((1.0, 12, 0), (0.0, 0, 12), (0.5, 0, 0)):   # a constant map
        assert [int(part.sum()) for part in split_cells(torch.full((9, 11), value), (3, 4), 0.5)] == sizes


def test_wrong_shapes_are_refused():
    with pytest.raises(ArgumentError, match=r"\[\(1, 16, 3, 5\), \(1, 16\)"):
        lpcam_maps(random_features()[:1], torch.zeros(1, 16), torch.zeros(1, 16))
    with pytest.raises(ArgumentError, match=r"\(1, 16\), \(2, 16\)\]"):
        lpcam_maps(random_features(), torch.zeros(1, 16), torch.zeros(2, 16))
    with pytest.raises(ArgumentError, match=r"prototypes has shape \(4,\)"):
        mean_direction(torch.zeros(4))
    with pytest.raises(ArgumentError, match="the map of one class"):
        split_cells(torch.zeros(1, 6, 8), (3, 4), 0.5)


def test_a_class_without_a_sure_centre_keeps_the_most_probable_ones():
    """Two classes that are always together: no centre is sure of either."""
    weight = torch.tensor([[1.0, 0.0], [0.98, 0.02]])
    centers = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])   # the larger the surer, none above 0.9
    for minimum in (1, 3, 10):
        kept, _ = select_prototypes(centers, centers[:0], weight, 0, minimum=minimum)
        assert kept.tolist() == [i >= 4 - minimum for i in range(4)]
    sure = torch.tensor([[900.0, 0.0], [1.0, 0.0], [800.0, 0.0]])
    assert select_prototypes(sure, centers[:0], weight, 0, minimum=2)[0].tolist() == [True, False, True]   # enough pass


def test_a_mean_is_taken_off_before_the_cosine():
    generator = torch.Generator().manual_seed(0)
    features, mean = torch.rand(2, 5, 3, 4, generator=generator), torch.rand(5, generator=generator)
    foreground, background = torch.rand(2, 5, generator=generator), torch.rand(2, 5, generator=generator)
    centred = lpcam_maps(features, foreground, background, mean=mean)
    plain = lpcam_maps(features - mean[:, None, None], foreground, background)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(centred, plain))
    assert not torch.allclose(centred[0], lpcam_maps(features, foreground, background)[0])
