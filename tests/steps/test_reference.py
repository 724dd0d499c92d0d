"""The steps themselves, from the classifier's weights to scored pseudo masks, against the official code's files.

Everything goes through our stored form: float16 maps on their feature grids, prototypes and weights read from files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cluster.machine import prepared_process
from pipeline.config import compose, typed
from pipeline.contexts import make_context
from pipeline.order import sources
from steps import cam_to_ir_label, eval_cam, eval_sem_seg, make_cam, make_lpcam, make_sem_seg_labels
from steps.runtime.artifacts import Maps, read_json, write_arrays
from steps.runtime.context import Runtime
from steps.runtime.journal import merge_journals
from steps.runtime.networks import WEIGHTS
from tests.reference import EXPECTED, IDS, REFERENCE, load
from tests.wsss.reference_networks import reference_classifier, reference_irn
from wsss.data.dataset import Dataset
from wsss.data.images import read_mask
from wsss.networks.weights import save_weights
from wsss.refiners.walk import Walk

N_CLASSES = 20
FACTS = {"backbone": {"method": "resnet", "depth": "resnet50", "norm": "frozen_batch"}, "classifier": {"method": "plain", "loss": "soft_margin"},
         "n_classes": N_CLASSES}


def reference_dataset() -> Dataset:
    labels = np.load(REFERENCE / "labels.npy")
    return Dataset(name="reference", root=REFERENCE, classes=tuple(f"class{i}" for i in range(N_CLASSES)),
                   lists={"train": IDS, "val": (), "all": IDS},
                   labels={image_id: tuple(np.flatnonzero(row).tolist()) for image_id, row in zip(IDS, labels, strict=True)},
                   image_files={image_id: f"JPEGImages/{image_id}.jpg" for image_id in IDS},
                   mask_files={image_id: f"SegmentationClass/{image_id}.png" for image_id in IDS})


def write_prototypes(path: Path) -> None:
    """The prototypes of the reference case in the form of `prototypes.npz`."""
    with np.load(REFERENCE / "prototypes.npz") as file:
        rows = [(index, kind == "bg", center) for index in range(N_CLASSES) for kind in ("fg", "bg") for center in file[f"{kind}_{index}"]]
    index, context, center = zip(*rows, strict=True)
    write_arrays(path, class_index=np.array(index), is_background=np.array(context), center=np.stack(center),
                 kept=np.ones(len(rows), bool))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def run(tmp_path_factory, request) -> Iterator[Path]:
    """The six steps after the classifier, with the official recipe."""
    folder, device = tmp_path_factory.mktemp("reference"), torch.device(request.param)
    with prepared_process(torch.get_num_threads(), device):
        torch.use_deterministic_algorithms(device.type == "cuda")   # a run only warns of operations without a deterministic form
        make(folder, device)
    yield folder


def make(folder: Path, device: torch.device) -> None:
    config = typed(compose(["recipe=official"]))
    for name, network in (("train_cam", reference_classifier()), ("train_irn", reference_irn())):
        (folder / name).mkdir()
        save_weights(folder / name / WEIGHTS, network, FACTS)
    (folder / "make_lpcam").mkdir()
    write_prototypes(folder / "make_lpcam/prototypes.npz")
    for step in (make_cam, make_lpcam, eval_cam, cam_to_ir_label, make_sem_seg_labels, eval_sem_seg):
        name = step.__name__.split(".")[-1]
        (folder / name).mkdir(exist_ok=True)
        step.run(make_context(config, reference_dataset(), name, {"ids": IDS, "prototypes": IDS, "scored": IDS, "val": ()}, folder / name,
                              sources(config, name), lambda source: folder / source, Runtime(device=device)))
        if not name.startswith("eval"):
            merge_journals(folder / name, IDS)


@pytest.mark.parametrize(("step", "official"), [("make_cam", "cam"), ("make_lpcam", "lpcam")])
@pytest.mark.parametrize("image_id", IDS)
def test_both_official_maps_come_back_from_the_stored_ones(run, step, official, image_id):
    maps, expected = Maps(run / step), load(official, image_id)
    assert maps.classes(image_id) == expected["keys"].tolist()
    for resolution, name in (("strided", "cam"), ("full", "high_res")):
        # 1e-3 of a map whose maximum is 1
        np.testing.assert_allclose(maps.at(image_id, resolution).numpy(), expected[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize("image_id", IDS)
def test_the_maximum_of_a_cam_is_below_1_by_the_official_epsilon(run, image_id):
    ours, official = (maps.max(axis=(1, 2)) for maps in (Maps(run / "make_cam").at(image_id, "full").numpy(),
                                                         load("cam", image_id)["high_res"]))
    assert (official < 1).all()
    np.testing.assert_allclose(ours, official, rtol=0, atol=2e-7)


def agreement(label: np.ndarray, expected: np.ndarray) -> float:
    return float((label == expected).mean())


@pytest.mark.parametrize(("step", "official"), [("cam_to_ir_label", "ir_label"), ("make_sem_seg_labels", "sem_seg")])
def test_labels_and_pseudo_masks(run, step, official):
    shares = {image_id: agreement(read_mask(run / step / f"{image_id}.png"), read_mask(REFERENCE / official / f"{image_id}.png"))
              for image_id in IDS}
    assert min(shares.values()) >= 0.999, shares


def test_scores_of_the_pseudo_masks(run):
    scores, expected = read_json(run / "eval_sem_seg/scores.json"), EXPECTED["eval"]["sem_seg"]
    assert [iou is None for iou in scores["iou"]] == [iou is None for iou in expected["iou"]]
    assert scores["miou"] == pytest.approx(expected["miou"], abs=1e-3)   # a pixel in a thousand may differ
    assert (scores["threshold"], scores["images"]) == (0.35, 4)


@pytest.mark.parametrize(("kind", "threshold", "official"), [("make_cam", 0.15, "cam@0.15"), ("make_lpcam", 0.30, "lpcam@0.3")])
def test_scores_of_the_maps_at_the_published_thresholds(run, kind, threshold, official):
    scores = read_json(run / "eval_cam/scores.json")["scores"][kind]
    assert scores["threshold"] == threshold and "configuration" in scores["threshold_source"]
    assert scores["miou"] == pytest.approx(EXPECTED["eval"][official]["miou"], abs=2e-4)   # through float16 maps
    assert scores["oracle"]["miou"] >= scores["miou"] == scores["curve"]["miou"][round(100 * threshold)]


def test_settings_are_those_of_the_official_code():
    config = typed(compose(["recipe=official"]))
    assert (config.make_cam.scales, config.cam_to_ir_label.conf_fg, config.cam_to_ir_label.conf_bg) == ([1.0, 0.5, 1.5, 2.0], 0.45, 0.25)
    assert config.refiner == Walk(beta=10.0, exp_times=8, scale_steps=False, radius=5, pad_to=None)
    assert config.make_sem_seg_labels.bg_threshold == 0.35
    assert (config.train_cam.momentum, config.train_cam.power, config.train_cam.head_lr_mult) == (1e-4, 0.9, 10.0)
