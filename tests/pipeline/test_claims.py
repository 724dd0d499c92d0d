"""Two runs on one folder: who works, who waits, and when the dead are succeeded."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from pipeline.runfolder.claims import Claim, Claims, Owner
from tests import processes
from tests.conftest import ROOT, SMOKE
from tests.pipeline.test_distributed import ONE_DIES
from wsss.errors import BusyError

SLOW = ONE_DIES.format("of nobody", 0)   # the door, with images that take a while to read
CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]   # the same host name
HOLDS = """
import sys, time
from pathlib import Path
from pipeline.runfolder.claims import Claims
claims = Claims(Path(sys.argv[1]))
with claims.planning(), claims.hold([("make_cam", 0, 1), ("eval_cam", 0, 1)], ["train_cam"]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that makes make_cam, then eval_cam, in `tmp_path`, and reads train_cam."""
    process = processes.start("-c", HOLDS, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def claim(*makes, reads=()) -> Claim:
    return Claim(Owner.me(), "now", makes, reads)


@pytest.mark.parametrize(("one", "two", "expected"), [
    (claim(("make_cam", 0, 1)), claim(("make_cam", 0, 1)), "make_cam"),
    (claim(("make_cam", 0, 4)), claim(("make_cam", 1, 4)), None),             # two shards of one division
    (claim(("make_cam", 0, 4)), claim(("make_cam", 0, 4)), "make_cam"),
    (claim(("make_cam", 1, 2)), claim(("make_cam", 0, 4)), "make_cam"),       # two divisions
    (claim(("make_cam", 0, 1)), claim(("eval_cam", 0, 1), reads=("make_cam",)), "make_cam"),
    (claim(("eval_cam", 0, 1), reads=("make_cam",)), claim(("make_cam", 0, 1)), "make_cam"),
    (claim(("eval_cam", 0, 1), reads=("make_cam",)), claim(("make_lpcam", 0, 1), reads=("make_cam",)), None),
])
def test_what_collides(one, two, expected):
    assert one.collides(two) == expected


def test_a_claim_of_a_living_process_is_respected(tmp_path, holder):
    claims = Claims(tmp_path)
    with pytest.raises(BusyError, match=rf"make_cam is in use by process {holder.pid} on \S+ since 20\d\d-.*Wait for it, stop it, or"):
        with claims.hold([("make_cam", 0, 1)], []):
            pass
    with pytest.raises(BusyError, match="eval_cam is in use"), claims.hold([], ["eval_cam"]):
        pass
    with claims.hold([("train_irn", 0, 1)], ["train_cam"]):   # neither makes what the other makes or reads
        assert len(claims.living()) == 2
    assert [other.owner.pid for other in claims.living()] == [holder.pid]


@pytest.mark.skipif(not shutil.which("unshare") or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0,
                    reason="no pid namespaces here")
def test_a_process_in_another_container_is_not_taken_for_dead(tmp_path):
    with subprocess.Popen([*CONTAINER, sys.executable, "-c", HOLDS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        alive = Claims(tmp_path).living()
        other.kill()
    assert [claim.makes[0] for claim in alive] == [("make_cam", 0, 1)]


def test_a_dead_owner_is_succeeded(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    claims = Claims(tmp_path)
    assert claims.living() == []
    with claims.hold([("make_cam", 0, 1)], []):
        assert [path.name for path in tmp_path.glob(".locks/*.json")] == [next(tmp_path.glob(f".locks/*-{os.getpid()}-*")).name]
    assert not list(tmp_path.glob(".locks/*.json"))


@pytest.mark.parametrize(("change", "alive"), [
    ({}, True), ({"host": "renamed"}, True),
    ({"started": 1}, False),                                   # a later process with the same number
    ({"started": 1, "namespace": "pid:[1]"}, True),            # another container on this machine
    ({"started": 1, "boot": "b", "machine": ""}, True),        # one on another machine, or before this one started again
    ({"started": 1, "boot": "", "namespace": ""}, True),       # a system that does not say
    ({"boot": "b", "machine": "m"}, False), ({"boot": "b", "machine": "m", "host": "elsewhere"}, True),   # before a new start
])
def test_a_process_number_counts_only_where_it_was_given(monkeypatch, change, alive):
    me = replace(Owner.me(), machine="m")
    monkeypatch.setattr(Owner, "me", lambda: me)
    assert replace(me, **change).is_alive() is alive


@pytest.mark.parametrize(("squeue", "alive"), [
    ("echo RUNNING", True), ("true", False), ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", False),
    ("echo 'Unable to contact slurm controller' >&2; exit 1", True), (None, True)])
def test_an_owner_on_another_node_is_asked_for_by_its_job(tmp_path, monkeypatch, squeue, alive):
    monkeypatch.setenv("PATH", str(tmp_path))
    if squeue:
        script = tmp_path / "squeue"
        script.write_text(f"#!/bin/sh\n{squeue}\n")
        script.chmod(0o755)
    assert Owner("elsewhere", 1, 1, "4711").is_alive() is alive
    assert Owner("elsewhere", 1, 1, None).is_alive()   # nobody can be asked


def test_a_restarted_job_succeeds_itself(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not Owner("elsewhere", 1, 1, "4711", restarts=0).is_alive()
    assert Owner("elsewhere", 1, 1, "4711", restarts=1).is_alive()


def test_a_damaged_claim_is_named(tmp_path):
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks/x.json").write_text("{")
    with pytest.raises(BusyError, match=r"x.json is not a claim of a run .*Delete it if no run works"), Claims(tmp_path).hold([], []):
        pass


def test_planning_waits_for_planning(tmp_path):
    code = HOLDS.replace('with claims.planning(), claims.hold([("make_cam", 0, 1), ("eval_cam", 0, 1)], ["train_cam"])', "with claims.planning()")
    other = processes.start("-c", code.replace("sleep(100)", "sleep(3)"), tmp_path)
    other.stdout.readline()
    said, start = [], time.monotonic()
    with Claims(tmp_path).planning(said.append):
        assert time.monotonic() - start > 1
    assert len(said) == 1
    assert re.search(rf"waiting for another run that is planning: process {other.pid} on \S+ since 20\d\d-\d\d-\d\d", said[0])
    other.wait()
    assert (tmp_path / ".locks/planning").read_text() == ""   # no one plans


def test_who_plans_for_too_long_is_named(tmp_path, monkeypatch):
    """Such as a process that was stopped. Without the text of the lock file the message has no process."""
    monkeypatch.setattr("pipeline.runfolder.claims.PATIENCE", 0.2)
    with Claims(tmp_path).planning():
        for expected in (rf"has been planning for over \d+ minutes: process {os.getpid()} on \S+ since 20\d\d-", "its process is not known"):
            with pytest.raises(BusyError, match=expected), Claims(tmp_path).planning():
                pass
            (tmp_path / ".locks/planning").write_text("{")


def call(outputs, *overrides, door=("run_pipeline.py",)):
    return processes.start(*door, *SMOKE, f"outputs={outputs}", *overrides)


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_works(outputs):
    for step in ("make_cam", "eval_sem_seg"):
        (outputs / f"smoke/{step}").rename(outputs / f"{step}-before")
    runs = [call(outputs, door=("-c", SLOW)), call(outputs, door=("-c", SLOW))]   # the first must not be done when the second comes
    texts = [run.communicate() for run in runs]
    winner, loser = sorted(range(2), key=lambda i: runs[i].returncode)
    assert runs[winner].returncode == 0, texts[winner]
    assert runs[loser].returncode == 1
    assert f"is in use by process {runs[winner].pid} on " in texts[loser][1] and " since 20" in texts[loser][1]
    for file in (outputs / "make_cam-before").glob("*.npy"):
        assert file.read_bytes() == (outputs / "smoke/make_cam" / file.name).read_bytes()


@pytest.mark.slow
def test_eight_runs_at_once_draw_the_embedded_data_together(tmp_path):
    runs = [call(tmp_path, f"name=run{i}", "to_step=train_cam", "train_cam.epochs=1") for i in range(8)]
    texts = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 8, texts
    weights = {(tmp_path / f"run{i}/train_cam/weights.safetensors").read_bytes() for i in range(8)}
    assert len(weights) == 1
    assert [path.name for path in (tmp_path / ".data").iterdir()] == ["shapes-seed0-train24-val8"]
    assert json.loads((tmp_path / "run0/run.json").read_text())["data"]["name"] == "shapes"


def test_a_claim_that_this_process_left_on_a_disk_that_was_gone_stops_nobody(tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    with Claims(run).hold([("train_cam", 0, 1)], []):
        run.rename(away)
    away.rename(run)
    assert list(run.glob(".locks/*.json"))
    with Claims(run).hold([("train_cam", 0, 1)], []):
        assert len(Claims(run).living()) == 1
