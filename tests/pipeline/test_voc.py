"""PASCAL VOC as a run sees it: the lists of every step are the official ones, by configuration alone."""

import pytest

from pipeline import Pipeline
from pipeline.commandline import act
from pipeline.plan.lists import derive_lists
from tests.conftest import quick_plan
from tests.wsss.test_download import packed
from tests.wsss.test_voc import ALL, AUG, TRAIN, VAL, build
from wsss.data import prepare_voc, voc_prepare
from wsss.data.download import Archive
from wsss.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "VOCdevkit" / "VOC2012")


@pytest.fixture
def compose(root, tmp_path):
    """`compose(*overrides)` composes a run on the small VOC folder, in an `outputs` of its own, from scratch: nothing is downloaded."""
    return lambda *overrides: Pipeline.compose("data=voc12", f"data.root={root}", f"outputs={tmp_path / 'out'}", "threads=1",
                                               "backbone.pretrained=false", "backbone=resnet18", "data.image_size=96", *overrides)


def lists(pipeline):
    return {step: {purpose: set(ids) for purpose, ids in of.items()} for step, of in
            derive_lists(pipeline.config, pipeline.dataset).items()}


def test_the_settings_are_the_official_ones(root):
    for recipe in ("official", "paper", "irn"):
        config = Pipeline.compose("data=voc12", f"data.root={root}", f"recipe={recipe}").config
        assert config.backbone.pretrained and config.train_cam.crop_size == config.train_irn.crop_size == 512
        assert config.run_name == f"voc12-{recipe}" and config.data.max_side is None
    assert Pipeline.compose("data=voc12", f"data.root={root}").config.backbone.at_hand()   # clean needs no download


@pytest.mark.parametrize(("chosen", "masks"), [
    (["recipe=official"], TRAIN), (["experiment=lpcam_voc12"], TRAIN), (["experiment=irn_voc12"], TRAIN), (["experiment=irn", "recipe=irn"], TRAIN),
    (["recipe=official", "make_sem_seg_labels.split=train_aug"], AUG)])   # masks to hand over, scored on train
def test_every_step_has_the_official_lists(compose, root, tmp_path, chosen, masks):
    pipeline = compose(*chosen)
    assert [planned.name for planned in quick_plan(pipeline)] == pipeline.config.steps and not (tmp_path / "out").exists()
    train, aug, val = set(TRAIN), set(AUG), set(VAL)
    expected = {
        "train_cam": {"ids": aug, "log": val}, "make_cam": {"ids": aug}, "make_lpcam": {"ids": aug, "prototypes": train},
        "eval_cam": {"scored": train, "val": set()}, "cam_to_ir_label": {"ids": aug}, "train_irn": {"ids": aug},
        "make_sem_seg_labels": {"ids": set(masks), "val": set()}, "eval_sem_seg": {"scored": train}}
    assert lists(pipeline) == {step: expected[step] for step in pipeline.config.steps}


def test_the_clean_recipe_chooses_on_val_and_other_lists_can_be_named(compose):
    quick_plan(pipeline := compose())
    assert lists(pipeline)["make_cam"]["ids"] == set(ALL) and lists(pipeline)["eval_cam"]["val"] == set(VAL)
    quick_plan(pipeline := compose("make_sem_seg_labels.split=train_aug", "eval_sem_seg.split=train_aug"))
    assert lists(pipeline)["make_sem_seg_labels"]["ids"] == set(AUG)
    with pytest.raises((ConfigError, DataError), match="no list 'trainaug' .* expected one of train, train_aug, val, all"):
        compose("train_cam.split=trainaug").plan()


@pytest.mark.parametrize("overrides, message", [
    (["make_cam.split=train"], r"make_cam.split='train' covers 2 of the 4 ids that make_lpcam reads \(first missing: '2008_000008'\)"),
    (["make_lpcam.split=train", "make_sem_seg_labels.split=train_aug"], "make_lpcam.split='train' covers 2 of the 4 ids that cam_to_ir_label reads"),
    (["cam_to_ir_label.split=train"], "cam_to_ir_label.split='train' covers 2 of the 4 ids that train_irn reads"),
    (["make_sem_seg_labels.split=train", "eval_sem_seg.split=train_aug"],
     r"make_sem_seg_labels.split='train' covers 2 of the 4 ids that eval_sem_seg reads \(first missing: '2008_000008'\)"),
])
def test_a_list_that_does_not_cover_its_readers_is_refused(compose, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose("recipe=official", *overrides).plan()
    assert not (tmp_path / "out").exists()


def test_prepare_with_download_takes_the_archive_that_lies_there(compose, root, tmp_path, monkeypatch, capsys):
    archive = tmp_path / "new" / "VOCtrainval.tar"
    packed(archive, {f"VOCdevkit/VOC2012/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*") if path.is_file()})
    monkeypatch.setattr(voc_prepare, "_archives", lambda: (Archive("http://nowhere.invalid/VOCtrainval.tar", None, "VOCdevkit/VOC2012"),))
    assert act(compose("action=prepare", "download=true", f"data.root={archive.parent}")) == 0
    told = capsys.readouterr().out
    assert "files unpacked of VOCtrainval.tar     21" in told and "list train_aug" in told
    assert (archive.parent / "VOCdevkit/VOC2012/image_labels.csv").exists() and archive.exists()
    archive.unlink()
    assert act(compose("action=prepare", "download=true", f"data.root={archive.parent}")) == 1
    assert "http://nowhere.invalid/VOCtrainval.tar -> " in capsys.readouterr().err


@pytest.mark.parametrize("overrides", [["download=true"], ["download=true", "action=plan"], ["download=true", "action=prepare", "data=shapes"]])
def test_download_only_while_preparing_what_has_archives(overrides, capsys, tmp_path):
    with pytest.raises(ConfigError, match="download=True is not possible: expected false, except with action=prepare|"
                                          "only voc12, coco14 have official archives"):
        pipeline = Pipeline.compose(f"outputs={tmp_path / 'out'}", *overrides)
        if act(pipeline):
            raise ConfigError(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_keeping_the_labels_changes_nothing_of_a_plan(compose, root):
    before = [str(row) for row in compose().plan()]
    prepare_voc(root)
    assert [str(row) for row in compose().plan()] == before
