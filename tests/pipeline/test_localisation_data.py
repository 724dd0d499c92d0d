"""Data sets with boxes, and with more classes than a mask has values for, as a run sees them."""

import re

import pytest

from pipeline import Pipeline
from pipeline.commandline import act
from tests.conftest import TINY, quick_plan
from tests.wsss.test_boxes import with_xml
from tests.wsss.test_wsol import TREES, build
from wsss.errors import ConfigError


@pytest.fixture
def compose(tmp_path):
    """`compose(kind, *overrides)` composes a run on the drawn tree of `kind`."""
    def composed(kind, *overrides):
        root = tmp_path / kind
        if not root.exists():
            build(root, kind)
        return Pipeline.compose(f"data={kind}", f"data.root={root}", f"outputs={tmp_path / 'out'}", "threads=1", *TINY, "data.image_size=32",
                                "train_cam.epochs=1", "train_cam.batch_size=4", *overrides)
    return composed


def test_a_step_that_writes_masks_is_refused_before_any_work(compose, tmp_path):
    for steps in ("train_cam,make_cam,make_sem_seg_labels", "train_cam,make_cam,cam_to_ir_label"):
        with pytest.raises(ConfigError, match=rf"{steps.split(',')[-1]} writes 8-bit masks, which have values for 254 classes, but data set ilsvrc has 300"):
            compose("ilsvrc", f"steps=[{steps}]", "seed_maps=make_cam", "refiner=crf").plan()
    assert not (tmp_path / "out").exists()


def test_maps_of_300_classes(compose, tmp_path):
    """The class of an image is beyond the values of a mask in its maps and in the report."""
    compose("ilsvrc", "steps=[train_cam,make_cam]", "make_cam.split=all", "name=many").run()
    lines = (tmp_path / "out/many/make_cam/index.jsonl").read_text().splitlines()
    assert len(lines) == 10 and sum('"classes": [299]' in line for line in lines) == 5
    assert (tmp_path / "out/many/report/report.html").exists()


@pytest.mark.parametrize("kind", TREES)
def test_every_list_can_be_named(compose, kind):
    pipeline = compose(kind, "steps=[train_cam,make_cam]", "train_cam.split=train_proxy", "make_cam.split=test")
    ids = {planned.name: planned.lists["ids"] for planned in quick_plan(pipeline)}
    assert ids == {"train_cam": pipeline.dataset.lists["train_proxy"], "make_cam": pipeline.dataset.lists["test"]}


def test_prepare_counts_the_boxes(tmp_path, capsys):
    root = with_xml(tmp_path / "photos")
    for difficult, train, all_ in (("true", 3, 4), ("false", 2, 3)):
        assert act(Pipeline.compose("action=prepare", "data=folder", f"data.root={root}", f"data.difficult={difficult}", f"outputs={tmp_path / 'out'}")) == 0
        shown = capsys.readouterr().out
        assert re.search(rf"list train +2 +ok +0 with masks, 2 with boxes \({train} boxes\)\n", shown)
        assert re.search(rf"list all +4 +ok +0 with masks, 4 with boxes \({all_} boxes\)\n", shown)
