"""Manifests and run.json: a changed value is not believed."""

import json
from contextlib import ExitStack

import pytest

from pipeline.runfolder.folder import RunFolder
from tests.conftest import rewritten
from wsss.errors import ArtifactError, ConfigError

FACTS = {"fingerprint": "f0", "identity": {"data": {"classes": ["cat"]}}, "sources": {}, "result": {"miou": 0.25}, "images": 1, "made": {},
         "device": "cpu", "seconds": 1.5, "disk_mb": 0.1, "peak_memory_mb": {}}
DATA = {"kind": "folder", "name": "mine", "root": "photos", "classes": ["cat"]}


@pytest.fixture
def folder(tmp_path):
    """A run with two finished steps."""
    folder = RunFolder(tmp_path / "run")
    for step in ("make_cam", "eval_cam"):
        partial = folder.partial(step, "f0")
        folder.begin(step, partial, {}, ())
        (partial / "scores.json").write_text("{}")
        folder.finish(step, partial, FACTS)
    folder.open(DATA)
    return folder


@pytest.mark.parametrize(("old", "new"), [('"f0"', '"f1"'), ("0.25", "0.35"), ('"scores.json"', '"scores.jsom"'), ("1.5", "1.4")])
def test_a_manifest_with_a_changed_value(folder, old, new):
    path = folder.result("make_cam") / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ArtifactError, match=r"make_cam/manifest.json is not a valid manifest \(its checksum is not that of its values\)"):
        folder.manifest("make_cam")
    rewritten(path)   # an older version wrote none
    assert folder.manifest("make_cam")["step"] == "make_cam" and folder.manifest("eval_cam")["result"] == {"miou": 0.25}


def test_the_manifest_of_another_step(folder):
    path = folder.result("make_cam") / "manifest.json"
    path.write_bytes((folder.result("eval_cam") / "manifest.json").read_bytes())
    with pytest.raises(ArtifactError, match=r"is not a valid manifest \(it is that of eval_cam\)"):
        folder.manifest("make_cam")


def test_a_changed_run_json_is_made_again_from_the_manifests(folder):
    path = folder.path / "run.json"
    whole = path.read_bytes()
    path.write_text(path.read_text().replace("cat", "cut"))
    folder.check_data(DATA)
    folder.open(DATA)
    assert path.read_bytes() == whole
    with pytest.raises(ConfigError, match="made from another data set"):
        folder.check_data({**DATA, "classes": ["dog"]})


def test_what_was_in_the_place_of_a_file_is_no_file_of_the_step(folder):
    place = folder.result("make_cam")
    (place / "scores.json").unlink()
    (place / "scores.json").mkdir()
    (place / "scores.json/mine.txt").write_text("mine")
    assert folder.damaged_files("make_cam") == ["scores.json"]
    folder.begin("make_cam", place, {}, ["scores.json"])
    (place / "scores.json").write_text("{}")
    folder.finish("make_cam", place, FACTS)
    assert [*folder.manifest("make_cam")["files"]] == ["scores.json"] and (place / "scores.json.damaged/mine.txt").exists()
    assert json.loads((place / "manifest.json").read_text())["step"] == "make_cam"


def test_what_a_killed_write_left_beside_the_steps_is_removed_unless_others_work(folder):
    left = [folder.path / ".writing-1-1-summary.json.tmp", folder.path / ".locks/.writing-1-1-claim.json.tmp"]
    left[1].parent.mkdir(exist_ok=True)
    for path in left:
        path.write_text("{")
    other = folder.path / ".locks/other.json"
    other.write_text(json.dumps({"owner": {"host": "elsewhere", "pid": 1, "started": 1, "job": None}, "since": "today", "now": None,
                                 "makes": [["train_cam", 0, 1]], "reads": []}))
    folder.recover(["make_cam", "eval_cam"])
    assert all(path.exists() for path in left)
    other.unlink()
    folder.recover(["make_cam", "eval_cam"])
    assert not any(path.exists() for path in left) and folder.manifest("make_cam")


def test_a_configuration_with_the_older_name_of_a_key_is_read(smoke, outputs):
    path = outputs / "smoke" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("  taps: ", "  amn_taps: "))
    with ExitStack() as held:
        recorded = smoke().recorded(outputs / "smoke", held)
    assert "  taps: all" in text and "amn_taps" in path.read_text() and recorded.config.make_lpcam.taps.value == "all"
