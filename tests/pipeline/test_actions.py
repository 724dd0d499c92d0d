"""`action=plan`, `status` and `verify`: what they say, that they start nothing, and that what they say is so."""

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline import Pipeline, actions
from pipeline.commandline import act
from pipeline.console import plan_table
from steps.runtime.journal import INDEX, file_sum
from tests import processes
from tests.conftest import ROOT, SMOKE, rewritten, works
from wsss.data.dataset import Dataset
from wsss.data.drawing import CLASSES
from wsss.errors import ArtifactError, BusyError, ConfigError, WeightsError


def states(pipeline) -> dict[str, str]:
    return {step.name: step.state for step in pipeline.status()}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_plan_of_a_new_run_writes_nothing_and_draws_nothing(tmp_path, capsys):
    pipeline = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'out'}", "action=plan")
    plan = pipeline.plan()
    assert [planned.action for planned in plan] == ["run"] * 8
    assert [planned.to_do for planned in plan] == [60, 32, 32, 32, 24, 6, 24, 24]
    assert all(planned.expected.disk_mb > 0 and planned.expected.memory_mb > 100 and planned.expected.seconds is None for planned in plan)
    assert act(pipeline) == 0 and list(tmp_path.iterdir()) == []
    assert "to run it: python run_pipeline.py experiment=smoke" in capsys.readouterr().out


def test_a_plan_fetches_no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def fetch(*args, **options):
        raise OSError("no network")
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    pipeline = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'out'}", "backbone=resnet18", "backbone.pretrained=true")
    assert [planned.action for planned in pipeline.plan()] == ["run"] * 8
    with pytest.raises(WeightsError, match="cannot download torchvision's resnet18 weights"):
        pipeline.run()
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob("out/smoke"))


def test_a_plan_says_what_why_how_much_and_how_long(smoke, outputs):
    for file in sorted((outputs / "smoke/make_cam").glob("*.npy"))[:3]:
        file.unlink()
    before = snapshot(outputs)
    pipeline = smoke("refiner.beta=8")
    plan = {planned.name: planned for planned in pipeline.plan()}
    assert {name: planned.action for name, planned in plan.items()} == {
        "train_cam": "skip", "make_cam": "continue", "make_lpcam": "skip", "eval_cam": "skip", "cam_to_ir_label": "skip", "train_irn": "skip",
        "make_sem_seg_labels": "re-run", "eval_sem_seg": "re-run"}
    assert (plan["make_cam"].done, plan["make_cam"].total, plan["make_cam"].to_do) == (29, 32, 3)
    assert plan["make_cam"].why == "3 artifacts broken"
    assert plan["make_sem_seg_labels"].why == "refiner.beta: 10.0 -> 8.0"
    assert plan["eval_sem_seg"].why == "make_sem_seg_labels changed"
    made = json.loads((outputs / "smoke/make_cam/manifest.json").read_text())["made"]
    assert plan["make_cam"].expected.seconds == pytest.approx(3 * made["seconds"] / 32)
    table = plan_table(pipeline.folder.path, list(plan.values()))
    assert re.search(r"make_cam +continue 29 of 32 +3 images +\S+ s +\S+ [kM]B +\S+ MB +3 artifacts broken", table)
    assert re.search(r"expected: \S+ s, \S+ [kM]B on disk \(\S+ GB free\), \d+ MB of memory at the peak", table)
    assert str(plan["make_cam"]) == "make_cam: continue 29 of 32 images (3 artifacts broken)"
    assert snapshot(outputs) == before


def test_an_interrupted_step_gives_a_rate_and_its_counts(smoke, outputs):
    folder = outputs / "smoke/make_cam"
    lines = [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]
    partial = outputs / f"smoke/make_cam.partial-{smoke().plan()[1].fingerprint[:12]}"
    folder.rename(partial)
    (partial / "manifest.json").unlink()
    (partial / INDEX).unlink()
    (partial / "journals").mkdir()
    (partial / "journals/0-of-1.jsonl").write_text("".join(json.dumps({**line, "seconds": 0.5}) + "\n" for line in lines[:20] if line.pop("crc")))
    plan = {planned.name: planned for planned in smoke().plan()}
    assert (plan["make_cam"].action, plan["make_cam"].done, plan["make_cam"].to_do) == ("continue", 20, 12)
    assert plan["make_cam"].expected.seconds == pytest.approx(6)
    status = {step.name: step for step in smoke().status()}
    assert (status["make_cam"].state, status["make_cam"].done, status["make_cam"].total) == ("partial", 20, 32)


def test_status_of_every_kind(smoke, outputs):
    run = outputs / "smoke"
    assert set(states(smoke()).values()) == {"done"}
    shutil.rmtree(run / "eval_sem_seg")
    (run / "make_sem_seg_labels" / "train_0003.png").unlink()
    (run / "make_sem_seg_labels" / "failed.json").write_text(json.dumps({"train_0003": "too odd"}))
    (run / "cam_to_ir_label" / "train_0004.png").write_bytes(b"")
    before = snapshot(outputs)
    found = {step.name: step for step in smoke("train_irn.radius=6").status()}
    assert {name: step.state for name, step in found.items()} == {
        "train_cam": "done", "make_cam": "done", "make_lpcam": "done", "eval_cam": "done", "cam_to_ir_label": "partial", "train_irn": "stale",
        "make_sem_seg_labels": "stale", "eval_sem_seg": "missing"}
    assert found["train_irn"].why == "train_irn.radius: 10 -> 6"
    assert found["cam_to_ir_label"].why == "1 artifact broken" and found["cam_to_ir_label"].done == 23
    assert found["make_sem_seg_labels"].why == "train_irn changed"
    failed = {step.name: step for step in smoke().status()}["make_sem_seg_labels"]
    assert (failed.state, failed.failed) == ("failed", {"train_0003": "too odd"}) and "1 image failed: train_0003" in failed.why
    assert snapshot(outputs) == before


def test_status_reads_no_image_and_still_sees_a_changed_label(smoke, outputs, monkeypatch):
    def refuse(*args):
        raise AssertionError("an image or mask was read")
    for name in ("digest_of_image", "_mask_digest", "full_image", "mask", "size"):
        monkeypatch.setattr(Dataset, name, refuse)
    assert set(states(smoke()).values()) == {"done"}
    root = next((outputs / ".data").iterdir())
    labels = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(re.sub("train_0000,.*", f"train_0000,{';'.join(CLASSES)}", labels))
    why = {step.name: step.why for step in smoke().status() if step.state == "stale"}
    assert why["train_cam"] == "labels of ids changed" and len(why) == 8
    partial = {step.name: step for step in smoke().status()}["make_cam"]
    assert partial.state == "stale" and "train_cam changed" in partial.why


def test_status_of_a_missing_step_says_nothing_false_of_later_ones(smoke, outputs):
    shutil.rmtree(outputs / "smoke/eval_cam")
    assert {name for name, state in states(smoke()).items() if state != "done"} == {"eval_cam"}
    shutil.rmtree(outputs / "smoke/train_cam")
    assert {name for name, state in states(smoke()).items() if state != "done"} == {"train_cam", "eval_cam"}


def test_files_that_only_inform_may_be_damaged_and_work_of_other_settings_is_named(smoke, outputs):
    (outputs / "smoke/make_cam/failed.json").write_text("[1]")
    for name, text in (("a", ""), ("b", "{}"), ("c", "[]")):
        (outputs / f"smoke/make_cam.partial-{name}").mkdir()
        (outputs / f"smoke/make_cam.partial-{name}/work.json").write_text(text)
    assert set(states(smoke()).values()) == {"done"}
    assert not works(smoke())
    left = outputs / "smoke/make_cam.partial-0123456789ab"
    left.mkdir()
    identity = json.loads((outputs / "smoke/make_cam/manifest.json").read_text())["identity"]
    (left / "work.json").write_text(json.dumps({"identity": {**identity, "make_cam": {"scales": [1.0]}}}))
    found = [left_over for step in smoke().status() for left_over in step.left_over]
    [over] = [over for over in found if over.path == left]
    assert "make_cam.scales" in str(over) and "delete it if" in str(over)


def test_output_may_be_cut_off(smoke_outputs):
    shell = f"{sys.executable} run_pipeline.py {' '.join(SMOKE)} outputs={smoke_outputs} action=plan | head -1"
    cut = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
    assert len(cut.stdout.splitlines()) == 1 and cut.stderr == ""


def test_a_plan_says_that_somebody_works(smoke, outputs, capsys):
    shutil.rmtree(outputs / "smoke/eval_sem_seg")
    with smoke().folder.claims.hold([("eval_sem_seg", 0, 1)], []):
        assert list(works(smoke())) == ["eval_sem_seg"]
        assert "warning: eval_sem_seg is in use by process" in capsys.readouterr().err
        with pytest.raises(BusyError, match="eval_sem_seg is in use by process"):
            smoke().run()
    smoke().run()
    with smoke().folder.claims.hold([("make_cam", 0, 1)], ["train_cam"]):
        smoke().run()   # a run with nothing to make is refused by nobody


def test_status_of_a_damaged_manifest_names_it_and_keeps_everything(smoke, outputs):
    manifest = outputs / "smoke/make_cam/manifest.json"
    manifest.write_text("{")
    found = {step.name: step for step in smoke().status()}
    assert found["make_cam"].state == "damaged" and "make_cam.kept" in found["make_cam"].why
    assert found["train_cam"].state == "unknown"
    with pytest.raises(Exception, match="make_cam/manifest.json is not a valid manifest .*mv .*make_cam.kept"):
        smoke().run()
    assert manifest.read_text() == "{" and len(list(manifest.parent.glob("*.npy"))) == 32
    (outputs / "smoke/make_cam").rename(outputs / "smoke/make_cam.kept")   # as the message says
    smoke("to_step=make_cam").run()
    assert states(smoke())["make_cam"] == "done"


def test_a_damaged_line_of_an_index_is_named_and_its_image_made_again(smoke, outputs):
    index = outputs / "smoke/make_cam/index.jsonl"
    whole, lines = index.read_bytes(), index.read_text().splitlines(keepends=True)
    index.write_text("".join([*lines[:3], "?" * (len(lines[3]) - 1) + "\n", *lines[4:]]))
    planned, status = smoke().plan()[1], smoke().status()[1]
    assert (planned.action, planned.to_do, status.state, status.done) == ("continue", 1, "partial", 31)
    assert f"{index}, line 4, is not a journal line: the same command" in planned.why and planned.why == status.why
    assert list(smoke().verify()[1].broken) == [f"{index}, line 4, is not a journal line"]
    smoke().run()
    assert index.read_bytes() == whole and all(step.ok for step in smoke().verify())


def test_a_manifest_that_names_a_file_outside_its_folder_changes_nothing_there(smoke, outputs):
    manifest, log = outputs / "smoke/eval_cam/manifest.json", outputs / "smoke/run.log"
    content = json.loads(manifest.read_text())
    rewritten(manifest, files=content["files"] | {"../run.log": [0, 0]})
    with pytest.raises(ArtifactError, match=r"is not a valid manifest \(its files are outside the folder\)"):
        smoke().run()
    assert log.stat().st_size


@pytest.mark.parametrize("action", ["status", "verify", "report"])
def test_a_run_that_does_not_exist_is_refused(smoke, outputs, action):
    with pytest.raises(ConfigError, match=r"there is no run .*outputs/smoek; did you mean 'smoke'\?"):
        getattr(smoke("name=smoek"), action)()
    assert not (outputs / "smoek").exists()


@pytest.mark.slow
def test_status_says_who_works_and_verify_waits_for_nobody(smoke, outputs):
    shutil.rmtree(outputs / "smoke/train_cam")
    longer = "train_cam.epochs=1000"   # else it could be over before it is stopped
    run = processes.start("run_pipeline.py", *SMOKE, f"outputs={outputs}", longer, "train_cam_pass=true")
    for _ in range(600):
        found = {step.name: step for step in smoke(longer).status()}
        if found["train_cam"].state == "running" and found["train_cam"].done:
            break
        time.sleep(0.1)
    assert re.fullmatch(rf"by process {run.pid} on \S+ since 20\d\d-\S+ \S+", found["train_cam"].why)
    with pytest.raises(BusyError, match="train_cam is in use by process"):
        smoke(longer).verify()
    run.send_signal(signal.SIGINT)
    out, errors = run.communicate()
    assert run.returncode == 128 + signal.SIGINT
    assert re.search(r"stopped by SIGINT; .* the same command continues: python run_pipeline.py experiment=smoke .*train_cam_pass=true", errors)
    found = {step.name: step for step in smoke(longer).status()}
    assert found["train_cam"].state == "partial" and 0 < found["train_cam"].done < found["train_cam"].total


def other_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def nan_that_was_written(path: Path) -> None:
    """As a step with a defect would leave it: the checksum fits, the content does not."""
    np.save(path, np.load(path) * np.float16(np.nan))
    folder, name = path.parent, path.name
    lines = [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]
    for line in lines:
        if name in line["files"]:
            line["files"][name] = file_sum(path)
        del line["crc"]
    (folder / INDEX).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    manifest = json.loads((folder / "manifest.json").read_text())
    rewritten(folder / "manifest.json", files=manifest["files"] | {INDEX: file_sum(folder / INDEX)})


@pytest.mark.parametrize(("file", "damage"), [
    ("make_cam/train_0001.npy", other_bytes), ("make_cam/train_0001.npy", half), ("make_cam/train_0001.npy", Path.unlink),
    ("make_cam/train_0001.npy", nan_that_was_written), ("make_lpcam/fg_only/val_0002.npy", other_bytes),
    ("make_lpcam/prototypes.npz", other_bytes), ("cam_to_ir_label/train_0002.png", other_bytes),
    ("make_sem_seg_labels/train_0002.png", half), ("eval_cam/counts.npz", other_bytes), ("eval_sem_seg/scores.json", half),
    ("train_irn/weights.safetensors", other_bytes), ("train_irn/log.jsonl", Path.unlink)])
def test_verify_names_what_is_broken_and_the_next_run_makes_only_that_again(smoke, outputs, capsys, file, damage):
    path = outputs / "smoke" / file
    before = path.read_bytes()
    untouched = {name: value for name, value in snapshot(outputs / "smoke").items() if name != str(path)}
    damage(path)
    assert act(smoke("action=verify")) == 1
    out = capsys.readouterr().out
    assert str(path) in out and "To make them again: python run_pipeline.py experiment=smoke" in out and "1 broken" in out
    step = file.split("/")[0]
    assert list(works(smoke())) == [step]
    smoke().run()
    assert path.read_bytes() == before and not list((outputs / "smoke").rglob("*.damaged"))
    after = snapshot(outputs / "smoke")
    if step.startswith(("make", "cam_to")):   # nothing else was made again
        same = [name for name in untouched if name.endswith((".npy", ".png")) and not name.endswith(f"{step}/{path.name}")]
        assert {name: after[name] for name in same} == {name: untouched[name] for name in same}
    assert act(smoke("action=verify")) == 0
    assert "0 broken" in capsys.readouterr().out


def test_the_example_of_the_readme(smoke_outputs, tmp_path, monkeypatch):
    """With the results of the finished run."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "Pipeline.compose" in block)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    words = (*SMOKE, f"data.root={smoke_outputs / '.data'}", f"reuse_from=[{smoke_outputs / 'smoke'}]")
    exec(code.replace('"experiment=smoke"', ", ".join(map(repr, words))), names)
    assert (tmp_path / "outputs/first/summary.json").exists()
    assert names["pipeline"].results()["scores"]["make_sem_seg_labels"]["miou"] == names["summary"]["scores"]["make_sem_seg_labels"]["miou"]


def test_an_action_is_a_file(tmp_path):
    """A copy of the tree with one more file: it is listed, composed with its own key, refused where it is misspelt, and done."""
    for name in ("pipeline", "steps", "wsss", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "run_pipeline.py", tmp_path)
    (tmp_path / "pipeline/actions/count.py").write_text(textwrap.dedent('''
        """Count the images of a list."""
        from dataclasses import dataclass
        from steps.runtime.datasets import open_dataset

        @dataclass
        class Settings:
            count_list: str | None

        def run(pipeline):
            print(len(open_dataset(pipeline.config.data).list_ids(pipeline.config.count_list)), "images")
            return 0
        '''))
    config = (tmp_path / "conf/config.yaml").read_text()
    (tmp_path / "conf/config.yaml").write_text(config.replace("action: run", "count_list: null\naction: run"))

    def door(*words):
        return processes.run("run_pipeline.py", *words, cwd=tmp_path)
    assert "  count            Count the images of a list.\n" in door("--help").stdout
    assert door("action=count", "count_list=val", "data.n_val=3", "experiment=smoke").stdout == "3 images\n"
    assert "allowed: check_labels, compare, count, export, export_official" in door("action=cuont").stderr
    assert "count_list='val' is not possible: expected no value, except with action=count" in door("count_list=val").stderr


def test_the_readme_has_every_action_in_the_words_of_its_file():
    readme = (ROOT / "README.md").read_text()
    for name, line in actions.help_lines().items():
        assert f"| `{name}` | {line} |" in readme


def test_a_plan_for_a_gpu_says_what_it_needs_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.runner.choose_device", lambda name: "cuda")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**20, 2**30))
    pipeline = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'out'}", "precision=float32")
    plan = {planned.name: planned.expected.gpu_mb for planned in pipeline.plan()}
    assert plan["eval_sem_seg"] == 0 and all(value > 32 for name, value in plan.items() if name != "eval_sem_seg")
    table = plan_table(pipeline.folder.path, pipeline.plan())
    assert re.search(r"of GPU memory at the peak \(1\.0 MB free\)\n  there may not be enough GPU memory", table)
    monkeypatch.setattr("pipeline.runner.choose_device", lambda name: "cpu")
    pipeline = Pipeline.compose(*SMOKE, f"outputs={tmp_path / 'out'}")
    assert {planned.expected.gpu_mb for planned in pipeline.plan()} == {None}


def test_the_measured_memory_of_a_gpu_takes_the_place_of_the_expected_one(smoke, outputs, monkeypatch):
    monkeypatch.setattr("pipeline.runner.choose_device", lambda name: "cuda")
    path = outputs / "smoke/make_cam/manifest.json"
    rewritten(path, device="cuda:0", peak_memory_mb={"host": 500.0, "cuda": 77.0})
    next((outputs / "smoke/make_cam").glob("*.npy")).unlink()
    planned = {planned.name: planned for planned in smoke().plan()}["make_cam"]
    assert (planned.expected.memory_mb, planned.expected.gpu_mb) == (500.0, 77.0)
