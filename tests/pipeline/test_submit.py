"""What `action=submit` writes and says, without a Slurm; `tests/slurm` has a real one."""

import os
from pathlib import Path

import pytest

from pipeline.cluster.jobs import job_lines, queue
from tests.conftest import contents, remove
from wsss.errors import ArtifactError, BackendError, ConfigError


def program(folder: Path, name: str, code: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{code}\n")
    (folder / name).chmod(0o755)


def test_dry_run_only_writes(smoke, outputs, monkeypatch):
    remove(outputs, "make_lpcam"), remove(outputs, "eval_cam")
    monkeypatch.setenv("PATH", "")
    done = smoke("action=submit", "submit.dry_run=true", "to_step=eval_cam", "submit.shards=3", "submit.make_lpcam.time=99", "submit.make_lpcam.gpus=1",
                 'submit.default.setup=["module load cuda"]').submit()
    assert [(one.job.step, one.job.part, one.job.array) for one in done] == [
        ("make_lpcam", "prepare", None), ("make_lpcam", "shards", "0,1,2"), ("make_lpcam", "whole", None), ("eval_cam", "whole", None)]
    assert "--dependency=afterok:make_lpcam-shards" in done[2].command and "--kill-on-invalid-dep=yes" in done[2].command
    assert done[0].command.endswith("make_lpcam.sh shard=prepare") and all(one.number is None for one in done)
    script = (outputs / "smoke/slurm/make_lpcam.sh").read_text()
    for line in ("#SBATCH --time=99", "#SBATCH --gres=gpu:1", "module load cuda", "--signal=B:USR1@120"):
        assert line in script
    call = script[script.index("srun"):]
    assert "submit." not in call and "action=" not in call and "to_step" not in call and "make_lpcam_pass=true" in call
    assert "precision=float32" in call   # written out: where it is automatic machines may differ
    assert not (outputs / "smoke/slurm/jobs.json").exists()


def test_what_slurm_refuses_is_told_in_its_own_words(smoke, outputs, tmp_path, monkeypatch):
    remove(outputs, "eval_cam")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="sbatch was not found, for eval_cam: submit where Slurm's commands are"):
        smoke("to_step=eval_cam").submit()
    program(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(BackendError, match=r"sbatch failed, for eval_cam: sbatch: error: invalid partition specified: gpu\. Correct"):
        smoke("to_step=eval_cam").submit()


def test_what_the_queue_says(smoke, outputs, tmp_path, monkeypatch):
    remove(outputs, "make_cam")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program(tmp_path, "sbatch", "case $* in *--array*) echo '11;cluster';; *) echo 12;; esac")
    program(tmp_path, "squeue", "echo '11|0|RUNNING|None'; echo '11|2|PENDING|Resources'; echo '12|N/A|PENDING|Dependency'; echo '99|N/A|RUNNING|None'")
    program(tmp_path, "sacct", "echo '11_1|CANCELLED by 0'; echo '11_0|RUNNING'; echo '12|PENDING'")
    call = ("to_step=make_cam", "submit.shards=3")
    assert [one.number for one in smoke(*call).submit()] == ["11", "12"]
    assert queue(["11", "12"]) == {"11": {"0": "RUNNING", "2": "PENDING (Resources)", "1": "CANCELLED"}, "12": {"": "PENDING (Dependency)"}}
    assert job_lines(smoke().folder) == {"make_cam": [
        "job 11 (shards): 1 RUNNING, 1 PENDING (Resources), 1 CANCELLED", "job 12 (whole): PENDING (Dependency)"]}
    again = smoke("to_step=make_cam", "submit.shards=5").submit()   # the array goes on in its three parts
    assert [(one.job.array, one.queued) for one in again] == [("0,1,2", True), ("1", False), (None, True)]
    for text in ("{}", '[{"step": "make_cam", "part": "shards", "number": "1", "shards": "$(touch x)"}]'):
        (outputs / "smoke/slurm/jobs.json").write_text(text)
        with pytest.raises(ArtifactError, match="jobs.json is not a list of jobs. Check with squeue"):
            job_lines(smoke().folder)


@pytest.mark.parametrize(("overrides", "message"), [
    (("shard=1/2",), "shard=1/2 needs one step that makes one artifact per image.*selected: train_cam, make_cam"),
    (("shard=1/2", "eval_cam_pass=true"), "shard=1/2 needs one step"),
    (("shard=2/2", "make_cam_pass=true"), "shard='2/2' is not possible: expected I/N with I from 0 to N-1, or prepare"),
    (("shard=all", "make_cam_pass=true"), "shard='all' is not possible"),
    (("submit.train_cam.gpus=4",), "submit.train_cam.gpus=4 is not possible: expected 0, or one for each of submit.train_cam.tasks=1"),
    (("submit.shards=0",), "submit.shards=0 is not possible"),
    (("submit.to=moon",), "submit.to='moon' is not possible: expected slurm"),
])
def test_what_cannot_be_is_refused(smoke, overrides, message):
    with pytest.raises(ConfigError, match=message):
        smoke(*overrides).plan()


def test_shards_one_after_the_other(smoke, outputs):
    before = remove(outputs, "make_sem_seg_labels")
    call = ("make_sem_seg_pass=true",)
    with pytest.raises(ArtifactError, match="threshold.json does not exist yet: it is made once for all shards.*shard=prepare"):
        smoke(*call, "shard=0/2").run()
    smoke(*call, "shard=prepare").run()
    folder = next(outputs.glob("smoke/make_sem_seg_labels.partial-*"))
    assert [path.name for path in folder.iterdir() if path.suffix in (".png", ".json") and path.name != "work.json"] == ["threshold.json"]
    for shard in ("2/3", "0/3", "1/3"):
        smoke(*call, f"shard={shard}").run()
    assert not (outputs / "smoke/make_sem_seg_labels").exists() and len(list(folder.glob("journals/*-of-3.jsonl"))) == 3
    smoke(*call).run()
    assert contents(outputs / "smoke/make_sem_seg_labels") == before
    assert os.path.exists(outputs / "smoke/config.yaml")
