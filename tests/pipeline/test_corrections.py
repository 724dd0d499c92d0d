"""Masks corrected by hand (`data.corrections`): what they replace, what they make stale, and that scores tell them apart."""

import json
from unittest.mock import patch

import numpy as np
import pytest

from pipeline import Pipeline
from pipeline.contexts import make_context
from steps import eval_sem_seg
from steps.runtime.context import Runtime
from tests.conftest import SMOKE, contents, copied, works
from tests.pipeline.conftest import CHOSEN
from wsss.data import augment
from wsss.data.images import read_mask, resize_mask, write_mask
from wsss.errors import ConfigError, DataError
from wsss.metrics.semantic import Confusion
from wsss.networks.facts import read_metadata
from wsss.palette import IGNORE

READS = ["cam_to_ir_label", "train_irn", "train_seg", "eval_sem_seg"]   # and what follows them


def dataset_of(outputs):
    pipeline = Pipeline.compose(*SMOKE, f"outputs={outputs}")
    pipeline.plan()
    return pipeline.dataset


def drawn(size, value):
    """A mask that no step makes: stripes of a class, of background and of what is not scored."""
    mask = np.zeros(size, np.uint8)
    mask[::3], mask[1::7] = value, IGNORE
    return mask


@pytest.fixture(scope="module")
def corrected(made_once, trained):
    """The run `second`, with two corrected masks of train and one of val in `corrections`; `labels.json` has what train_seg saw."""
    def make(outputs):
        copied(trained, outputs)
        data, seen = dataset_of(outputs), {}
        by_image = {data.image(image_id).tobytes(): image_id for image_id in data.lists["train"]}
        for number, image_id in enumerate((*data.lists["train"][:2], data.lists["val"][0]), start=1):
            write_mask(outputs / "corrections" / f"{image_id}.png", drawn(data.size(image_id), number))

        def sample(image, label, *others):
            seen[by_image[image.tobytes()]] = label.tolist()
            return original(image, label, *others)
        original = augment.segmenter_sample
        with patch.object(augment, "segmenter_sample", sample):
            Pipeline.compose(*CHOSEN, f"outputs={outputs}", "name=second", "reuse_from=[smoke]", f"data.corrections={outputs / 'corrections'}").run()
        (outputs / "labels.json").write_text(json.dumps(seen))
    return made_once("corrected", make)


def second(outputs, *overrides):
    return Pipeline.compose(*CHOSEN, f"outputs={outputs}", "name=second", f"data.corrections={outputs / 'corrections'}", *overrides)


def test_only_what_reads_them_is_stale(corrected):
    pipeline = Pipeline.compose(*CHOSEN, f"outputs={corrected}", f"data.corrections={corrected / 'corrections'}", "replace=true")
    why = works(pipeline)
    assert list(why) == ["cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg", "train_seg", "infer_seg", "eval_seg"]
    assert why["cam_to_ir_label"] == "2 corrected masks changed"
    assert why["train_irn"] == "corrected masks of ids now read" and "corrected masks of ids now read" in why["train_seg"]
    assert "corrected masks of scored now read" in why["eval_sem_seg"]
    assert why["make_sem_seg_labels"] == "train_irn changed"
    with pytest.raises(ConfigError, match=r"train_irn is finished .* would be replaced \(corrected masks of ids now read\). Set replace=true"):
        Pipeline.compose(*CHOSEN, f"outputs={corrected}", f"data.corrections={corrected / 'corrections'}").plan()


def test_they_take_the_place_of_confident_labels_and_of_pseudo_masks(corrected):
    data, run = dataset_of(corrected), corrected / "second"
    before, after = contents(corrected / "smoke/cam_to_ir_label"), contents(run / "cam_to_ir_label")
    drawn_by_hand = {path.stem: read_mask(path) for path in (corrected / "corrections").glob("*.png")}
    seen = {image_id: np.array(label, np.uint8) for image_id, label in json.loads((corrected / "labels.json").read_text()).items()}
    lines = {line["id"]: line for line in map(json.loads, (run / "cam_to_ir_label/index.jsonl").read_text().splitlines())}
    assert seen.keys() == lines.keys() == set(data.lists["train"])
    for image_id in data.lists["train"]:
        size = data.working_size(image_id)
        if image_id in drawn_by_hand:
            expected = resize_mask(drawn_by_hand[image_id], size)
            assert np.array_equal(read_mask(run / f"cam_to_ir_label/{image_id}.png"), expected)
        else:
            expected = resize_mask(read_mask(run / f"make_sem_seg_labels/{image_id}.png"), size)
            assert before[f"{image_id}.png"] == after[f"{image_id}.png"]
        assert np.array_equal(seen[image_id], expected) and ("correction" in lines[image_id]) == (image_id in drawn_by_hand)
    assert read_metadata(run / "train_seg/weights.safetensors")["trained_on"] == "pseudo masks, 2 of 24 corrected"


def test_scores_tell_them_apart(corrected):
    data, run = dataset_of(corrected), corrected / "second"
    summary = json.loads((run / "summary.json").read_text())
    masks, network = summary["scores"]["make_sem_seg_labels"], summary["scores"]["infer_seg"]
    alone, everything = Confusion(8), Confusion(8)
    for image_id in data.lists["train"]:
        path, truth = corrected / "corrections" / f"{image_id}.png", data.mask(image_id)
        if path.exists():
            everything.update(read_mask(path), truth, prediction_ignore="ignore")
        else:
            alone.update(read_mask(run / f"make_sem_seg_labels/{image_id}.png"), truth)
    everything = everything + alone
    assert masks["miou"] == alone.scores().miou and (masks["images"], masks["corrected"]) == (22, 2)
    assert masks["with_corrected"] == f"{100 * everything.scores().miou:.1f}"
    assert (network["images"], network["corrected"], network["trained_on"]) == (7, 1, "pseudo masks, 2 of 24 corrected")
    val, whole = Confusion(8), Confusion(8)
    for image_id in data.lists["val"]:
        for counts in (whole,) if (corrected / "corrections" / f"{image_id}.png").exists() else (whole, val):
            counts.update(read_mask(run / f"infer_seg/{image_id}.png"), data.mask(image_id))
    assert network["miou"] == val.scores(only_present=True).miou and network["with_corrected"] == f"{100 * whole.scores(only_present=True).miou:.1f}"
    assert "corrected, not counted" in Pipeline.compose(*CHOSEN, f"outputs={corrected}", "name=second").results()._repr_html_()
    smoke = json.loads((corrected / "smoke/summary.json").read_text())["scores"]
    assert "corrected" not in smoke["make_sem_seg_labels"] and smoke["make_sem_seg_labels"]["images"] == 24
    assert summary["scores"]["make_cam"] == smoke["make_cam"]   # maps are made before, from images and labels


def test_with_every_image_corrected_there_is_no_pseudo_mask_to_score(smoke_outputs, tmp_path):
    pipeline = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}")
    data = dataset_of(smoke_outputs)
    for image_id in data.lists["train"]:
        write_mask(tmp_path / "corrections" / f"{image_id}.png", data.mask(image_id))
    whole = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", f"data.corrections={tmp_path / 'corrections'}", "replace=true")
    whole.plan()
    (tmp_path / "scores").mkdir()
    context = make_context(pipeline.config, whole.dataset, "eval_sem_seg", {"scored": data.lists["train"]}, tmp_path / "scores",
                           {"masks": ("make_sem_seg_labels",)}, pipeline.folder.result, Runtime())
    eval_sem_seg.run(context)
    (score,) = eval_sem_seg.scores(tmp_path / "scores")
    assert (score.values["miou"], score.values["images"], score.values["corrected"], score.values["with_corrected"]) == (None, 0, 24, "100.0")


def test_their_content_counts(corrected, tmp_path):
    outputs = copied(corrected, tmp_path)
    assert works(second(outputs)) == {}
    moved = (outputs / "corrections").rename(outputs / "moved")
    assert works(second(outputs, f"data.corrections={moved}")) == {}
    first = min(moved.glob("train*.png"))
    write_mask(first, drawn(read_mask(first).shape, 5))
    why = works(second(outputs, f"data.corrections={moved}", "replace=true"))
    assert why["cam_to_ir_label"] == "1 corrected mask changed" and why["train_irn"] == "corrected masks of ids changed"
    states = {each.name: each.state for each in second(outputs, f"data.corrections={moved}").status()}
    assert states["make_cam"] == states["eval_cam"] == "done"   # which read nothing of the files
    why = works(Pipeline.compose(*CHOSEN, f"outputs={outputs}", "name=second", "replace=true"))
    assert why["cam_to_ir_label"] == "2 corrected masks changed" and why["train_irn"] == "corrected masks of ids no longer read"


def test_the_network_trained_on_the_ground_truth_reads_none(corrected):
    steps = "steps=[train_cam,make_cam,train_seg_gt]"
    plan = second(corrected, steps, "train_seg_gt.epochs=1").plan()
    assert not any("corrected" in key for planned in plan for key in planned.identity["data"])


@pytest.mark.parametrize(("name", "mask", "message"), [
    ("stranger", np.zeros((3, 4), np.uint8), "stranger.png has no image; rename or remove it"),
    ("train_0000", np.zeros((3, 4), np.uint8), "train_0000.png is 3 high and 4 wide but its image is 145 high and 181 wide as shown; save it in that size"),
    (None, None, "has no mask; expected ID.png, with the id of an image: write it with action=import, or leave it out")])
def test_what_is_no_correction_is_refused_before_work(smoke_outputs, tmp_path, name, mask, message):
    if name:
        write_mask(tmp_path / f"{name}.png", mask)
    with pytest.raises(DataError, match=message):
        Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", f"data.corrections={tmp_path}").plan()


def test_a_missing_folder_and_a_wrong_value(smoke_outputs, tmp_path):
    with pytest.raises(DataError, match=r"data.corrections=.*nowhere cannot be read \(No such file or directory\); expected a folder of corrected masks"):
        Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", f"data.corrections={tmp_path / 'nowhere'}").plan()
    data = dataset_of(smoke_outputs)
    write_mask(tmp_path / "train_0000.png", np.full(data.size("train_0000"), 77, np.uint8))
    pipeline = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", f"data.corrections={tmp_path}", "replace=true")
    pipeline.plan()
    with pytest.raises(DataError, match=r"mask .*train_0000.png holds the values \[77\]"):
        pipeline.dataset.correction("train_0000")
