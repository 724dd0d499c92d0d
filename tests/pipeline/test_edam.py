"""EDAM in the pipeline: pairs train the classifier, its masks are the maps, and saliency maps of the data set make the background."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import Pipeline
from pipeline.contexts import make_context
from steps.parts.official import OfficialNetwork
from steps.parts.training_pictures import cam_pictures
from steps.runtime.artifacts import Maps
from steps.runtime.context import Runtime
from steps.runtime.imported_networks import imported_classifier
from steps.runtime.networks import load_classifier
from steps.runtime.schedule import WEIGHTS
from tests.conftest import SMOKE, actions, contents, interrupted, works
from tests.pipeline.test_distributed import together
from wsss.data.images import read_mask
from wsss.data.saliency import read_saliency
from wsss.errors import ConfigError, DataError, WeightsError
from wsss.official_networks import write_state

STEPS = ("train_cam", "make_cam", "eval_cam", "make_sem_seg_labels", "eval_sem_seg")
EDAM = (*SMOKE, f"steps=[{','.join(STEPS)}]", "name=edam", "seed_maps=make_cam", "classifier=edam", "classifier.hidden=8",
        "classifier.feed_forward=8", "cam=edam", "refiner=saliency", "data.saliency=drawn", "train_cam.epochs=2",
        "train_cam.checkpoint_steps=1", "train_cam.lr=2e-3", "make_cam.scales=[1.0,0.5]")


@pytest.fixture(scope="session")
def edam_outputs(made_once):
    """The finished run `edam`: never changed."""
    return made_once("edam", lambda outputs: Pipeline.compose(*EDAM, f"outputs={outputs}").run())


@pytest.fixture
def edam(edam_outputs, tmp_path):
    outputs = shutil.copytree(edam_outputs, tmp_path / "outputs", symlinks=True)
    return lambda *overrides: Pipeline.compose(*EDAM, f"outputs={outputs}", *overrides)


def opened(pipeline):
    pipeline.plan()
    return pipeline.dataset


def test_the_masks_are_the_maps_and_the_saliency_is_the_background(edam):
    pipeline, folder = edam(), edam().folder
    assert all(step.ok for step in edam().verify()) and works(edam()) == {}
    scores = json.loads((folder.path / "summary.json").read_text())["scores"]
    assert scores["make_cam"]["title"] == "EDAM" and scores["make_sem_seg_labels"]["refiner"] == "saliency"
    assert "replaces the background threshold" in scores["make_sem_seg_labels"]["threshold_source"]
    data, maps = opened(pipeline), Maps(folder.result("make_cam"))
    facts = maps.facts(image_id := data.lists["train"][0])
    assert facts["pad"] == 1 and facts["range"] == [0, 1] and len(facts["grids"]) == 2
    mask = read_mask(folder.result("make_sem_seg_labels") / f"{image_id}.png")
    low = read_saliency(data, image_id, mask.shape) <= 20
    certain = maps.at(image_id, "full").numpy().max(0) > 0.99999
    assert (mask[low & ~certain] == 0).all() and (mask[~low] > 0).mean() > 0.9
    log = [json.loads(line) for line in (folder.result("train_cam") / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert np.mean(losses[3:]) < np.mean(losses[:3])


def test_only_the_pseudo_masks_read_the_saliency_and_nothing_the_threshold(edam, tmp_path):
    folder = edam().folder.path.parent / "own"
    data = opened(edam())
    folder.mkdir()
    for image_id, file in data.saliency.items():
        shutil.copy(file, folder / f"{image_id}.png")
    assert works(edam(f"data.saliency={folder}")) == {}              # the same content
    assert works(edam("make_sem_seg_labels.bg_threshold=0.2")) == {}
    with Image.open(folder / f"{image_id}.png") as image:
        size = image.size
    Image.new("L", size, 255).save(folder / f"{image_id}.png")
    assert list(works(edam(f"data.saliency={folder}"))) == ["make_sem_seg_labels", "eval_sem_seg"]
    assert works(edam("refiner.theta=30"))["make_sem_seg_labels"] == "refiner.theta: 20.0 -> 30.0"
    (folder / f"{data.lists['train'][1]}.png").unlink()
    with pytest.raises(DataError, match=r"saliency maps of data set shapes .data.saliency.: 1 problem\n  - no saliency map of 'train_0001'"):
        edam(f"data.saliency={folder}").plan()
    with pytest.raises(DataError, match="refiner=saliency reads saliency maps, and data set shapes has none: set data.saliency=DIR"):
        edam("data.saliency=null").plan()


def test_it_is_continued_with_the_same_bits(edam):
    outputs = edam().folder.path.parent
    before = contents(outputs / "edam/train_cam")
    shutil.rmtree(outputs / "edam/train_cam")
    with interrupted(3):
        edam("to_step=train_cam").run()
    assert actions(edam("to_step=train_cam"))["train_cam"] == "continue"
    edam("to_step=train_cam").run()
    assert contents(outputs / "edam/train_cam") == before


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(edam):
    outputs = edam().folder.path.parent
    before = contents(outputs / "edam/train_cam")
    shutil.rmtree(outputs / "edam/train_cam")
    together(outputs, *EDAM[len(SMOKE):], "to_step=train_cam")
    assert contents(outputs / "edam/train_cam") == before


def test_pictures_of_the_training_show_the_masks(edam, tmp_path):
    pipeline = edam()
    data, ids = opened(pipeline), pipeline.dataset.lists["val"][:3]
    context = make_context(pipeline.config, data, "make_cam", {"ids": ids, "log": ids}, tmp_path, {"classifier": ("train_cam",)},
                           pipeline.folder.result, Runtime())
    found = cam_pictures(context, load_classifier(context))
    assert {image_id: picture.shape[:2] for image_id, picture in found.items()} == {
        image_id: (data.size(image_id)[0], data.size(image_id)[1] * (1 + len(data.labels[image_id]))) for image_id in ids}


def test_maps_that_do_not_fit_the_classifier_are_refused(edam):
    with pytest.raises(ConfigError, match="cam=cam does not fit the network: CAM needs a classifier that is linear in its features, CollaborativeClassifier is not"):
        edam("name=other", "cam=cam").plan()
    with pytest.raises(ConfigError, match="cam=edam does not fit the network: EDAM's maps are the masks of its classifier, LinearClassifier has none. Set classifier=edam"):
        Pipeline.compose(*SMOKE, f"outputs={edam().folder.path.parent}", "name=other", "cam=edam").plan()
    with pytest.raises(ConfigError, match="make_lpcam needs a classifier that is linear"):
        edam("name=other", f"steps=[{','.join(STEPS[:2])},make_lpcam]").plan()
    edam("name=other", "cam=gradcam", f"steps=[{','.join(STEPS[:2])}]").plan()       # gradients need no such classifier


def test_its_network_is_imported_from_a_run_and_from_the_names_of_the_official_code(edam, tmp_path):
    pipeline = edam()
    data, method, ours = opened(pipeline), pipeline.config.classifier, pipeline.folder.result("train_cam") / WEIGHTS
    state = load_file(ours)
    write_state(tmp_path / "res38_edam.pth", {f"module.{name}": value for name, value in method.official(state).items()})
    for file in (ours, tmp_path / "res38_edam.pth"):
        network, notes = imported_classifier(str(file), "file", {"classifier": method, "backbone": pipeline.config.backbone}, data)
        assert notes == [] and all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    lacking = {name: value for name, value in method.official(state).items() if name != "trans_list.1.0.feed_forward.w_2.bias"}
    with pytest.raises(WeightsError, match=r"file is a network of EDAM, but trans_list.N.0.feed_forward.w_2.bias is not there for each of 8 classes"):
        method.own(lacking, "file")
    official = OfficialNetwork("res50_cam.pth", "CAM")
    assert official.name_in(ours.parent) == "res38_edam.pth"
    assert official.why_not(ours.parent).startswith("is EDAM with other settings or on another backbone than the official network")
