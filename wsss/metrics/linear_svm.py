"""A linear SVM on the features of images, as in the CAM paper (Zhou et al., CVPR 2016, section 4): how much the features say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsss.errors import BackendError, DataError
from wsss.metrics.semantic import average_precision

ACCURACY, MEAN_AP = "accuracy", "mean average precision"
LOWEST = -1e9   # a score


@dataclass(frozen=True)
class SvmScore:
    """`score` in [0, 1] on the test images, by `measure`; `c`: the chosen one; `validation`: its score in the cross-validation.
    """

    measure: str
    score: float
    c: float
    validation: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def require_sklearn() -> None:
    """Raise BackendError if scikit-learn cannot be imported."""
    try:
        import sklearn.svm  # noqa: F401
    except ImportError as error:
        raise BackendError(f"scikit-learn cannot be imported ({error}); the linear SVM on features needs it: run "
                           'pip install -e ".[features]", or pip install scikit-learn') from error


def svm_score(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, c: Sequence[float],
              folds: int, seed: int) -> SvmScore:
    """Train a linear SVM on the features of some images and test it on others.

    If every image has exactly one class, the classes are told apart and the measure is the accuracy; else there is an SVM for
    each class and the measure is the mean average precision of the classes that a test image shows. The features are standardised
    with the mean and standard deviation of the training images; the paper does not say how it scales them.

    Args:
        train, test: (N, D) and (M, D) float32.
        train_labels, test_labels: (N, C) and (M, C), 1 for each class that an image shows.
        c: the values of the SVM's C to choose from, by the measure in a cross-validation on the training images.
        folds: of the cross-validation.
        seed: of the folds and of the solver.

    Raises:
        BackendError: scikit-learn is not installed.
        DataError: the training images are fewer than the folds, or show fewer than two classes.
    """
    require_sklearn()
    known = int(train_labels.any(0).sum())
    if len(train) < folds or known < 2:
        raise DataError(f"a linear SVM cannot be trained on {len(train)} images with {known} classes, expected at least "
                        f"{folds} images (the folds of the cross-validation) with two classes. Choose a longer list")
    single = bool((train_labels.sum(1) == 1).all() and (test_labels.sum(1) == 1).all())
    validations = [(_validated(train, train_labels, single, value, folds, seed), value) for value in c]
    validation, best = max(validations, key=lambda pair: (pair[0], -pair[1]))   # of equal ones the smallest C
    score = _measured(_scores(train, train_labels, test, single, best, seed), test_labels, single)
    return SvmScore(ACCURACY if single else MEAN_AP, score, best, validation)


def _validated(features: np.ndarray, labels: np.ndarray, single: bool, c: float, folds: int, seed: int) -> float:
    """The measure on the training images, each scored by the SVM that was trained without its fold."""
    from sklearn.model_selection import KFold

    scores = np.zeros(labels.shape)
    for rest, fold in KFold(folds, shuffle=True, random_state=seed).split(features):
        scores[fold] = _scores(features[rest], labels[rest], features[fold], single, c, seed)
    return _measured(scores, labels, single)


def _scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, single: bool, c: float, seed: int) -> np.ndarray:
    """The scores (M, C) of the test images: with `single` 1 for the predicted class, else the distance from the SVM's plane, and
    the lowest score for classes that all or no training images show."""
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    scores = np.zeros((len(test), labels.shape[1])) if single else np.full((len(test), labels.shape[1]), LOWEST)
    learned = np.flatnonzero(labels.any(0) & ~labels.all(0))
    svm = LinearSVC(C=c, random_state=seed)
    if single and len(learned):
        model = make_pipeline(StandardScaler(), svm).fit(train, labels.argmax(1))
        scores[np.arange(len(test)), model.predict(test)] = 1
    elif len(learned) > 1:
        model = make_pipeline(StandardScaler(), OneVsRestClassifier(svm)).fit(train, labels[:, learned].astype(int))
        scores[:, learned] = model.decision_function(test)
    return scores


def _measured(scores: np.ndarray, labels: np.ndarray, single: bool) -> float:
    return float((scores * labels).sum(1).mean()) if single else average_precision(scores, labels)[1] or 0.0
