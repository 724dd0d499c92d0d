"""Labels that a classifier contradicts, the halves that it trains on, and cells of csv files that a spreadsheet would compute."""

import csv

import numpy as np
import pytest

from wsss.metrics.label_doubts import contradictions, halves
from wsss.text import csv_text


def test_a_label_is_contradicted_by_what_the_classifier_finds():
    found = contradictions(np.array([[0.9, 0.2], [0.3, 0.1]]), np.array([[1, 0], [0, 1]]), np.array([[1, 1], [1, 0]]))
    np.testing.assert_allclose(found, [[0.1, 0.2], [0.3, 0.0]])   # the last class was not learned
    np.testing.assert_allclose(contradictions(np.array([[0.1]]), np.array([[1]])), [[0.9]])


def test_halves_have_the_same_label_sets():
    labels = np.repeat([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]], (10, 5, 4, 7), axis=0)
    half = halves(labels, np.random.default_rng(0))
    assert half.sum() == 13
    for present in np.unique(labels, axis=0):
        own = half[(labels == present).all(1)]
        assert abs(own.sum() - (1 - own).sum()) <= 1
    assert (half != halves(labels, np.random.default_rng(1))).any() and (half == halves(labels, np.random.default_rng(0))).all()


@pytest.mark.parametrize("cell, written", [
    ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-cat", "'-cat"), ("\t=1", "'\t=1"),
    ("-0.5", "-0.5"), ("+3", "+3"), (-2.5, "-2.5"), ("cat;=1", "cat;'=1"), ("", "")])
def test_no_cell_is_computed_by_a_spreadsheet(cell, written):
    [row] = csv.reader(csv_text([("id", cell)]).splitlines())
    assert row == ["id", written]
