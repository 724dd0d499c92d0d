"""COCO 2014 as a data set of the pipeline: planned like any other, refused before work where it is not prepared."""

import json

import numpy as np
import pytest

from pipeline import Pipeline
from tests.conftest import TINY
from tests.wsss.test_coco import BOOK, TRAIN, H, W, build, train_id
from wsss.data import prepare_coco
from wsss.data.coco_layout import CLASS_INDEX
from wsss.data.images import read_mask
from wsss.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2


def compose(tmp_path, *overrides):
    return Pipeline.compose("data=coco14", f"data.root={tmp_path / 'coco'}", f"outputs={tmp_path / 'out'}", "threads=1", *overrides)


def test_it_is_planned(tmp_path):
    prepare_coco(build(tmp_path / "coco"))
    plan = compose(tmp_path, "recipe=official", "backbone.pretrained=false").plan()
    assert len(plan) == 8
    for step in plan:   # the official list of every step is train2014
        assert step.action == "run" and (step.name == "train_cam" or set().union(*step.lists.values()) == set(map(train_id, TRAIN)))
    assert not (tmp_path / "out").exists()
    config = compose(tmp_path, "recipe=official").config
    assert (config.data.image_size, config.backbone.pretrained, config.data.masks) == (512, True, "official")
    assert config.train_cam.crop_size == config.train_irn.crop_size == 512


def test_every_step_on_images_with_and_without_objects(tmp_path):
    """Images of no object and of nothing but a crowd are background from the classifier to the score, which is of 81 classes."""
    prepare_coco(build(tmp_path / "coco"), "clean")
    summary = compose(tmp_path, "data.masks=clean", "name=all", *TINY, "data.image_size=32",
                      "train_cam.epochs=2", "train_cam.batch_size=4", "train_irn.epochs=1", "train_irn.batch_size=4",
                      "make_lpcam.n_clusters=2", "make_cam.scales=[1.0,0.5]").run()
    run, train = tmp_path / "out" / "all", list(map(train_id, TRAIN))
    assert len(summary["scores"]["make_sem_seg_labels"]["iou"]) == len(summary["scores"]["make_lpcam"]["iou"]) == 81
    assert summary["scores"]["make_sem_seg_labels"]["images"] == len(train)
    assert np.shape(json.loads((run / "eval_sem_seg" / "scores.json").read_text())["confusion"]) == (81, 81)
    empty = train_id(30)
    assert np.load(run / "make_cam" / f"{empty}.npy").shape[0] == np.load(run / "make_lpcam" / f"{empty}.npy").shape[0] == 0
    for step in ("cam_to_ir_label", "make_sem_seg_labels"):
        label = read_mask(run / step / f"{empty}.png")
        assert label.shape == (H, W) and not label.any()
    crowd = read_mask(run / "make_sem_seg_labels" / f"{train_id(34)}.png")   # it is labelled, as officially, though its mask is 255
    assert set(np.unique(crowd)) <= {0, CLASS_INDEX[BOOK] + 1}


def test_unprepared_or_of_the_other_kind_it_is_refused_before_work(tmp_path):
    build(tmp_path / "coco")
    with pytest.raises(DataError, match="is not prepared: there is no image_labels.csv.*action=prepare data=coco14"):
        compose(tmp_path, "backbone.pretrained=false").plan()
    with pytest.raises(ConfigError, match="data.masks='cleen' is not possible: expected one of official, clean"):
        compose(tmp_path, "data.masks=cleen")
    assert not (tmp_path / "out").exists()
