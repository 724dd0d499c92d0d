"""Results of other runs are taken over where everything they depend on is equal."""

import json
import os

import pytest

from pipeline import Pipeline
from pipeline.runfolder.folder import MANIFEST
from pipeline.runfolder.reuse import _link
from steps.runtime.journal import INDEX, file_sum
from tests.conftest import SMOKE, actions, rewritten
from wsss.errors import ConfigError, DataError


@pytest.fixture
def other(outputs):
    """`other(*overrides)` composes a run `other` beside the finished run `smoke`."""
    return lambda *overrides: Pipeline.compose(*SMOKE, f"outputs={outputs}", "name=other", *overrides)


def test_only_what_differs_is_made(other, outputs):
    call = ("reuse_from=[smoke]", "refiner.beta=8")
    for overrides in ((), ("from_step=make_sem_seg_labels",)):   # earlier steps are taken over for later ones
        assert list(actions(other(*call, *overrides)).values()) == ["reuse"] * 6 + ["run"] * 2
    assert not (outputs / "other").exists()
    other(*call).run()
    for file in ("train_cam/weights.safetensors", "make_lpcam/fg_only/val_0001.npy", "make_cam/index.jsonl", "eval_cam/scores.json"):
        assert (outputs / "other" / file).read_bytes() == (outputs / "smoke" / file).read_bytes()
    assert os.path.samefile(outputs / "other/make_cam/val_0001.npy", outputs / "smoke/make_cam/val_0001.npy")
    manifest = json.loads((outputs / "other/make_cam/manifest.json").read_text())
    assert manifest["taken_from"] == str(outputs / "smoke") and manifest["made"]["units"] == 0
    assert set(actions(other(*call)).values()) == {"skip"}
    assert all(step.ok for step in other(*call).verify())
    assert set(actions(Pipeline.compose(*SMOKE, f"outputs={outputs}")).values()) == {"skip"}


def test_a_run_by_its_folder_and_images_that_it_lacks(other, outputs, tmp_path):
    for file in sorted((outputs / "smoke/make_cam").glob("*.npy"))[:5]:
        file.unlink()
    whole = {file.name: file.read_bytes() for file in (outputs / "smoke/make_cam").glob("*.npy")}
    (outputs / "smoke").rename(tmp_path / "elsewhere")
    call = (f"reuse_from=[{tmp_path / 'elsewhere'}]", "to_step=make_cam")
    planned = other(*call).plan()[1]
    assert (planned.action, planned.to_do) == ("reuse", 5)
    other(*call).run()
    made = {file.name: file.read_bytes() for file in (outputs / "other/make_cam").glob("*.npy")}
    assert len(made) == 32 and made.items() >= whole.items()
    assert "taken_from" not in json.loads((outputs / "other/make_cam/manifest.json").read_text())


def test_a_run_that_is_taken_from_reaches_nothing_outside_the_step(other, outputs):
    """It may be somebody else's: a line of its index names a file beside the step."""
    mine, step = outputs / "other/mine", outputs / "smoke/make_cam"
    other("to_step=train_cam", "reuse_from=[smoke]").run()
    for path in (mine, outputs / "smoke/mine"):
        path.write_text(path.parent.name)
    first, *others = (step / INDEX).read_text().splitlines(keepends=True)
    line = {key: value for key, value in json.loads(first).items() if key != "crc"} | {"files": {"../mine": file_sum(outputs / "smoke/mine")}}
    (step / INDEX).write_text("".join([json.dumps(line) + "\n", *others]))
    manifest = json.loads((step / MANIFEST).read_text())
    rewritten(step / MANIFEST, files=manifest["files"] | {INDEX: file_sum(step / INDEX)})
    other("to_step=make_cam", "reuse_from=[smoke]").run()
    assert mine.read_text() == "other" and os.listdir(outputs / "other/make_cam") == os.listdir(step)


def test_a_symbolic_link_is_taken_as_the_file(tmp_path):
    """Else what is written behind it would leave the folder."""
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    _link(tmp_path, "link", tmp_path / "into/taken")
    assert not (tmp_path / "into/taken").is_symlink() and (tmp_path / "into/taken").read_text() == "content"
    (tmp_path / "donor").mkdir()
    (tmp_path / "donor/link").symlink_to(tmp_path / "file")
    with pytest.raises(DataError, match="donor/link is a link out of .*donor; expected a file of its own"):
        _link(tmp_path / "donor", "link", tmp_path / "into/other")
    assert not (tmp_path / "into/other").exists()


@pytest.mark.parametrize(("override", "message"), [
    ("reuse_from=[smoek]", r"reuse_from: there is no run 'smoek' with a finished step; did you mean 'smoke'\?"),
    ("reuse_from=[other]", "reuse_from: there is no run 'other'"),
    ("seed=1", "reuse_from: no step can be reused from .*smoke: train_cam differs first: .*seed: 0 -> 1.* Undo the difference"),
    ("train_cam.epochs=3", "no step can be reused from .*: train_cam.epochs: 20 -> 3"),
])
def test_a_run_that_does_not_exist_or_match_is_refused(other, smoke, outputs, override, message):
    overrides = (override,) if "reuse" in override else ("reuse_from=[smoke]", override)
    with pytest.raises(ConfigError, match=message):
        other(*overrides).plan()
    assert not (outputs / "other").exists()
    with pytest.raises(ConfigError, match="reuse_from: 'smoke' is this run itself"):
        smoke("reuse_from=[smoke]").plan()


def test_a_finished_training_is_not_replaced_by_another_unasked(other, outputs):
    other("train_cam.epochs=1", "to_step=train_cam").run()
    with pytest.raises(ConfigError, match="train_cam is finished in .*other/train_cam and would be replaced"):
        other("reuse_from=[smoke]", "to_step=train_cam").plan()
    other("reuse_from=[smoke]", "to_step=train_cam", "replace=true").run()
    weights = [(outputs / run / "train_cam/weights.safetensors").read_bytes() for run in ("smoke", "other")]
    assert weights[0] == weights[1]
