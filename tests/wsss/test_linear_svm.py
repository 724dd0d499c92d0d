"""A linear SVM on features, on data whose scores are known."""

import builtins

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from wsss.errors import BackendError, DataError
from wsss.metrics.linear_svm import ACCURACY, MEAN_AP, require_sklearn, svm_score
from wsss.metrics.semantic import average_precision

C = (1e-3, 0.1)


def classes_apart(n: int, seed: int, distance: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Features of n images of three classes, far apart, and their labels (n, 4): the fourth class is never shown."""
    draws = np.random.default_rng(seed)
    index = draws.integers(0, 3, n)
    return (distance * np.eye(3, 5)[index] + draws.standard_normal((n, 5))).astype(np.float32), np.eye(4, dtype=np.float32)[index]


def test_single_classes_are_scored_by_their_accuracy():
    (train, labels), (test, truth) = classes_apart(60, 0), classes_apart(40, 1)
    found = svm_score(train, labels, test, truth, C, 5, 0)
    assert (found.measure, found.c in C) == (ACCURACY, True) and found.score > 0.95 and found.validation > 0.95
    wrong = np.roll(truth, 1, axis=1)[:, :4]
    assert svm_score(train, labels, test, wrong, C, 5, 0).score < 0.05
    scale, shift = np.array([1e-4, 1, 1e4, 1, 1], np.float32), np.float32(3)   # features are standardised
    assert svm_score(train * scale + shift, labels, test * scale + shift, truth, C, 5, 0).score == pytest.approx(found.score, abs=0.03)


def test_it_is_the_svm_of_scikit_learn():
    (train, labels), (test, truth) = classes_apart(60, 0, 2.0), classes_apart(40, 1, 2.0)
    mean, std = train.mean(0), train.std(0)
    plain = LinearSVC(C=0.1, random_state=0).fit((train - mean) / std, labels.argmax(1))
    expected = (plain.predict((test - mean) / std) == truth.argmax(1)).mean()
    assert 0.5 < expected < 1 and svm_score(train, labels, test, truth, [0.1], 5, 0).score == pytest.approx(expected)


def test_several_classes_are_scored_by_their_mean_average_precision():
    draws = np.random.default_rng(2)
    train, test = (draws.standard_normal((n, 6)).astype(np.float32) for n in (80, 50))
    labels, truth = ((each[:, :3] > 0.3).astype(np.float32) for each in (train, test))   # each class has a feature of its own
    found = svm_score(train, labels, test, truth, C, 4, 0)
    assert found.measure == MEAN_AP and found.score > 0.95 and found.validation > 0.9
    plain = np.stack([LinearSVC(C=found.c, random_state=0).fit((train - train.mean(0)) / train.std(0), labels[:, k]).decision_function(
        (test - train.mean(0)) / train.std(0)) for k in range(3)], axis=1)
    assert found.score == pytest.approx(average_precision(plain, truth)[1])


def test_classes_that_are_not_learned_count_as_missed():
    (train, labels), (test, truth) = classes_apart(60, 0), classes_apart(40, 1)
    truth[:10] = np.eye(4)[3]   # a class that no training image shows
    assert svm_score(train, labels, test, truth, C, 5, 0).score == pytest.approx(30 / 40, abs=0.03)


def test_the_best_c_is_chosen_by_the_training_images():
    (train, labels), (test, truth) = classes_apart(90, 0, 3.0), classes_apart(10, 1)
    kept = np.flatnonzero(labels[:, 0] == 1).tolist() + np.flatnonzero(labels[:, 0] == 0)[:12].tolist()   # one class is frequent
    train, labels = train[kept], labels[kept]
    alone = {c: svm_score(train, labels, test, truth, [c], 5, 0).validation for c in (1e-6, 0.1)}
    assert alone[0.1] > alone[1e-6] + 0.02
    assert svm_score(train, labels, test, truth, [1e-6, 0.1], 5, 0).c == svm_score(train, labels, test[:1], truth[:1], [0.1, 1e-6], 5, 0).c == 0.1


@pytest.mark.parametrize(("images", "classes"), [(3, 3), (20, 1)])
def test_too_few_images_or_classes_are_refused(images, classes):
    labels = np.eye(3, dtype=np.float32)[np.arange(images) % classes]
    with pytest.raises(DataError, match=f"cannot be trained on {images} images with {classes} classes, expected at least 5 images"):
        svm_score(np.zeros((images, 2), np.float32), labels, np.zeros((1, 2), np.float32), labels[:1], C, 5, 0)


def test_without_scikit_learn_the_message_says_how_to_install_it(monkeypatch):
    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more: (_ for _ in ()).throw(ImportError("No module named 'sklearn'"))
                        if name.startswith("sklearn") else original(name, *more))
    with pytest.raises(BackendError, match=r"^scikit-learn cannot be imported \(No module named 'sklearn'\); .* pip install -e \".\[features\]\""):
        require_sklearn()
