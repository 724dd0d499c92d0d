"""Boundary IoU by hand and against a plain form."""

import numpy as np
import pytest

from wsss.errors import ArgumentError
from wsss.metrics.boundary import BoundaryIoU, boundary_region


def plain_region(mask: np.ndarray, width: int) -> np.ndarray:
    """Every pixel of the mask with a pixel outside it, or the outside of the image, in the square of `width` around it."""
    found = np.zeros_like(mask)
    height, length = mask.shape
    for y, x in np.argwhere(mask):
        near = [(y + dy, x + dx) for dy in range(-width, width + 1) for dx in range(-width, width + 1)]
        found[y, x] = any(not (0 <= a < height and 0 <= b < length) or not mask[a, b] for a, b in near)
    return found


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_region_is_that_of_a_plain_search(width, seed):
    draws = np.random.default_rng(seed)
    mask = np.zeros((17, 23), bool)
    for _ in range(3):
        top, left = draws.integers(0, 12, 2)
        mask[top:top + draws.integers(2, 9), left:left + draws.integers(2, 12)] = True
    assert np.array_equal(boundary_region(mask, width), plain_region(mask, width))


def test_a_shifted_square_by_hand():
    truth, prediction = np.zeros((30, 40), int), np.zeros((30, 40), int)   # the diagonal is 50: a boundary of 1 pixel
    truth[10:20, 10:20], prediction[10:20, 11:21] = 1, 1
    measure = BoundaryIoU(2)
    measure.update(prediction, truth)
    # rings of 36 pixels each; they share the rows at the top and bottom but one pixel (9 each), no column
    assert measure.counts[1].tolist() == [18, 54] and measure.scores()[1] == pytest.approx(1 / 3)
    assert measure.scores()[2] is None   # no pixel of class 2
    assert measure.mean() == pytest.approx(np.mean([measure.scores()[0], 1 / 3]))


def test_pixels_without_truth_do_not_count_and_equal_masks_have_one():
    truth = np.random.default_rng(0).choice([0, 1, 255], (20, 20))
    measure = BoundaryIoU(1)
    measure.update(np.where(truth == 255, 1, truth), truth)
    assert (measure.counts.sum(axis=1) <= 2 * (truth != 255).sum()).all()
    same = BoundaryIoU(1)
    same.update(truth % 255, truth % 255)
    assert same.scores() == [1.0, 1.0] and BoundaryIoU(1).mean() is None


def test_other_sizes_are_refused():
    with pytest.raises(ArgumentError, match="expected the same"):
        BoundaryIoU(1).update(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_only_the_labels_that_are_asked_for_have_a_score():
    boundary, mask = BoundaryIoU(2), np.zeros((20, 20), np.uint8)
    truth = mask.copy()
    truth[5:10, 5:10], mask[5:10, 5:10], mask[15:, 15:] = 1, 1, 2
    boundary.update(mask, truth)
    assert boundary.scores()[1:] == [1, 0] and boundary.scores(np.array([True, True, False]))[1:] == [1, None]
    assert boundary.mean(np.array([False, True, False])) == 1 and boundary.mean(np.zeros(3, bool)) is None
