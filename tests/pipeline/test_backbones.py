"""All eight steps with backbones of every kind, on images whose sides are no multiples of a stride."""

import json

import numpy as np
import pytest

from pipeline import Pipeline
from steps.runtime.artifacts import Maps
from wsss.networks.facts import read_metadata
from wsss.networks.weights import read_tensors

SMALL = ("experiment=smoke", "backbone.pretrained=false", "data.image_size=60", "data.n_train=4", "data.n_val=1", "train_cam.epochs=1",
         "train_cam.batch_size=2", "make_cam.scales=[1.0,0.5]", "train_irn.epochs=1", "train_irn.batch_size=2", "make_lpcam.n_clusters=2",
         "make_lpcam.cam_threshold=0.3", "refiner=walk", "threads=1", "report.write=false")
STRIDES = {"resnet18": (16, 5), "tf_efficientnet_lite0": (16, 4), "vgg16": (16, 3), "vgg16_28": (8, 3), "googlenet_gap classifier=gap": (16, 4),
           "timm backbone.network=deit_tiny_patch16_224": (16, 4), "timm backbone.network=convnext_femto": (16, 4)}   # stride, stages


@pytest.mark.slow
@pytest.mark.parametrize("chosen", STRIDES)
def test_every_step_runs(chosen, tmp_path):
    pipeline = Pipeline.compose(*SMALL, *f"backbone={chosen}".split(), f"outputs={tmp_path}")
    summary = pipeline.run()
    assert list(summary["scores"]) == ["make_cam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels"]
    stride, stages = STRIDES[chosen]
    folder, dataset = pipeline.folder.path, pipeline.dataset
    for name in ("make_cam", "make_lpcam"):
        maps, uneven = Maps(folder / name), 0
        for image_id in dataset.lists["train"]:
            facts = maps.facts(image_id)
            height, width = dataset.working_size(image_id)
            uneven += height % stride > 0 and width % stride > 0
            halves = [int(np.round(side / 2)) for side in (height, width)]
            assert facts["grids"] == [[-(-side // stride) for side in size] for size in ((height, width), halves)]
            assert maps.at(image_id, "full").shape[1:] == (height, width)
        assert uneven
    weights = folder / "train_irn/weights.safetensors"
    assert len({name.split(".")[0] for name in read_tensors(weights) if name.startswith("fc_edge")}) == stages + 1
    assert all(line["loss"] > 0 for line in map(json.loads, (folder / "train_irn/log.jsonl").read_text().splitlines()) if "loss" in line)
    assert read_metadata(weights)["backbone"]["norm"] == "group"
