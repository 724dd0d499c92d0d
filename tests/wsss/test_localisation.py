"""Boxes of maps and their scores: cases worked out by hand, what OpenCV finds, and plain re-statements of the official evaluation."""

import numpy as np
import pytest

from wsss.errors import ArgumentError
from wsss.metrics.boxes import (
    Found,
    boxes_above,
    clipped,
    component_boxes,
    contour_boxes,
    dt_boxes,
    overlaps,
    scaled,
    score_map,
    thresholds_at,
)
from wsss.metrics.localisation import BoxAccuracy, PixelPrecision, centre_box, centre_gaussian


def drawn(text: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in text.split()])


# Random masks: the bounding box of the contour with the largest contourArea, and those of all contours (x, y, width, height), by
# OpenCV 5.0 with RETR_TREE and CHAIN_APPROX_SIMPLE.
OPENCV = [
    ("...#..#.. ..##..... ..##.##.. ....###.# .#.##.... .#.....#. .#.......",
     (2, 0, 5, 5), [(1, 4, 1, 3), (2, 0, 5, 5), (6, 0, 1, 1), (7, 5, 1, 1), (8, 3, 1, 1)]),
    ("#####.#.# ..#....## ..#...### #.#.#.### #..#..#.. #...#.#.. ##.#....#",
     (6, 0, 3, 6), [(0, 0, 5, 7), (0, 3, 2, 4), (6, 0, 3, 6), (8, 6, 1, 1)]),
    ("####.###. #.##..##. #.###.#.. ...#####. .#.##.#.# ..###...# ...#.####", (0, 0, 9, 7), [(0, 0, 9, 7), (4, 3, 5, 4)]),
    ("######### .#.#####. ..#####.# ..#..#### ###..#... #####.### #####.###",
     (0, 0, 9, 7), [(0, 0, 9, 7), (1, 0, 3, 3), (2, 2, 4, 4), (6, 1, 3, 3)]),
    ("#.###.### .##.##### #.####### ###.#.### ######### ######### ###..#.##",
     (0, 0, 9, 7), [(0, 0, 9, 7), (0, 1, 3, 3), (2, 0, 3, 3), (2, 2, 3, 3), (4, 2, 3, 3)])]


@pytest.mark.parametrize(("text", "largest", "everything"), OPENCV)
def test_contours_are_those_of_opencv(text, largest, everything):
    found = contour_boxes(drawn(text))
    as_rectangles = [(x0, y0, x1 - x0 + 1, y1 - y0 + 1) for x0, y0, x1, y1 in found.tolist()]
    assert as_rectangles[0] == largest and sorted(as_rectangles) == everything


def test_the_largest_contour_is_not_the_largest_component():
    # a ring of 12 pixels encloses 9 squares between centres, a block of 15 only 8
    mask = drawn("####...... #..#.##### #..#.##### ####.#####")
    assert contour_boxes(mask)[0].tolist() == [0, 0, 3, 3] and component_boxes(mask)[0].tolist() == [5, 1, 9, 3]
    assert sorted(contour_boxes(mask).tolist()) == [[0, 0, 3, 3], [0, 0, 3, 3], [5, 1, 9, 3]]   # the hole's runs on the ring


def test_pixels_that_touch_at_a_corner_are_one_component():
    mask = drawn("#... .#.. ...#")
    assert component_boxes(mask).tolist() == [[0, 0, 1, 1], [3, 2, 3, 2]]
    assert len(contour_boxes(np.zeros((2, 3), bool))) == len(component_boxes(np.zeros((2, 3), bool))) == 0


def test_thresholds_are_strict_and_shares_of_the_maximum():
    score = np.array([[0.0, 0.1, 0.2, 0.4, 0.2]])
    found = boxes_above(score, np.array([0.0, 0.25, 0.5, 0.75]), component_boxes, grey=False)   # above 0, 0.1, 0.2, 0.3
    assert [found.boxes[i][0].tolist() for i in found.at] == [[1, 0, 4, 0], [2, 0, 4, 0], [3, 0, 3, 0], [3, 0, 3, 0]]
    # of 255 levels: 0, 25, 51, 102, 51; the limits are int(0.25 * 102) = 25 and int(0.26 * 102) = 26
    found = boxes_above(score, np.array([0.25, 0.26, 0.999]), contour_boxes, grey=True)
    assert [found.boxes[i][0].tolist() for i in found.at] == [[2, 0, 4, 0], [2, 0, 4, 0], [3, 0, 3, 0]]
    nothing = boxes_above(np.zeros((3, 4)), thresholds_at(0.5), contour_boxes, grey=True)
    assert [nothing.boxes[i].tolist() for i in nothing.at] == [[[0, 0, 0, 0]]] * 2
    assert thresholds_at(0.001)[[0, 1, -1]].tolist() == [0, 0.001, 0.999] and len(thresholds_at(0.001)) == 1000


def test_the_thresholds_of_one_part_share_their_boxes():
    score = score_map(np.random.default_rng(0).random((20, 30)))
    for rule, grey in ((contour_boxes, True), (component_boxes, False)):
        found = boxes_above(score, thresholds_at(0.01), rule, grey)
        levels = (score * 255).astype(np.uint8) if grey else score
        for t in (0, 17, 50, 99):
            limit = int(t / 100 * levels.max()) if grey else thresholds_at(0.01)[t] * levels.max()
            assert found.boxes[found.at[t]].tolist() == rule(levels > limit).tolist()


def test_official_boxes_end_a_pixel_later_within_the_frame():
    found = clipped(Found([np.array([[0, 0, 2, 3], [1, 2, 4, 4]]), np.array([[0, 0, 0, 0]])], np.array([0, 1])), (5, 5))
    assert found.boxes[0].tolist() == [[0, 0, 3, 4], [1, 2, 4, 4]] and found.boxes[1].tolist() == [[0, 0, 0, 0]]
    assert scaled(np.array([[10, 20, 99, 299.0]]), (300, 500), (224, 224)).tolist() == [[4, 14, 44, 223]]


def test_overlaps_count_the_last_pixel():
    a = np.array([[0, 0, 1, 1], [5, 5, 5, 5], [0, 0, 3, 0]])
    assert overlaps(a, np.array([[1, 1, 2, 2], [0, 0, 1, 1]])).tolist() == [[1 / 7, 1], [0, 0], [0, 2 / 6]]


def test_a_constant_map_is_zero_everywhere():
    assert score_map(np.full((2, 2), 3.0)).tolist() == [[0, 0], [0, 0]]
    assert score_map(np.array([[-1.0, 1, 0]])).tolist() == [[0, 1, 0.5]]


def test_the_loose_and_the_tight_box_of_the_released_program():
    score = np.zeros((60, 80))
    score[10:50, 10:70] = 30 / 255      # above the first level only
    score[20:40, 30:50] = 1             # above all three: one of the two equal boxes is left out
    # 40 rows: distances up to 20, and above 10.5/255 of that from the first pixel on
    assert dt_boxes(score).boxes[0].tolist() == [[10, 10, 70, 50], [30, 20, 50, 40]]
    score[20:40, 30:50] = 30 / 255
    assert dt_boxes(score).boxes[0].tolist() == [[10, 10, 70, 50]] * 2      # no second box
    assert dt_boxes(np.ones((60, 80))).boxes[0].tolist() == [[0, 0, 75, 55]] * 2 and dt_boxes(np.zeros((9, 9))).boxes[0].sum() == 0
    score = np.zeros((60, 80))
    score[:, :60] = 1       # distances up to 60: the two outermost columns are not above 10.5/255 of it, the end is 55 of 60 rows
    assert dt_boxes(score).boxes[0][0].tolist() == [0, 0, 58, 55]


def found_at(*boxes_of_thresholds):
    return Found([np.array(boxes) for boxes in boxes_of_thresholds], np.arange(len(boxes_of_thresholds)))


def test_box_accuracy_by_hand():
    accuracy, truth = BoxAccuracy(2, 2), np.array([[0, 0, 9, 9]])
    # IoU 0.5 exactly and 0.4; the second box of the first threshold has 0.7
    accuracy.update(0, found_at([[0, 0, 4, 9], [0, 0, 6, 9]], [[0, 0, 3, 9]]), truth, rank=0)
    # right at the second threshold only, its class is the fifth
    accuracy.update(1, found_at([[20, 20, 29, 29]], [[0, 0, 9, 9]]), np.array([[0, 0, 9, 9], [40, 40, 41, 41]]), rank=4)
    accuracy.update(1, found_at([[0, 0, 0, 0]], [[0, 0, 0, 0]]), truth, rank=5)
    assert accuracy.counts["units"].tolist() == [1, 2]
    np.testing.assert_allclose(accuracy.accuracy(), [1 / 3, 1 / 3])
    np.testing.assert_allclose(accuracy.accuracy_any(), [[1 / 3, 2 / 3], [1 / 3, 1 / 3], [1 / 3, 1 / 3]])
    assert accuracy.max_v2() == pytest.approx((2 + 1 + 1) / 9)
    assert accuracy.top() == [1 / 3, 2 / 3]
    np.testing.assert_allclose(accuracy.top_accuracy(), [[1 / 3, 0], [1 / 3, 1 / 3]])
    assert accuracy.of_classes(1).tolist() == [0, 0.5] and accuracy.of_classes(0).tolist() == [1, 0]


def test_scores_of_predicted_classes_need_the_rank_of_every_unit():
    accuracy, box = BoxAccuracy(1, 1), [0, 0, 9, 9]
    accuracy.update(0, found_at([box]), np.array([box]), rank=0)
    assert accuracy.top() == [1, 1] and accuracy.five_guesses() == 1
    accuracy.update(0, found_at([box]), np.array([box]))   # of maps that an older version made
    assert accuracy.top() == [None, None] and accuracy.five_guesses() is None and np.isnan(accuracy.top_accuracy()).all()
    assert accuracy.accuracy().tolist() == [1]


def test_nothing_to_count():
    accuracy = BoxAccuracy(3, 2)
    assert np.isnan(accuracy.accuracy()).all() and accuracy.max_v2() is None
    assert accuracy.top() == [None, None] and accuracy.five_guesses() is None
    with pytest.raises(ArgumentError, match=r"truth has shape \(0, 4\), expected \(M, 4\) with M >= 1"):
        accuracy.update(0, found_at([[0, 0, 0, 0]], [[0, 0, 0, 0]]), np.zeros((0, 4)))


@pytest.mark.parametrize(("rank", "loose", "tight", "right"), [
    (0, True, False, 1), (0, False, True, 1), (1, False, True, 1), (2, True, False, 1), (2, False, True, 0), (3, True, True, 0), (0, False, False, 0)])
def test_the_five_guesses(rank, loose, tight, right):
    accuracy, box, other = BoxAccuracy(1, 1), [0, 0, 9, 9], [50, 50, 51, 51]
    accuracy.update(0, found_at([box if loose else other, box if tight else other]), np.array([box]), rank)
    assert accuracy.five_guesses() == right


def official_ap(scores, truths):
    """wsolevaluation's MaskEvaluator, as loops."""
    edges = [*(np.arange(1000) / 1000), 1.0, 2.0, 3.0]
    of = [[0] * 1002, [0] * 1002]
    for score, truth in zip(scores, truths):
        if truth != 255:
            of[truth][np.searchsorted(edges, score, side="right") - 1] += 1
    area = recall = found = right = 0.0
    for b in reversed(range(1002)):
        right, found = right + of[1][b], found + of[0][b] + of[1][b]
        area, recall = area + (right / found * (right / sum(of[1]) - recall) if found else 0), right / sum(of[1])
    return area


def test_pixel_precision_by_hand_and_against_loops():
    precision = PixelPrecision(2)
    score = np.array([[1.0, 0.9995, 0.5, 0.5001, 0.2, 0.7]])        # 0.5 and 0.5001 are in one bin
    within, counted = np.array([[1, 1, 1, 0, 1, 0]]) == 1, np.array([[1, 1, 1, 1, 1, 0]]) == 1
    precision.update(1, score, within, counted)
    assert precision.average_precision() == pytest.approx(1 / 4 + 1 / 4 + 3 / 4 / 4 + 4 / 5 / 4)
    draws = np.random.default_rng(0)
    scores, truths = draws.random(400).astype(np.float32), draws.choice([0, 1, 255], 400)
    precision = PixelPrecision(1)
    precision.update(0, scores, truths == 1, truths != 255)
    assert precision.average_precision() == pytest.approx(official_ap(scores, truths))
    assert PixelPrecision(1).average_precision() is None


def test_the_baselines_know_nothing_but_the_size():
    found = boxes_above(centre_box((40, 60)), np.array([0.0, 0.5]), component_boxes, grey=False)
    assert found.boxes[found.at[1]].tolist() == [[15, 10, 44, 29]]      # half of each side
    gaussian = centre_gaussian((41, 61))
    assert gaussian[20, 30] == 1 and gaussian.min() == gaussian[0, 0] == 0
    np.testing.assert_allclose(gaussian, gaussian[::-1, ::-1], atol=1e-6)
    assert len(component_boxes(gaussian > 0.5)) == 1
