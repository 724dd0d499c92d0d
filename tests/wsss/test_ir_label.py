"""IR labels against the official ones and against the rule written pixel by pixel."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from tests.reference import IDS, REFERENCE, load
from wsss.errors import ArgumentError
from wsss.refinement.crf import crf_labels
from wsss.refinement.ir_label import ir_label

CONF = dict(conf_fg=0.45, conf_bg=0.25)


@pytest.mark.parametrize("image_id", IDS)
def test_equals_the_official_label(image_id):
    image = imageio.imread(REFERENCE / "JPEGImages" / f"{image_id}.jpg")
    official = imageio.imread(REFERENCE / "ir_label" / f"{image_id}.png")
    maps = load("lpcam", image_id)
    label = ir_label(image, maps["high_res"], maps["keys"], **CONF)
    assert label.dtype == torch.uint8 and torch.equal(label, ir_label(image, maps["high_res"], maps["keys"], **CONF))
    assert (label.numpy() == official).mean() >= 0.999
    assert {0, 255} < set(np.unique(official))  # every branch of the rule is in it


def test_is_the_rule_applied_to_two_separate_crfs():
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    maps = torch.nn.functional.interpolate(torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(3)), (30, 41))[0]
    label = ir_label(image, maps, [4, 252], conf_fg=0.6, conf_bg=0.3).numpy()
    keys = [0, 5, 253]
    refined = []
    for threshold in (0.6, 0.3):
        seed = np.concatenate([np.full((1, 30, 41), threshold, np.float32), maps.numpy()]).argmax(0)
        refined.append(crf_labels(image, seed, 3).numpy())
    for row, column in np.ndindex(30, 41):
        fg, bg = (keys[r[row, column]] for r in refined)
        assert label[row, column] == (fg if fg else 255 if bg else 0)


def test_no_class_and_no_activation_are_background():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    for maps, classes in ((np.zeros((0, 7, 9), np.float32), []), (np.zeros((2, 7, 9), np.float32), [3, 1])):
        label = ir_label(image, maps, classes, **CONF)
        assert label.shape == (7, 9) and label.dtype == torch.uint8 and (label == 0).all()
    tie = ir_label(np.zeros((8, 8, 3), np.uint8), np.full((1, 8, 8), 0.25, np.float32), [0], conf_fg=0.25, conf_bg=0.25)
    assert (tie == 0).all()


def test_certain_everywhere_and_a_single_pixel():
    assert (ir_label(np.full((6, 5, 3), 9, np.uint8), torch.ones(1, 6, 5), [19], **CONF, device="cpu") == 20).all()
    assert ir_label(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), np.float16), np.array([7]), **CONF).tolist() == [[8]]
    assert ir_label(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 1), 0.3), [7], **CONF).tolist() == [[255]]


IMAGE, MAPS = np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5), np.float32)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(maps=MAPS[:, :2]), r"maps has shape \(2, 2, 5\), image \(4, 5, 3\).*resize the maps"),
    (dict(maps=MAPS[0]), r"maps has shape \(4, 5\)"),
    (dict(maps=MAPS + 255), r"maps holds values 255..255; expected finite values of at most 1: divide"),
    (dict(maps=MAPS * np.nan), r"maps holds values nan..nan"),
    (dict(classes=[1]), r"classes has shape \(1,\); expected \(2,\)"),
    (dict(classes=[1, 1]), r"classes is \[1, 1\]; expected distinct 0-based"),
    (dict(classes=[1, 254]), r"at most 253"),
    (dict(conf_bg=0.5), r"conf_bg is 0.5, conf_fg is 0.45; expected 0 <= conf_bg <= conf_fg <= 1"),
    (dict(image=IMAGE / 255), r"image has shape \(4, 5, 3\) and is torch.float64; expected"),
    (dict(gt_prob=0), "gt_prob is 0; expected a probability"),
    (dict(backend="numpy"), "backend is 'numpy'; expected one of"),
])
def test_errors_name_the_argument_and_what_is_expected(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ir_label(**(dict(image=IMAGE, maps=MAPS, classes=[0, 1], **CONF) | arguments))
