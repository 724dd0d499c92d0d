"""Scores against scikit-learn, against the official numbers, and every threshold against cutting the maps at it."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix

from tests.reference import EXPECTED, IDS, REFERENCE, load
from wsss.data.images import read_mask
from wsss.errors import ArgumentError, DataError
from wsss.metrics.semantic import THRESHOLDS, Confusion, Scores, ThresholdCounts, average_precision


def random_labels(n_classes, shape, seed, ignored=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes + 1, shape).astype(np.uint8)
    labels[rng.random(shape) < ignored] = 255
    return labels


def official_prediction(maps, classes, threshold):
    """LPCAM eval_cam: the background map of the threshold's value in front, argmax, look the class up."""
    padded = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
    return np.concatenate([[0], np.asarray(classes, dtype=int) + 1])[padded.argmax(axis=0)]


def assert_scores(scores, expected):
    assert scores.miou == pytest.approx(expected["miou"], abs=1e-6)
    for ours, theirs in zip(scores.iou, expected["iou"], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("kind", ["cam", "lpcam"])
def test_maps_score_as_official_at_every_reported_threshold(kind):
    counts = ThresholdCounts(20)
    for image_id in IDS:
        maps = load(kind, image_id)
        counts.update(maps["high_res"], maps["keys"], read_mask(REFERENCE / "SegmentationClass" / f"{image_id}.png"))
    for threshold in (0.15, 0.3, 0.5):
        assert_scores(counts.scores(THRESHOLDS.index(threshold)), EXPECTED["eval"][f"{kind}@{threshold}"])


def test_masks_score_as_official():
    confusion = Confusion(20)
    for image_id in IDS:
        masks = [read_mask(REFERENCE / folder / f"{image_id}.png") for folder in ("sem_seg", "SegmentationClass")]
        confusion.update(*masks, prediction_ignore="background")
    assert_scores(confusion.scores(), EXPECTED["eval"]["sem_seg"])


@pytest.mark.parametrize("policy", ["ignore", "background"])
def test_confusion_equals_scikit_learn(policy):
    prediction, truth = random_labels(5, (40, 50), 0), random_labels(5, (40, 50), 1)
    confusion = Confusion(5)
    confusion.update(prediction, truth, policy)
    scored = (truth != 255) & ((prediction != 255) | (policy == "background"))
    expected = confusion_matrix(truth[scored], np.where(prediction == 255, 0, prediction)[scored], labels=range(6))
    assert np.array_equal(confusion.counts, expected) and confusion.counts.dtype == np.int64


def test_scores_by_hand():
    confusion = Confusion(4, np.array([[6, 1, 0, 0, 0], [2, 3, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))
    scores = confusion.scores()  # class 1: gt 5, pred 4, tp 3; class 2: gt 1, never predicted; classes 3 and 4: nowhere
    assert scores.iou == [6 / 10, 3 / 6, 0, None, None]
    assert scores.miou == pytest.approx((0.6 + 0.5 + 0) / 3)
    assert scores.fp == pytest.approx(((1 - 5 / 6) + (1 - 1 / 1)) / 2)
    assert scores.fn == pytest.approx(((1 - 4 / 6) + (1 - 0 / 1)) / 2)
    assert scores.precision == pytest.approx(3 / 4)  # class 2 has none
    assert scores.recall == pytest.approx((3 / 5 + 0) / 2)
    assert confusion.among_predfg_bg() == 1 / 4
    # LPCAM table 1: what is neither false positive nor false negative is the foreground mIoU.
    assert 1 - scores.fp - scores.fn == pytest.approx((0.5 + 0) / 2)


def test_parts_add_up_and_nothing_counted_is_undefined_and_json():
    text = json.dumps(Confusion(2).scores().as_dict(), allow_nan=False)
    assert json.loads(text) == {"miou": None, "iou": [None] * 3, "fp": None, "fn": None, "precision": None, "recall": None}
    assert Confusion(2).among_predfg_bg() is None
    whole, parts = Confusion(5), [Confusion(5), Confusion(5)]
    for seed in range(4):
        pair = random_labels(5, (9, 7), seed, ignored=0), random_labels(5, (9, 7), seed + 10)
        whole.update(*pair)
        parts[seed % 2].update(*pair)
    assert np.array_equal((parts[0] + parts[1]).counts, whole.counts)
    assert np.array_equal(Confusion(5, whole.counts).counts, whole.counts)


def test_predicted_255_needs_a_policy():
    prediction, truth = np.array([[0, 255]], dtype=np.uint8), np.array([[0, 1]], dtype=np.uint8)
    confusion = Confusion(1)
    with pytest.raises(DataError, match="255 .ignore. in 1 pixels.*prediction_ignore"):
        confusion.update(prediction, truth)
    with pytest.raises(ArgumentError, match="prediction_ignore is 'skip'"):
        confusion.update(prediction, truth, "skip")
    assert not confusion.counts.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_out_of_range_are_refused(dtype):
    good, bad = np.zeros((2, 2), dtype), np.full((2, 2), 21, dtype)
    for pair, name in (((bad, good), "prediction"), ((good, bad), "ground_truth")):
        with pytest.raises(DataError, match=rf"{name} holds the labels \[21\] in 4 pixels.*1 to 20"):
            Confusion(20).update(*pair)
    with pytest.raises(DataError, match="ground_truth holds the labels"):
        ThresholdCounts(20).update(torch.zeros(1, 2, 2), [0], bad)
    with pytest.raises(DataError, match="from -1 to 0"):
        Confusion(20).update(good, np.array([[0, -1], [0, 0]]))
    with pytest.raises(ArgumentError, match="expected integers"):
        Confusion(20).update(good.astype(float), good)
    with pytest.raises(ArgumentError, match="expected the same"):
        Confusion(20).update(good, good[:1])


def hard_maps(n, shape, seed):
    """Values on, just below and just above the thresholds, ties between maps, zeros."""
    rng = np.random.default_rng(seed)
    maps = rng.choice(np.array(THRESHOLDS, dtype=np.float32), (n, *shape))
    side = rng.integers(0, 3, maps.shape)
    maps = np.where(side == 0, np.nextafter(maps, np.float32(2)), np.where(side == 1, np.nextafter(maps, np.float32(-1)), maps))
    return maps.clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("thresholds", [THRESHOLDS, (0.25,), (0.0, 1.0), (0.1, 0.15, 0.5001, 0.5002)])
def test_every_threshold_equals_cutting_there(thresholds):
    counts, expected = ThresholdCounts(6, thresholds), [Confusion(6) for _ in thresholds]
    for seed, classes in enumerate([[2], [0, 5], [4, 1, 3], []]):
        maps = hard_maps(len(classes), (60, 70), seed)
        if classes:
            maps[0, :9], maps[-1, :9] = 0.62, 0.62  # a tie between classes
            maps[:, 9:12] = 0
        truth = random_labels(6, (60, 70), seed)
        counts.update(torch.from_numpy(maps), classes, truth)
        for threshold, confusion in zip(thresholds, expected, strict=True):
            confusion.update(official_prediction(maps, classes, np.float32(threshold)), truth)
    for i, confusion in enumerate(expected):
        assert np.array_equal(counts.confusion(i).counts, confusion.counts), thresholds[i]
    best = max(range(len(thresholds)), key=lambda i: expected[i].scores().miou)
    assert counts.best() == (thresholds[best], expected[best].scores())


def test_threshold_counts_add_up_and_are_taken_up_again():
    maps, truth = hard_maps(2, (8, 9), 0), random_labels(3, (8, 9), 0)
    one, two = ThresholdCounts(3), ThresholdCounts(3)
    one.update(maps, [0, 1], truth)
    two.update(maps, [1, 2], truth)
    resumed = ThresholdCounts(3, counts=one.counts)
    resumed.update(maps, [1, 2], truth)
    assert np.array_equal((one + two).counts, resumed.counts) and one.counts.sum() * 2 == resumed.counts.sum()
    with pytest.raises(ArgumentError, match="different thresholds"):
        one + ThresholdCounts(3, (0.5,))
    with pytest.raises(ArgumentError, match="counts is int64"):
        ThresholdCounts(4, counts=one.counts)


def test_threshold_counts_refuse_what_does_not_fit():
    truth, counts = np.zeros((4, 4), dtype=np.uint8), ThresholdCounts(3)
    for maps, classes, message in (
        (torch.zeros(2, 4, 4), [0], "2, 4, 4.*1 classes"),
        (torch.zeros(1, 4, 5), [0], "1, 4, 5"),
        (torch.zeros(2, 4, 4), [1, 1], r"classes is \[1, 1\]"),
        (torch.zeros(1, 4, 4), [3], r"from 0 to 2"),
        (torch.tensor([0.5, math.nan]).repeat_interleave(16).view(2, 4, 4), [0, 1], "NaN or infinite"),
        (torch.full((1, 4, 4), math.inf), [0], "NaN or infinite"),
    ):
        with pytest.raises(ArgumentError, match=message):
            counts.update(maps, classes, truth)
    for thresholds in ((), (0.5, 0.4), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.5), (math.nan,)):
        with pytest.raises(ArgumentError, match="increasing"):
            ThresholdCounts(3, thresholds)
    with pytest.raises(ArgumentError, match="n_classes is 255"):
        ThresholdCounts(255)
    with pytest.raises(DataError, match="no pixel was counted"):
        counts.best()


def test_average_precision_equals_scikit_learn():
    rng = np.random.default_rng(0)
    scores = np.round(rng.standard_normal((200, 7)), 1)  # many equal scores
    labels = (rng.random((200, 7)) < np.linspace(0.02, 0.9, 7)).astype(np.float32)
    each, mean = average_precision(scores, labels)
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(7)]
    assert each == pytest.approx(expected, abs=1e-12) and mean == pytest.approx(np.mean(expected))


def test_class_without_positive_has_no_average_precision():
    each, mean = average_precision(np.array([[0.1, 0.2], [0.4, 0.3]]), np.array([[0, 1], [0, 0]]))
    assert each == [None, 0.5] and mean == 0.5
    assert average_precision(np.zeros((2, 2)), np.zeros((2, 2))) == ([None, None], None)
    with pytest.raises(ArgumentError, match="finite scores, labels of 0 and 1"):
        average_precision(np.zeros((2, 2)), np.full((2, 2), 255))


def test_labels_that_the_truth_does_not_have_are_left_out_on_request():
    """Two classes, of which the truth has one: a pixel that is taken for the other is missed all the same."""
    confusion = Confusion(2)
    confusion.update(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]))
    assert confusion.present.tolist() == [True, True, False]
    every, present = confusion.scores(), confusion.scores(only_present=True)
    assert every.iou == pytest.approx([1 / 2, 1 / 3, 0]) and every.miou == pytest.approx(5 / 18)
    assert present.iou == [pytest.approx(1 / 2), pytest.approx(1 / 3), None] and present.miou == pytest.approx(5 / 12)
    assert present.recall == pytest.approx(1 / 3) and present.precision == 1 and every.precision == pytest.approx(1 / 2)
    assert present.fn == pytest.approx(2 / 3)


def test_a_score_over_nothing_is_none_and_a_flat_curve_is_told():
    """Background alone in the ground truth: neither 100 for what is not predicted nor 0 for what is."""
    for predicted in (0, 1):
        confusion = Confusion(2)
        confusion.update(np.full((3, 3), predicted), np.zeros((3, 3), int))
        assert confusion.scores() == Scores(None, [None] * 3, None, None, None, None)
    counts = ThresholdCounts(2)
    counts.update(np.full((1, 3, 3), 0.4, np.float32), [0], np.zeros((3, 3), int))
    assert set(counts.miou_curve()) == {None} and counts.best()[1].miou is None
    counts.update(np.full((1, 3, 3), 0.9, np.float32), [0], np.ones((3, 3), int))
    assert len(set(counts.miou_curve())) > 1
