"""PASCAL VOC as a run sees it: the lists of every step are the official ones, by configuration alone."""

import pytest

from pipeline import Pipeline
from pipeline.lists import derive_lists
from tests.wsss.test_voc import ALL, AUG, TRAIN, VAL, build
from wsss.data import prepare_voc
from wsss.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "VOCdevkit" / "VOC2012")


@pytest.fixture
def compose(root, tmp_path):
    """`compose(*overrides)` composes a run on the small VOC folder, in an `outputs` of its own, from scratch: nothing is downloaded."""
    return lambda *overrides: Pipeline.compose("data=voc12", f"data.root={root}", f"outputs={tmp_path / 'out'}", "threads=1",
                                               "model.pretrained=false", "model.backbone=resnet18", "data.image_size=96", *overrides)


def lists(pipeline):
    return {step: {purpose: set(ids) for purpose, ids in of.items()} for step, of in
            derive_lists(pipeline.config, pipeline.dataset).items()}


def test_the_settings_are_the_official_ones(root):
    config = Pipeline.compose("data=voc12", f"data.root={root}").config
    assert config.model.pretrained and config.train_cam.crop_size == config.train_irn.crop_size == 512
    assert config.run_name == "voc12-clean" and config.data.max_side is None


def test_every_step_has_the_official_lists(compose, root, tmp_path):
    pipeline = compose("recipe=official")
    assert [planned.name for planned in pipeline.plan()] == pipeline.config.steps and not (tmp_path / "out").exists()
    train, aug, val = set(TRAIN), set(AUG), set(VAL)
    assert lists(pipeline) == {
        "train_cam": {"ids": aug, "val": val}, "make_cam": {"ids": aug}, "make_lpcam": {"ids": aug, "prototypes": train},
        "eval_cam": {"scored": train, "val": set()}, "cam_to_ir_label": {"ids": aug}, "train_irn": {"ids": aug},
        "make_sem_seg_labels": {"ids": train, "val": set()}, "eval_sem_seg": {"scored": train}}


def test_the_clean_recipe_chooses_on_val_and_other_lists_can_be_named(compose):
    (pipeline := compose()).plan()
    assert lists(pipeline)["make_cam"]["ids"] == set(ALL) and lists(pipeline)["eval_cam"]["val"] == set(VAL)
    (pipeline := compose("make_sem_seg_labels.split=train_aug", "eval_sem_seg.split=train_aug")).plan()
    assert lists(pipeline)["make_sem_seg_labels"]["ids"] == set(AUG)
    with pytest.raises((ConfigError, DataError), match="no list 'trainaug' .* expected one of train, train_aug, val, all"):
        compose("train_cam.split=trainaug").plan()


def test_the_baseline_without_lpcam(compose):
    (pipeline := compose("experiment=irn", "recipe=irn")).plan()
    assert lists(pipeline)["make_cam"]["ids"] == set(AUG)


def test_keeping_the_labels_changes_nothing_of_a_plan(compose, root):
    before = [str(row) for row in compose().plan()]
    prepare_voc(root)
    assert [str(row) for row in compose().plan()] == before
