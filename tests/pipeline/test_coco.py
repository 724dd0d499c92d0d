"""COCO 2014 as a data set of the pipeline: planned like any other, refused before work where it is not prepared."""

import pytest

from pipeline import Pipeline
from tests.wsss.test_coco import TRAIN, build, train_id
from wsss.data import prepare_coco
from wsss.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")   # within pycocotools 2.0.11, with NumPy 2


def compose(tmp_path, *overrides):
    return Pipeline.compose("data=coco14", f"data.root={tmp_path / 'coco'}", f"outputs={tmp_path / 'out'}", "threads=1", *overrides)


def test_it_is_planned(tmp_path):
    prepare_coco(build(tmp_path / "coco"))
    plan = compose(tmp_path, "recipe=official", "model.pretrained=false").plan()
    assert len(plan) == 8
    for step in plan:   # the official list of every step is train2014
        assert step.action == "run" and (step.name == "train_cam" or set().union(*step.lists.values()) == set(map(train_id, TRAIN)))
    assert not (tmp_path / "out").exists()


def test_the_official_crop_and_start(tmp_path):
    config = compose(tmp_path).config
    assert (config.data.image_size, config.model.pretrained, config.data.masks) == (512, True, "official")
    assert config.train_cam.crop_size == config.train_irn.crop_size == 512


def test_unprepared_or_of_the_other_kind_it_is_refused_before_work(tmp_path):
    build(tmp_path / "coco")
    with pytest.raises(DataError, match="is not prepared: there is no image_labels.csv.*action=prepare data=coco14"):
        compose(tmp_path, "model.pretrained=false").plan()
    prepare_coco(tmp_path / "coco", "official")
    with pytest.raises(DataError, match="there are no clean masks, only official ones.*data.masks=clean"):
        compose(tmp_path, "data.masks=clean", "model.pretrained=false").plan()
    with pytest.raises(ConfigError, match="data.masks='cleen' is not possible: expected one of official, clean"):
        compose(tmp_path, "data.masks=cleen")
    assert not (tmp_path / "out").exists()
