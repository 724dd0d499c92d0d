"""Average precision against cases counted by hand, a plain re-statement of the official evaluation, and pycocotools."""

import sys

import numpy as np
import pytest

from wsss.errors import ArgumentError, BackendError
from wsss.metrics.instances import CocoPrecision, InstancePrecision, intersection_over_union, precision_area
from wsss.refinement.instances import Detections, nothing_detected

SIZE = (20, 30)


def box(top, left, height, width):
    mask = np.zeros(SIZE, bool)
    mask[top:top + height, left:left + width] = True
    return mask


def detections(*found):
    """Each (score, class, mask); they must not overlap."""
    label = np.zeros(SIZE, np.uint8)
    for i, (_, _, mask) in enumerate(found, start=1):
        assert not label[mask].any()
        label[mask] = i
    return Detections(np.array([score for score, _, _ in found], np.float32), np.array([c for _, c, _ in found], np.int64), label)


def truth(*objects):
    """Each (class, mask)."""
    return np.array([mask for _, mask in objects], bool).reshape(-1, *SIZE), np.array([c for c, _ in objects], np.int64)


def precision_of(images, n_classes=3, **options):
    metric = InstancePrecision(n_classes, **options)
    for found, (masks, classes) in images:
        metric.update(found, masks, classes)
    return metric.average_precision()


A, B, C = box(0, 0, 10, 10), box(0, 10, 10, 10), box(10, 0, 10, 10)   # three boxes of 100 pixels that do not meet


def test_overlap():
    masks, _ = truth((0, A), (0, B), (0, box(0, 5, 10, 10)))
    found = detections((1, 0, A), (1, 0, box(0, 10, 5, 10)))
    assert np.allclose(intersection_over_union(found, masks), [[1, 0, 1 / 3], [0, 0.5, 25 / 125]])
    assert intersection_over_union(nothing_detected(SIZE), masks).shape == (0, 3)
    assert intersection_over_union(found, masks[:0]).shape == (2, 0)


@pytest.mark.parametrize(("right", "objects", "area"), [
    ([1], 1, 1.0), ([0], 1, 0.0), ([], 4, 0.0), ([1], 2, 0.5), ([0, 1], 1, 0.5), ([1, 0, 1], 2, 0.5 + 0.5 * 2 / 3),
    ([0, 1, 1], 2, 2 / 3),   # the precision at half the recall, 1/2, is lifted to the 2/3 that follows
    ([1, 0, 0, 1, 0], 4, 0.25 + 0.25 * 0.5)])
def test_areas_counted_by_hand(right, objects, area):
    scores = np.arange(len(right), 0, -1) / 10
    assert precision_area(scores, np.array(right, bool), objects) == pytest.approx(area)


def test_two_images_by_hand():
    images = [
        (detections((0.9, 0, A), (0.6, 0, C), (0.8, 1, B)), truth((0, A), (1, B))),       # right, wrong, right
        (detections((0.7, 0, A)), truth((0, A), (0, B), (2, C)))]                         # right; two are missed
    each, mean = precision_of(images)
    assert each == pytest.approx([2 / 3, 1.0, 0.0])   # class 0: right at 0.9 and 0.7 and wrong at 0.6, three objects
    assert mean == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_an_object_is_found_once_by_the_best_score_at_an_overlap_of_the_threshold_or_more():
    halves = detections((0.5, 0, box(0, 0, 6, 10)), (0.9, 0, box(6, 0, 4, 10)))
    assert precision_of([(halves, truth((0, A)))])[0][0] == pytest.approx(0.5)      # 0.9 overlaps by 0.4: wrong; 0.5 by 0.6
    assert precision_of([(halves, truth((0, A)))], iou=0.4)[0][0] == pytest.approx(1)   # 0.9 takes it; the other is wrong, later

    half = detections((1.0, 0, box(0, 0, 5, 10)))
    assert precision_of([(half, truth((0, A)))])[1] == 1
    assert precision_of([(half, truth((0, A)))], iou=0.51)[1] == 0


def test_a_detection_chooses_the_object_it_overlaps_most_even_when_that_is_taken():
    big, beside = box(0, 0, 10, 12), box(0, 0, 20, 8)   # two objects that overlap, as COCO's may
    found = detections((0.9, 0, box(0, 0, 10, 8)), (0.8, 0, box(0, 8, 10, 4)))
    each, _ = precision_of([(found, truth((0, big), (0, beside)))], iou=0.3)
    assert each[0] == pytest.approx(0.5)   # the second overlaps the taken one by a third


def test_without_objects_or_detections():
    assert precision_of([]) == ([None] * 3, None)
    assert precision_of([(detections((0.9, 0, A)), truth())]) == ([None] * 3, None)
    assert precision_of([(nothing_detected(SIZE), truth((1, A)))]) == ([None, 0.0, None], 0.0)
    each, mean = precision_of([(detections((0.9, 0, A)), truth()), (detections((0.8, 0, A)), truth((0, A)))])
    assert each == [0.5, None, None] and mean == 0.5   # what is found on an image without objects is wrong

    images = [(detections((0.0, 0, A), (0.5, 0, C)), truth((0, A)))]   # scores of 0 come last and count
    assert precision_of(images)[0][0] == pytest.approx(0.5)


def official(images, n_classes, iou=0.5):
    """chainercv's eval_instance_segmentation_voc, said again with loops over pixels' masks."""
    result = []
    for c in range(n_classes):
        ranked, n_objects = [], 0
        for found, (masks, classes) in images:
            objects, taken = [mask for mask, k in zip(masks, classes) if k == c], set()
            n_objects += len(objects)
            mine = [(score, mask) for score, k, mask in zip(found.score, found.classes, found.masks()) if k == c]
            for score, mask in sorted(mine, key=lambda pair: -pair[0]):
                overlaps = [(mask & other).sum() / (mask | other).sum() for other in objects]
                best = int(np.argmax(overlaps)) if overlaps else None
                right = best is not None and overlaps[best] >= iou
                ranked.append((score, right and best not in taken))
                if right:
                    taken.add(best)
        ranked.sort(key=lambda pair: -pair[0])
        if not n_objects:
            result.append(None)
            continue
        hits, recall, precision = 0, [0.0], [0.0]
        for i, (_, right) in enumerate(ranked, start=1):
            hits += right
            recall.append(hits / n_objects)
            precision.append(hits / i)
        recall.append(1.0)
        precision.append(0.0)
        for i in reversed(range(len(precision) - 1)):
            precision[i] = max(precision[i], precision[i + 1])
        result.append(sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall))))
    known = [ap for ap in result if ap is not None]
    return result, sum(known) / len(known)


def random_images(seed, n_images=12, n_classes=3):
    """Boxes on a grid, detections that are boxes moved a little; all scores differ."""
    draws, images, scores = np.random.default_rng(seed), [], iter(np.random.default_rng(seed + 1).permutation(1000) / 1000)
    for _ in range(n_images):
        cells = [(row, column) for row in (0, 10) for column in (0, 10, 20) if draws.random() < 0.7]
        objects, found = [], []
        for row, column in cells:
            c, height, width = int(draws.integers(n_classes)), *(int(side) for side in draws.integers(5, 9, 2))
            if draws.random() < 0.8:
                objects.append((c, box(row, column, height, width)))
            if draws.random() < 0.8:
                other = c if draws.random() < 0.8 else int(draws.integers(n_classes))
                found.append((next(scores), other, box(row + int(draws.integers(3)), column + int(draws.integers(3)), height - 1, width - 1)))
        images.append((detections(*found), truth(*objects)))
    return images


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_official_evaluation(seed):
    images = random_images(seed)
    each, mean = precision_of(images)
    expected, expected_mean = official(images, 3)
    assert [ap is None for ap in each] == [ap is None for ap in expected]
    assert [ap for ap in each if ap is not None] == pytest.approx([ap for ap in expected if ap is not None])
    assert mean == pytest.approx(expected_mean) and 0.1 < mean < 0.9


# COCO's way.

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2


def coco_of(images, n_classes=3):
    metric = CocoPrecision(n_classes)
    for found, (masks, classes) in images:
        metric.update(found, masks, classes)
    return metric.average_precision()


def test_the_two_agree_where_their_differences_do_not_matter():
    """When every class has either all objects found before anything wrong, or none found, the curve is a step."""
    images = [(detections((0.9, 0, A), (0.1, 0, C), (0.8, 1, B)), truth((0, A), (1, B), (2, C))),
              (detections((0.7, 0, B)), truth((0, B))), (nothing_detected(SIZE), truth())]
    each, mean = precision_of(images)
    assert each == [1.0, 1.0, 0.0]
    assert coco_of(images)["ap50"] == pytest.approx(mean, abs=1e-6)
    assert coco_of(images)["ap"] == pytest.approx(mean, abs=1e-6)   # all that is right is right exactly


@pytest.mark.parametrize("seed", range(3))
def test_the_two_are_near_each_other_elsewhere(seed, capsys):
    """101 recalls instead of all of them: less than 2 % with so few objects of a class."""
    images = random_images(seed, n_images=40)
    found = coco_of(images)
    assert found["ap50"] == pytest.approx(precision_of(images)[1], abs=0.02)
    assert 0 < found["ap"] < found["ap50"] and capsys.readouterr().out == ""


def test_coco_without_detections_or_objects():
    assert coco_of([(nothing_detected(SIZE), truth((0, A)))]) == {"ap50": 0.0, "ap": 0.0}
    assert coco_of([(detections((0.5, 0, A)), truth())]) == coco_of([]) == {"ap50": None, "ap": None}


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(BackendError, match="pycocotools cannot be imported .*run pip install pycocotools, or set eval_ins_seg.coco_style=false"):
        CocoPrecision(3)


@pytest.mark.parametrize("metric", [InstancePrecision, CocoPrecision])
@pytest.mark.parametrize(("masks", "classes"), [
    (np.zeros((1, 20, 31), bool), [0]), (np.zeros((2, *SIZE), bool), [0]), (np.zeros((1, *SIZE), np.uint8), [0]),
    (np.zeros((1, *SIZE), bool), [3]), (np.zeros((1, *SIZE), bool), [-1])])
def test_truth_that_does_not_fit(metric, masks, classes):
    with pytest.raises(ArgumentError, match=r"detections on \(20, 30\), masks .*expected bool masks"):
        metric(3).update(nothing_detected(SIZE), masks, classes)
