"""What comes between maps and masks: the length of the walk, the background, and the CRF's start from scores."""

import pytest
import torch

from wsss.errors import ArgumentError
from wsss.refinement.crf import DenseCRF, unary_from_labels, unary_from_scores
from wsss.refinement.masks import walk_steps, with_background
from wsss.refinement.walk import random_walk


def test_the_walk_is_as_long_as_officially_on_an_image_of_voc_and_grows_with_the_area():
    assert walk_steps(94, 125) == 2**8 and walk_steps(94, 125, exp_times=4) == 2**4
    assert walk_steps(188, 250) == 4 * 2**8
    assert walk_steps(1, 1) == 1
    for wrong in ((0, 5), (5, 5, -1)):
        with pytest.raises(ArgumentError, match="walk_steps"):
            walk_steps(*wrong)


def test_a_walk_of_n_steps_is_n_walks_of_one_step():
    generator = torch.Generator().manual_seed(0)
    x, edge = torch.rand(2, 9, 11, generator=generator), torch.zeros(9, 11)   # without edges (1 - edge) takes nothing away
    by_one = x
    for _ in range(5):
        by_one = random_walk(by_one, edge, beta=3, radius=3, steps=1)
    assert torch.allclose(random_walk(x, edge, beta=3, radius=3, steps=5), by_one, atol=1e-6)
    assert torch.equal(random_walk(x, edge, beta=3, radius=3, exp_times=2), random_walk(x, edge, beta=3, radius=3, steps=4))


def test_the_background_stands_in_front():
    maps = torch.rand(2, 4, 5)
    scores = with_background(maps, 0.4)
    assert torch.equal(scores[1:], maps) and (scores[0] == 0.4).all()
    assert with_background(maps[:0], 0.4).shape == (1, 4, 5)


def test_unary_from_scores_is_a_softmax():
    scores = torch.rand(3, 4, 2, 2)
    unary = unary_from_scores(scores, 5.0)
    assert torch.allclose(torch.exp(-unary).sum(1), torch.ones(3, 2, 2))
    assert torch.allclose(unary[:, 0] - unary[:, 1], 5 * (scores[:, 1] - scores[:, 0]), atol=1e-5)
    with pytest.raises(ArgumentError, match="sharpness is 0"):
        unary_from_scores(scores, 0)


def test_a_very_sharp_score_starts_as_its_label_does():
    """The more the greatest score is trusted, the nearer its energies are to those of the label map."""
    image = torch.randint(0, 255, (12, 15, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    scores = torch.rand(3, 12, 15, generator=torch.Generator().manual_seed(2))
    labels = scores.max(0).indices
    crf = DenseCRF(image)
    sharp = crf.inference(unary_from_scores(scores, 1e4), 0).max(0).indices
    trusted = crf.inference(unary_from_labels(labels, 3, 0.99), 0).max(0).indices
    assert torch.equal(sharp, labels) and torch.equal(trusted, labels)
