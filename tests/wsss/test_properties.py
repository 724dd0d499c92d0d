"""Properties of the pure science that hold for any input, tried on inputs that hypothesis makes up and shrinks."""

import numpy as np
import pytest
import torch

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

from wsss.cams.maps import at_size, pack, rebuild, unpack  # noqa: E402
from wsss.data.rle import decode_rle  # noqa: E402
from wsss.metrics.semantic import Confusion, ThresholdCounts  # noqa: E402
from wsss.refinement.crf import DenseCRF, unary_from_labels  # noqa: E402
from wsss.refinement.walk import random_walk  # noqa: E402
from wsss.text import safe_names  # noqa: E402

settings.register_profile("short", max_examples=25, deadline=None, database=None, derandomize=True)
settings.load_profile("short")

SIDES = st.integers(1, 12)
UNIT = st.floats(0, 1, width=32)
SEEDS = st.integers(0, 2**32 - 1)


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(SIDES, SIDES, st.integers(0, 4), st.floats(0.01, 20), st.integers(1, 6), SEEDS)
def test_the_walk_conserves_mass(height, width, exp_times, beta, radius, seed):
    """The probabilities of where a pixel's score is from have the sum 1 (IRN, `indexing.propagate_to_edge`): what is equal
    everywhere stays, and nothing leaves the range of the scores."""
    rng = draws(seed)
    edge = torch.from_numpy(rng.random((height, width)).astype(np.float32)) * 0.9
    scores = torch.from_numpy(rng.random((2, height, width)).astype(np.float32))
    scores[0] = 0.25
    walked = random_walk(scores / (1 - edge), edge, beta=beta, exp_times=exp_times, radius=radius)   # it multiplies by 1 - edge
    assert walked.shape == scores.shape and torch.allclose(walked[0], scores[0], rtol=1e-4)
    assert scores[1].min() - 1e-4 <= walked[1].min() <= walked[1].max() <= scores[1].max() + 1e-4


@given(SIDES, SIDES, st.integers(2, 5), SEEDS)
def test_the_crf_knows_no_label_by_its_number(height, width, n_labels, seed):
    rng = draws(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    labels, order = rng.integers(0, n_labels, (height, width)), rng.permutation(n_labels)
    crf = DenseCRF(image)
    plain = crf.inference(unary_from_labels(labels, n_labels), 3)
    permuted = crf.inference(unary_from_labels(order[labels], n_labels), 3)
    assert torch.allclose(permuted[torch.from_numpy(order)], plain, atol=1e-5)
    assert torch.allclose(plain.sum(0), torch.ones(plain.shape[1:]), atol=1e-5)


@given(SIDES, SIDES, st.integers(1, 4), SEEDS)
def test_scores_are_those_of_a_slow_count(height, width, n_classes, seed):
    rng = draws(seed)
    prediction = rng.integers(0, n_classes + 1, (height, width)).astype(np.uint8)
    truth = np.where(rng.random((height, width)) < 0.2, 255, rng.integers(0, n_classes + 1, (height, width))).astype(np.uint8)
    counts = Confusion(n_classes)
    counts.update(prediction, truth)
    pairs = [(p, t) for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist()) if t != 255]
    if not any(t for _, t in pairs):   # background alone: no score says anything of a class
        assert counts.scores().miou is None
        return
    for label, found in enumerate(counts.scores().iou):
        both, either = sum(p == t == label for p, t in pairs), sum(label in pair for pair in pairs)
        assert (found is None and not either) or found == pytest.approx(both / either)


@given(SIDES, SIDES, st.integers(1, 3), SEEDS)
def test_thresholds_are_counted_as_by_cutting_at_each(height, width, n_classes, seed):
    rng = draws(seed)
    maps = torch.from_numpy(np.round(rng.random((n_classes, height, width)), 2).astype(np.float32))
    truth = rng.integers(0, n_classes + 1, (height, width)).astype(np.uint8)
    counts = ThresholdCounts(n_classes, (0.1, 0.5, 0.9))
    counts.update(maps, list(range(n_classes)), truth)
    for number, threshold in enumerate((0.1, 0.5, 0.9)):
        slow = Confusion(n_classes)
        background = torch.full((1, height, width), threshold)
        slow.update(torch.cat([background, maps]).argmax(0).numpy().astype(np.uint8), truth)
        assert counts.scores(number).iou == slow.scores().iou


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3), st.integers(0, 3), SIDES, SIDES, SEEDS)
def test_maps_of_any_size_and_grid(grids, classes, height, width, seed):
    rng = draws(seed)
    maps = [torch.from_numpy(rng.random((classes, *grid)).astype(np.float32)) for grid in grids]
    packed, maxima = pack(maps)
    for first, again in zip(maps, unpack(packed, grids)):
        assert torch.allclose(again * maxima[:, None, None], first, atol=2e-3)
    for size, shape in (("full", (height, width)), ("strided", (-(-height // 4), -(-width // 4)))):
        rebuilt = rebuild(packed, height, width, grids, size, pad=1)
        assert rebuilt.shape == (classes, *shape) and rebuilt.isfinite().all()
        assert not rebuilt.numel() or 0 <= rebuilt.min() <= rebuilt.max() <= 1 + 1e-5
    assert at_size(rebuilt, (height + 3, width)).shape == (classes, height + 3, width)


@given(arrays(bool, st.tuples(SIDES, SIDES)))
def test_run_lengths_say_the_mask(mask):
    flat = mask.T.reshape(-1)
    bounds = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    runs = [0] * bool(flat[0]) + np.diff(bounds).tolist()
    assert (decode_rle({"size": list(mask.shape), "counts": runs}) == mask).all()


@given(st.lists(st.text("aA.=/é\u0301ß\0ⅷ~2 ", max_size=40) | st.text(max_size=5), max_size=5))
def test_names_of_files_differ_and_stay_in_their_folder(names):
    found = safe_names(names)
    assert len({name.casefold() for name in found}) == len(found) and len(found) == len(names)
    assert not any("/" in name or "\0" in name or name in (".", "..") or len(name.encode()) > 140 for name in found)
