"""action=check_labels: two trainings on half of the images each, the ranked table, and its part of the report."""

import csv
import json

import numpy as np
import pytest

import pipeline.actions._labels as work
from pipeline import Pipeline
from pipeline.commandline import act
from tests.conftest import SMOKE, copied
from wsss.errors import ConfigError
from wsss.metrics.label_doubts import contradictions

WORDS = (*SMOKE, "steps=[train_cam]", "train_cam.epochs=1", "name=labels")


@pytest.fixture(scope="module")
def checked(made_once):
    """`outputs` with a run and its checked labels."""
    def make(outputs):
        Pipeline.compose(*WORDS, f"outputs={outputs}").run()
        Pipeline.compose(*WORDS, f"outputs={outputs}", "action=check_labels").check_labels()
    return made_once("checked_labels", make)


def rows(outputs) -> list[dict[str, str]]:
    with open(outputs / "labels/check_labels/labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_image_is_judged_once_by_a_classifier_that_did_not_see_it(checked):
    pipeline = Pipeline.compose(*WORDS, f"outputs={checked}").recorded(checked / "labels")
    found, data = rows(checked), pipeline.dataset
    assert sorted(row["image"] for row in found) == sorted([*data.lists["train"], *data.lists["val"]])
    assert {row["image"] for row in found if row["list"] == "val"} == set(data.lists["val"])
    doubts = [float(row["doubt"]) for row in found]
    assert doubts == sorted(doubts, reverse=True) and 0 <= doubts[-1] <= doubts[0] <= 1 and len(set(doubts)) > 1
    record = json.loads((checked / "labels/check_labels/check_labels.json").read_text())
    for row in found:
        values = np.array(record["probabilities"][row["image"]])
        assert float(row["doubt"]) == pytest.approx(
            contradictions(values, data.label_vector(row["image"])).max(), abs=1e-3)   # every class is in both halves
        assert row["labels"] == ";".join(data.classes[index] for index in data.labels[row["image"]])
    assert not list((checked / "labels/check_labels").glob("half_*"))


def test_an_unchanged_run_is_not_judged_again_and_an_interrupted_one_continues(checked, tmp_path, monkeypatch, capsys):
    outputs = copied(checked, tmp_path / "outputs")
    before, judged, own = rows(outputs), [], work._judged
    monkeypatch.setattr(work, "_judged", lambda context, folder, ids: judged.append(tuple(ids)) or own(context, folder, ids))
    assert act(Pipeline.compose(*WORDS, f"outputs={outputs}", "action=check_labels")) == 0
    said = capsys.readouterr().out
    assert not judged and rows(outputs) == before
    assert "not_seen" in said and f"All {len(before)} images are in" in said and before[0]["image"] in said
    record = outputs / "labels/check_labels/check_labels.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps({"facts": facts["facts"]}))   # as before the end
    Pipeline.compose(*WORDS, f"outputs={outputs}").check_labels()
    first, second, val = judged
    assert len(first) == len(second) == 12 and not set(first) & set(second) and len(val) == 8
    assert rows(outputs) == before   # the same trainings


def test_the_report_shows_the_first_images(checked, tmp_path):
    outputs = copied(checked, tmp_path / "outputs")
    pipeline = Pipeline.compose(*WORDS, f"outputs={outputs}", "action=report", "report.write=true")
    assert act(pipeline) == 0
    text, found = (outputs / "labels/report/report.html").read_text(), rows(outputs)
    part = text[text.index('<section id="labels">'):].partition("</section>")[0]
    assert part.count("<img") == 20 and all(row["image"] in part for row in found[:20]) and found[20]["image"] not in part
    assert '<a href="#labels">' in text


def test_what_it_cannot_do_is_refused(checked, tmp_path):
    with pytest.raises(ConfigError, match="there is no run"):
        Pipeline.compose(*WORDS, f"outputs={tmp_path}").check_labels()
    with pytest.raises(ConfigError, match="shard='0/2' is not possible: expected no value with action=check_labels"):
        Pipeline.compose(*WORDS, "action=check_labels", "shard=0/2")
    few = (*WORDS, f"outputs={tmp_path}", "data.n_train=3", "data.n_val=1", "train_cam.batch_size=2")
    Pipeline.compose(*few).run()
    with pytest.raises(ConfigError, match="check_labels trains on half of the 3 images of train_cam; expected at least 4: look at"):
        Pipeline.compose(*few).check_labels()
