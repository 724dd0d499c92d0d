"""ReCAM: a second training goes on from the finished classifier, and later steps read it."""

import shutil

import pytest
from safetensors.torch import load_file

from pipeline import Pipeline
from pipeline.order import BY_NAME, STEPS, sources
from steps.runtime.schedule import WEIGHTS
from tests.conftest import SMOKE, actions, contents, interrupted, works
from tests.pipeline.test_distributed import together
from wsss.errors import ConfigError, WeightsError
from wsss.official_networks import CAM, SECOND, write_network, write_second

FIRST = ("train_cam", "train_recam", "make_cam", "make_lpcam", "eval_cam")
RECAM = (*SMOKE, f"steps=[{','.join(FIRST)}]", "name=recam", "train_recam.epochs=2", "train_recam.checkpoint_steps=1")


@pytest.fixture(scope="session")
def recam_outputs(smoke_outputs, made_once):
    """The finished run `recam`, on the classifier of `smoke`: never changed."""
    def make(outputs):
        shutil.copytree(smoke_outputs / ".data", outputs / ".data", symlinks=True)
        Pipeline.compose(*RECAM, f"outputs={outputs}", f"reuse_from=[{smoke_outputs / 'smoke'}]").run()
    return made_once("recam", make)


@pytest.fixture
def recam(recam_outputs, tmp_path):
    outputs = shutil.copytree(recam_outputs, tmp_path / "outputs", symlinks=True)
    return lambda *overrides: Pipeline.compose(*RECAM, f"outputs={outputs}", *overrides)


def test_it_goes_on_from_the_classifier_and_the_maps_are_its_own(recam, smoke_outputs):
    folder = recam().folder
    assert folder.manifest("make_cam")["sources"] == {"classifier": ["train_recam"]}
    assert folder.manifest("make_lpcam")["sources"] == {"classifier": ["train_recam"], "cams": ["make_cam"]}
    first, second = (load_file(folder.result(step) / WEIGHTS) for step in ("train_cam", "train_recam"))
    assert second.keys() - first.keys() == {"second.weight"}
    moved = {name: float((second[name] - first[name]).abs().max()) for name in first}
    assert 0 < max(moved.values()) < 0.05   # two epochs at a small rate, not another network
    assert contents(folder.result("make_cam")) != contents(smoke_outputs / "smoke/make_cam")
    losses = (folder.result("train_recam") / "log.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "multi_label", "softmax"} <= set(losses)
    assert all(step.ok for step in recam().verify()) and works(recam()) == {}


def test_another_weight_makes_what_follows_stale_and_not_the_first_classifier(recam):
    found = works(recam("train_recam.classifier.weight=0.1", "replace=true"))
    assert list(found) == ["train_recam", "make_cam", "make_lpcam", "eval_cam"]
    assert found["train_recam"] == "classifier.weight: 1.0 -> 0.1"


def test_it_is_continued_with_the_same_bits(recam):
    outputs = recam().folder.path.parent
    before = contents(outputs / "recam/train_recam")
    shutil.rmtree(outputs / "recam/train_recam")
    with interrupted(3):
        recam("to_step=train_recam").run()
    assert actions(recam("to_step=train_recam"))["train_recam"] == "continue"
    recam("to_step=train_recam").run()
    assert contents(outputs / "recam/train_recam") == before


@pytest.mark.slow
def test_two_processes_leave_the_bits_of_one(recam):
    outputs = recam().folder.path.parent
    before = contents(outputs / "recam/train_recam")
    shutil.rmtree(outputs / "recam/train_recam")
    together(outputs, *RECAM[len(SMOKE):], "to_step=train_recam")
    assert contents(outputs / "recam/train_recam") == before


def test_what_reads_a_classifier_reads_the_last_one(smoke_outputs):
    config = Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}").config
    assert sources(config, "make_cam") == {"classifier": ("train_cam",)}
    config.steps = ["train_cam", "train_recam", "make_cam"]
    readers = [row.name for row in STEPS if sources(config, row.name).get("classifier") == ("train_recam",)]
    assert readers == ["make_cam", "make_lpcam", "eval_faithfulness", "train_irn", "train_psa"] and BY_NAME["train_recam"].flag == "train_recam_pass"
    with pytest.raises(ConfigError, match="train_recam reads train_cam, which is not among the steps of this experiment"):
        Pipeline.compose(*SMOKE, f"outputs={smoke_outputs}", "name=no", "steps=[train_recam,make_cam]").plan()


def test_a_first_classifier_with_weights_that_would_be_lost_is_refused(smoke_outputs):
    with pytest.raises(ConfigError, match="train_recam goes on from the classifier of train_cam, but its own, recam, has no classifier.bias, which would be lost"):
        Pipeline.compose(*RECAM, f"outputs={smoke_outputs}", "name=biased", "classifier=gap").plan()


def test_the_two_official_files_are_taken_instead_of_training_and_written(recam, tmp_path):
    outputs = recam().folder.path.parent
    state = load_file(outputs / "recam/train_recam" / WEIGHTS)
    first, second = tmp_path / "res50_recam_4.pth", tmp_path / "recam_predictor_4.pth"
    write_network(first, {name: value for name, value in state.items() if name != SECOND}, CAM)
    write_second(first, state[SECOND])
    keys = ("name=taken", f"reuse_from=[{outputs / 'recam'}]", f"train_recam.weights={first}", "to_step=train_recam")
    recam(*keys).run()
    taken = load_file(outputs / "taken/train_recam" / WEIGHTS)
    assert taken.keys() == state.keys() and all((taken[name] == value).all() for name, value in state.items())
    (tmp_path / "out").mkdir()
    BY_NAME["train_recam"].OFFICIAL.write(tmp_path / "out", outputs / "taken/train_recam")
    assert [path.read_bytes() for path in (tmp_path / "out" / first.name, tmp_path / "out" / second.name)] == [path.read_bytes() for path in (first, second)]
    second.unlink()
    with pytest.raises(WeightsError, match="has no second classifier of ReCAM"):
        recam(*keys[:2], "name=lost", *keys[2:]).plan()
