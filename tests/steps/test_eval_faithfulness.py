"""eval_faithfulness measures every kind of map of a run with the run's classifier, continues, and says where maps say nothing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import Pipeline
from pipeline.order import BY_NAME
from pipeline.plan.lists import setup_of
from pipeline.runfolder.summary import score_table
from steps.parts.faithfulness import EDGES, MEASURES, RANDOM, dependence, summary, verdicts
from steps.runtime.artifacts import Maps
from steps.runtime.networks import load_classifier
from tests.conftest import SMOKE, contents, copied, interrupted, works
from wsss.data.images import normalise
from wsss.errors import ConfigError
from wsss.metrics.faithfulness import ranking
from wsss.seeding import generator

STEP = "eval_faithfulness"
QUICK = ("steps=[train_cam,make_cam,make_lpcam,eval_cam,eval_faithfulness]", f"{STEP}.images=2", f"{STEP}.steps=3", f"{STEP}.road=[0.5]",
         f"{STEP}.randomised=1")


def quick(outputs, *words: str) -> Pipeline:
    return Pipeline.compose(*SMOKE, f"outputs={outputs}", *QUICK, *words)


@pytest.fixture(scope="module")
def measured(made_once, smoke_outputs):
    """`outputs` with the run smoke and its maps measured."""
    def make(outputs):
        copied(smoke_outputs, outputs)
        quick(outputs, "report.write=true", *(f"report.{key}=0" for key in ("images", "images_per_class", "traces", "changes"))).run()
    return made_once("faithfulness", make)


def scores(outputs) -> dict:
    return json.loads((outputs / f"smoke/{STEP}/scores.json").read_text())


def test_every_kind_of_map_is_measured_beside_the_controls(measured):
    pipeline, found = quick(measured), scores(measured)
    assert not works(pipeline)
    assert list(found["kinds"]) == ["make_cam", "make_lpcam_fg_only", "make_lpcam", RANDOM, EDGES] and found["images"] == 2
    for kind in found["kinds"].values():
        assert list(kind["values"]) == list(MEASURES) and all(0 <= value <= 1 for value in kind["values"].values())
        assert len(kind["curves"]["deletion"]) == 4 and len(kind["curves"]["morf"]) == 1
        # nothing is deleted at first, everything inserted at last
        assert kind["curves"]["deletion"][0] == pytest.approx(kind["curves"]["insertion"][-1], abs=1e-5)
    ends = [(kind["curves"]["deletion"][-1], kind["curves"]["insertion"][0]) for kind in found["kinds"].values()]
    assert np.ptp(ends, axis=0) == pytest.approx(0, abs=1e-5)
    assert list(found["randomised"]["similar"]) == ["head", *(f"stage {n}" for n in (4, 3, 2, 1, 0)), RANDOM]


def test_its_files_are_verified_and_reused(measured, tmp_path):
    verified = {step.name: step for step in quick(measured).verify()}[STEP]
    assert verified.ok and verified.read == 3   # of two images, and the scores
    outputs = copied(measured, tmp_path / "outputs")
    quick(outputs, "name=other", f"reuse_from=[{measured / 'smoke'}]").run()
    mine, theirs = (contents(outputs / name / STEP) for name in ("other", "smoke"))
    assert mine == theirs and len(mine) == 3


def test_the_summary_and_the_report_have_the_tables(measured):
    text = score_table(quick(measured).results())
    assert "Faithfulness of" in text and "deletion ↓" in text and "\nedges " in text and "stage 0 and after" in text
    page = (measured / "smoke/report/report.html").read_text()
    assert 'id="faithfulness"' in page and 'href="#faithfulness"' in page and "ROAD, most relevant pixels first" in page
    assert page.count("stroke-dasharray") >= 2 * 4   # the controls in four figures
    titles = {"make_cam": "CAM", "make_lpcam_fg_only": "LPCAM-F", "make_lpcam": "LPCAM"}
    assert "\nLPCAM-F " in text[text.index("Faithfulness of"):] and '<th scope="row">LPCAM-F</th>' in page
    for kind, sentence in scores(measured)["verdicts"]:
        assert f"The maps of {titles.get(kind, kind)} {sentence}" in page.replace("&#39;", "'")


def test_the_curves_are_those_of_a_plain_loop(measured):
    """Deletion to the mean colour of one map, pixel by pixel, with the network as stored."""
    context = quick(measured).recorded(measured / "smoke").context(STEP)
    image_id = context.lists["measured"][0]
    index, net = context.dataset.labels[image_id][0], load_classifier(context)
    image = normalise(context.dataset.image(image_id), "cpu", net.backbone.normalisation)
    saliency = Maps(context.input("maps")).at(image_id, "full")[0].numpy()
    order = ranking(saliency, generator(context.seed, STEP, "make_cam", image_id, "ties", str(index)))
    expected = []
    for step in range(4):
        changed = image.clone().reshape(3, -1)
        for pixel in order[:round(step / 3 * order.size)]:
            changed[:, pixel] = 0
        with torch.no_grad():
            expected.append(net(changed.view(1, *image.shape)).sigmoid()[0, index].item())
    found = json.loads((context.folder / f"images/{image_id}.json").read_text())["faithfulness"]["make_cam"][0]
    assert found["deletion"] == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        masked = net(image[None] * torch.from_numpy(saliency.clip(0, 1))).sigmoid()[0, index].item()
    assert found["masked"] == pytest.approx(masked, abs=1e-5)


def test_an_interrupted_step_continues_with_the_missing_images(measured, tmp_path):
    outputs = copied(measured, tmp_path / "outputs")
    whole = contents(outputs / f"smoke/{STEP}")
    shutil.rmtree(outputs / f"smoke/{STEP}")
    with interrupted(1):
        quick(outputs).run()
    partial = next((outputs / "smoke").glob(f"{STEP}.partial-*"))
    first = {path.name: path.stat().st_mtime_ns for path in partial.glob("images/*.json")}
    assert len(first) == 1 and [planned.action for planned in quick(outputs).plan()][-1] == "continue"
    quick(outputs).run()
    assert contents(outputs / f"smoke/{STEP}") == whole
    assert {name: (outputs / f"smoke/{STEP}/images" / name).stat().st_mtime_ns for name in first} == first


def test_what_makes_it_stale(measured):
    def why(*words):
        return works(quick(measured, *words)).get(STEP)
    assert why(f"{STEP}.steps=4") == f"{STEP}.steps: 3 -> 4" and "labels of measured changed" in why(f"{STEP}.images=1")
    assert why("cam=gradcam").startswith("cam: cam -> gradcam")
    assert "cam.stage" not in why("cam=gradcam", f"{STEP}.randomised=0")   # the method counts only where it is used
    assert why(f"{STEP}.split=val", "log_level=debug") is None   # val is the default


@pytest.fixture(scope="module")
def lists(measured):
    """`lists(*words, **changes)`: the images that are measured; `changes` of the data set."""
    dataset = quick(measured).recorded(measured / "smoke").dataset

    def of(*words: str, **changes) -> tuple[str, ...]:
        setup = setup_of(quick(measured, *words).config, replace(dataset, **changes), STEP)
        return BY_NAME[STEP].lists(setup)["measured"]
    return of


def test_the_list_is_val_or_train_and_its_images_are_chosen_by_the_seed(lists):
    chosen = lists()
    assert len(chosen) == 2 and all(image_id.startswith("val_") for image_id in chosen) and list(chosen) == sorted(chosen)
    assert lists() == chosen and len({chosen, *(lists(f"seed={seed}") for seed in (1, 2, 3))}) > 1
    everything = lists(f"{STEP}.images=100")
    assert len(everything) == 8 and set(chosen) < set(everything)
    assert all(image_id.startswith("train_") for image_id in lists(f"{STEP}.split=train"))
    assert all(image_id.startswith("train_") for image_id in lists(unlabelled=frozenset(everything)))


@pytest.mark.parametrize(("word", "expected"), [
    ("steps=0", "at least 1"), ("deletion=black", "one of mean, blur"), ("road=[0.5,1.0]", "shares above 0 and below 1"),
    ("randomised=3", "from 0 to the 2 images of the key images"), ("blur_sigma=0", "above 0")])
def test_settings_that_are_refused(word, expected):
    with pytest.raises(ConfigError, match=f"^{STEP}.{word.split('=')[0]}=.* is not possible: expected {expected}"):
        Pipeline.compose(*SMOKE, *QUICK, f"{STEP}.{word}")


def test_images_without_a_class_are_left_out(lists):
    val = lists(f"{STEP}.images=100")
    labels = {image_id: () for image_id in val} | {f"train_{number:04}": (0,) for number in range(24)}
    assert lists(labels=labels | {val[3]: (0, 1)}) == (val[3],)
    with pytest.raises(ConfigError, match=f"^{STEP}.split: none of the 8 images of the list shows a class"):
        lists(labels=labels)


def of_map(deletion, insertion, masked):
    return {"deletion": deletion, "insertion": insertion, "masked": masked, "morf": [deletion[1]], "lerf": [insertion[1]]}


def images_of(good: bool, number: int = 5) -> list[dict]:
    """Images on which maps find the object at once, or are like the controls; with a little noise."""
    draws = np.random.default_rng(0)

    def one(best):
        low, high = (0.1, 0.8) if best else (0.4, 0.5)
        return of_map([0.9, low + draws.uniform(0, 0.05), 0.1], [0.1, high + draws.uniform(0, 0.05), 0.9], 0.95 if best else draws.uniform(0.4, 0.8))
    return [{"mine": [one(good), one(good)], RANDOM: [one(False), one(False)], EDGES: [one(False), one(False)]} for _ in range(number)]


def test_maps_are_named_if_they_are_not_better_than_the_controls():
    assert verdicts(images_of(good=True)) == []
    (kind, said), = verdicts(images_of(good=False))
    assert kind == "mine" and said.startswith("are not clearly better than maps that do not know the network in 6 of 6 measures of faithfulness: deletion ")
    assert len(verdicts(images_of(good=True, number=1))) == 0 and len(verdicts([{kind: maps[:1] for kind, maps in images_of(True)[0].items()}])) == 1


def test_the_means_of_two_maps_by_hand():
    images = [{"mine": [of_map([1.0, 0.0, 0.0], [0.0, 1.0, 1.0], 0.5)]}, {"mine": [of_map([0.5, 0.5, 0.0], [0.0, 0.0, 0.5], 0.6)]}]
    assert summary(images)["mine"]["values"] == pytest.approx(
        {"deletion": (0.25 + 0.375) / 2, "insertion": (0.75 + 0.125) / 2, "drop": 0.25, "increase": 0.5, "morf": 0.25, "lerf": 0.5})
    assert summary(images)["mine"]["curves"]["deletion"] == [0.75, 0.25, 0]


def test_maps_that_do_not_change_with_the_network_are_named():
    kept = {"head": [1.0, 1.0], "stage 0": [0.9, 0.8], RANDOM: [0.0, 0.1]}
    assert dependence({**kept, "stage 0": [0.1, 0.5]}, "CAM", 4) == []
    assert dependence(kept, "Backprop", 4) == [
        ("Backprop", "hardly depend on what the network has learned: with random weights in all layers their rank correlation "
                     "with the maps of the trained network is 0.90, SSIM 0.80 (a random map: 0.00, 0.10), on 4 images.")]
