"""UPerNet and the decoders of segmentation-models-pytorch in the pipeline, on a network of 20 thousand parameters."""

import importlib.util
import json

import pytest

from pipeline import Pipeline
from tests.conftest import SMOKE, actions, copied
from wsss.errors import BackendError, ConfigError
from wsss.networks.facts import read_metadata
from wsss.segmenters.smp import PACKAGE

GT = (*SMOKE, "steps=[train_seg,infer_seg,eval_seg]", "train_seg.labels=gt", "train_seg.absent_classes=true", "train_seg.epochs=null", "train_seg.steps=2",
      "train_seg.batch_size=4", "train_seg.parts=2", "train_seg.crop_size=64", "train_seg.max_val_images=2")
UPERNET = ("segmenter=upernet", "segmenter.width=8", "segmenter.auxiliary_width=8", "train_seg.resize=[256,64]", "segmenter.swin=true")
UNET = ("segmenter=smp", "infer_seg.flip=false")


@pytest.mark.parametrize("chosen", [UPERNET, pytest.param(UNET, marks=pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="segmentation-models-pytorch is not installed"))])
def test_two_steps_then_masks_and_scores(smoke_outputs, tmp_path, chosen):
    outputs = copied(smoke_outputs, tmp_path)
    words = (*GT, *chosen, f"outputs={outputs}", "name=seg")
    summary = Pipeline.compose(*words).run()
    assert 0 < summary["scores"]["infer_seg"]["miou"] < 1 and set(actions(Pipeline.compose(*words)).values()) == {"skip"}
    folder, name = outputs / "seg/train_seg", chosen[0].partition("=")[2]
    assert read_metadata(folder / "weights.safetensors")["segmenter"]["method"] == name
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line for line in log if "loss" in line]
    assert [line["step"] for line in losses] == [0, 1] and 0 < log[-1]["val_miou"] < 1
    if name == "upernet":
        assert all(line["loss"] == pytest.approx(line["decode"] + 0.4 * line["auxiliary"], rel=1e-6) for line in losses)


def test_a_part_of_a_batch_must_have_two_images_for_batch_norm(smoke_outputs, tmp_path):
    words = (*GT, *UPERNET, f"outputs={copied(smoke_outputs, tmp_path)}")
    with pytest.raises(ConfigError, match="train_seg.parts=3 splits a batch of 4 images into 3 parts, some with 1; segmenter=upernet needs 2 or more in "
                                          "each, for the statistics of its batch norm. Lower train_seg.parts or raise train_seg.batch_size"):
        Pipeline.compose(*words, "train_seg.parts=3").plan()
    Pipeline.compose(*words, "train_seg.parts=2").plan()
    Pipeline.compose(*GT, f"outputs={tmp_path}", "train_seg.parts=3").plan()


def test_a_decoder_that_does_not_fit_and_a_missing_package_are_said_when_planning(smoke_outputs, tmp_path, monkeypatch):
    pipeline = Pipeline.compose(*GT, "segmenter=smp", "segmenter.architecture=linknet", f"outputs={copied(smoke_outputs, tmp_path)}")
    if importlib.util.find_spec(PACKAGE) is not None:
        with pytest.raises(ConfigError, match="segmenter.architecture=linknet does not work with the stages of tiny, which have strides 4, 8, 16, 16"):
            pipeline.plan()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == PACKAGE else find(name, *more))
    with pytest.raises(BackendError, match="pip install 'segmentation-models-pytorch>=0.6'"):
        pipeline.plan()


def test_the_backbone_of_a_segmentation_network_is_chosen_by_its_group():
    with pytest.raises(ConfigError, match="train_seg.backbone.depth: there is no such key, because train_seg.backbone is null: choose a method by "
                                          "backbone@train_seg.backbone=NAME"):
        Pipeline.compose(*SMOKE, "train_seg.backbone.depth=resnet18")
    with pytest.raises(ConfigError, match="train_seg.backbone='tiny' is not possible: expected backbone@train_seg.backbone=NAME"):
        Pipeline.compose(*SMOKE, "train_seg.backbone=tiny")
