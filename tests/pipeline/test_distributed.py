"""Several processes for one run, as torchrun and srun start them: the same results, and nobody is left waiting."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import Pipeline
from pipeline.cluster.distributed import DistributedSettings, Place, find_place, first_host
from pipeline.cluster.processes import Processes
from pipeline.plan.plan import check_share
from pipeline.runfolder.folder import RunFolder
from steps.runtime.context import Group, Stopped
from steps.runtime.journal import journal_lines
from steps.step import TRAINING
from tests import processes
from tests.conftest import SMOKE, contents, remove
from wsss.errors import ConfigError

CALL = ["run_pipeline.py", *SMOKE, "device=cpu"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# The door, with images that take a quarter of a second to read; at its third image the process of rank {0} gets the signal {1}.
ONE_DIES = """
import os, sys, time
from wsss.data.dataset import Dataset
image, read = Dataset.image, []
def slow(self, image_id):
    time.sleep(0.25)
    read.append(image_id)
    if os.environ.get("RANK") == "{0}" and len(read) == 3:
        os.kill(os.getpid(), {1})
    return image(self, image_id)
Dataset.image = slow
sys.argv[0] = "run_pipeline.py"
import run_pipeline
run_pipeline.main()
"""


def torchrun(outputs: Path, *overrides: str, n: int = 2, code: str | None = None) -> subprocess.CompletedProcess:
    """`n` processes as torchrun starts them; `code` stands for the door."""
    door = ["--no-python", sys.executable, "-c", code] if code else CALL[:1]
    return processes.run("-m", "torch.distributed.run", f"--nproc-per-node={n}", "--master-port=0", "--rdzv-backend=c10d",
                         "--rdzv-endpoint=127.0.0.1:0", *door, *CALL[1:], f"outputs={outputs}", *overrides, env=ENVIRONMENT)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(outputs: Path, *overrides: str, n: int = 2, code: str | None = None) -> list[processes.Process]:
    """`n` processes with the environment that torchrun gives, but nobody who looks after them; `code` stands for the door."""
    port, door = str(free_port()), ["-c", code] if code else CALL[:1]
    return [processes.start(*door, *CALL[1:], f"outputs={outputs}", *overrides,
                            env={**ENVIRONMENT, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}) for rank in range(n)]


def ends(started: list[processes.Process]) -> list[tuple[int, str, str]]:
    """The exit status, output and errors of each."""
    return [(process.wait(), *texts) for process, texts in [(process, process.communicate(90)) for process in started]]


def together(outputs: Path, *overrides: str, n: int = 2) -> str:
    """The output of the first of `n` processes, all of which end well."""
    results = ends(start(outputs, *overrides, n=n))
    assert [code for code, *_ in results] == [0] * n, results
    return results[0][1]


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, None),
    ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
    ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29"}, Place(3, 8, 1, "a", 29)),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, None),   # a batch script, not started by srun
    ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1",
      "SLURM_STEP_NODELIST": "gpu[03-05,9],cpu1", "SLURM_STEP_NUM_NODES": "4"}, Place(2, 4, 0, "gpu03", 20260)),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0",
      "SLURM_STEP_NODELIST": "vm", "SLURM_STEP_NUM_NODES": "1"}, Place(1, 2, 1, "127.0.0.1", 20259)),
])
def test_where_a_process_stands(environment, expected):
    assert find_place(environment) == expected


def test_the_first_node_of_a_list_and_half_an_environment():
    assert first_host("a,b") == "a" and first_host("r[1-2]n[07,9]") == "r1n07"
    with pytest.raises(ConfigError, match=r"the launcher's environment is incomplete \(KeyError: 'RANK'\).*torchrun or srun"):
        find_place({"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="distributed.start=0.5 is not possible: expected at least 2 seconds"):
        DistributedSettings(start=0.5)


def test_a_process_has_the_lists_of_the_first_one_with_an_imported_step_too(outputs, monkeypatch):
    """Nothing is done: what is kept is what the first process sends, and what another one makes of it."""
    sent, lists = [], []

    class Recorded(Group):
        def broadcast(self, make):
            sent.append(json.dumps(make()))
            return json.loads(sent[-1])

    class Replayed(Group):
        rank = 1

        def broadcast(self, make):
            return json.loads(sent.pop(0)) if sent else None

    def do(self, planned, folder):
        lists.append(planned.lists)
        if self.group.is_main:
            raise Stopped
    remove(outputs, "make_cam")
    monkeypatch.setattr(RunFolder, "imported", lambda self, step: "0" * 32 if step == "make_lpcam" else None)
    monkeypatch.setattr(Pipeline, "_do", do)
    for group in (Recorded(), Replayed()):
        pipeline = Pipeline.compose(*SMOKE, f"outputs={outputs}", "device=cpu", "from_step=make_cam", "to_step=make_cam",
                                    "eval_cam.threshold={make_cam: 0.2, make_lpcam: 0.2, make_lpcam_fg_only: 0.2}")
        pipeline.group = group
        with suppress(Stopped):
            pipeline.run()
    assert lists[0] == lists[1] and len(lists[0]["ids"]) == 24


def exchange(rank: int, port: int, results) -> None:
    group = Processes(Place(rank, 2, rank, "127.0.0.1", port), DistributedSettings(start=60))
    results.put((rank, group.broadcast(lambda: {"of": rank, "text": "ä" * 1000}), group.all_gather(["x" * 10 * rank, None])))
    results.close()
    results.join_thread()
    group.leave(0)


def test_values_are_exchanged_as_json():
    context, port = multiprocessing.get_context("spawn"), free_port()
    results = context.Queue()
    started = [context.Process(target=exchange, args=(rank, port, results)) for rank in (0, 1)]
    for process in started:
        process.start()
    assert sorted(results.get(timeout=60) for _ in started) == [
        (rank, {"of": 0, "text": "ä" * 1000}, [["", None], ["x" * 10, None]]) for rank in (0, 1)]
    for process in started:
        process.join()
        assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_leave_the_bits_of_one(smoke_outputs, tmp_path, n):
    """All steps, the trainings and their logs too. The two are those of torchrun."""
    shutil.copytree(smoke_outputs / ".data", tmp_path / ".data")
    if n == 2:
        done = torchrun(tmp_path)
        assert done.returncode == 0 and "pseudo masks" in done.stdout, done.stderr
    else:
        assert "pseudo masks" in together(tmp_path, n=n)
    for step in ("train_cam", "make_cam", "make_lpcam", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg"):
        assert contents(tmp_path / "smoke" / step) == contents(smoke_outputs / "smoke" / step), step


@pytest.mark.slow
def test_a_training_of_two_processes_is_continued_by_three(smoke_outputs, tmp_path):
    shutil.copytree(smoke_outputs / ".data", tmp_path / ".data")
    started = start(tmp_path, "to_step=train_cam", "log_level=debug")
    for line in started[0].stdout:
        if "train_cam: 4/60" in line:
            started[1].send_signal(signal.SIGTERM)   # one of them is enough
            break
    results = ends(started)
    assert [code for code, *_ in results] == [128 + signal.SIGTERM] * 2, results
    assert "stopped by SIGTERM" in results[0][2] and "the same command continues" in results[0][2]
    assert "continue" in together(tmp_path, "to_step=train_cam", n=3)
    assert contents(tmp_path / "smoke/train_cam") == contents(smoke_outputs / "smoke/train_cam")


def test_more_processes_than_images_or_parts_of_a_batch_are_refused(smoke):
    config = (planning := smoke("name=new", "train_cam.batch_size=6", "train_irn.parts=null")).config
    train_cam, train_irn = (planned for planned in planning.plan() if planned.step.KIND == TRAINING)
    for planned, n in ((train_cam, 4), (train_irn, 8)):
        check_share(config, planned, n)
    for planned, n, message in (
            (train_cam, 7, r"7 processes cannot share the batches of train_cam, which have 6 images \(train_cam.batch_size=6, 24 images\)"),
            (train_irn, 9, "9 processes cannot share the batches of train_irn, which have 8 images"),
            (train_cam, 5, r"5 processes cannot share the 4 parts of a batch \(train_cam.parts=4\). Start at most 4 processes, or set "
                           r"train_cam.parts=5 \(another training: it changes rounding\) or train_cam.parts=null")):
        with pytest.raises(ConfigError, match=message):
            check_share(config, planned, n)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(outputs):
    """torchrun ends them all at once; without it another one ends where it meets the dead one."""
    before = remove(outputs, "make_cam")
    for rank, number in ((0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM)):
        done = torchrun(outputs, "to_step=make_cam", code=ONE_DIES.format(rank, int(number)))
        assert done.returncode == 1 and "SIGTERM: saving, then stopping" in done.stderr, done.stderr
        folder, = outputs.glob("smoke/make_cam.partial-*")
        assert 0 < sum(1 for _ in journal_lines(folder)) < 32
    for rank in (0, 1):
        shutil.rmtree(folder)
        results = ends(start(outputs, "to_step=make_cam", code=ONE_DIES.format(rank, int(signal.SIGKILL))))
        assert [result[0] for result in results] == [1 if rank else -9, -9 if rank else 1], results
        assert "another process has ended or hangs" in results[1 - rank][2], results
    together(outputs, "to_step=make_cam")
    assert contents(outputs / "smoke/make_cam") == before


@pytest.mark.slow
def test_errors_of_one_process_are_told_once(outputs):
    shutil.rmtree(outputs / "smoke/make_cam")
    image = sorted((outputs / ".data").glob("*/images/train_0001.*"))[0]
    code = """
import os, sys
from wsss.data.dataset import Dataset
from wsss.errors import DataError
image = Dataset.image
def bad(self, image_id):
    if image_id in ("train_0001", "train_0002"):
        raise DataError(f"{image_id} is bad")
    return image(self, image_id)
Dataset.image = bad
sys.argv[0] = "run_pipeline.py"
import run_pipeline
run_pipeline.main()
"""
    assert image.exists()
    done = torchrun(outputs, "to_step=make_cam", code=code)
    assert done.returncode == 1 and done.stderr.count("2 of 32 images failed, the others are done") == 1, done.stderr
    assert len(list(outputs.glob("smoke/make_cam.partial-*/*.npy"))) == 30

    done = torchrun(outputs, "train_cam.epochs=oops")
    assert done.returncode == 1 and done.stderr.count("could not be converted") == 1, done.stderr

    (outputs / "smoke/train_cam").rename(outputs / "put-away")
    done = torchrun(outputs, "to_step=train_cam", "train_cam.batch_size=2", n=3)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1, done.stderr
    assert "3 processes cannot share the batches of train_cam, which have 2 images" in done.stderr


def test_whoever_does_not_come_is_named(outputs):
    first = start(outputs, "distributed.start=3", n=3)
    first[2].kill()
    code, _, errors = ends(first)[0]
    assert code == 1 and "of 3 processes 2 came within distributed.start=3 seconds; missing: 2" in errors


@pytest.mark.slow
def test_a_run_folder_that_one_machine_does_not_see(outputs):
    """The second process finds another disk at the path of the run folder."""
    before = remove(outputs, "make_cam")
    code = """
import os, sys
from pathlib import Path
import pipeline.work
pipeline.work.PATIENCE = 1.0
if os.environ["RANK"] == "1":
    exists = Path.exists
    Path.exists = lambda self, **words: self.name != pipeline.work.RUN and exists(self, **words)
sys.argv[0] = "run_pipeline.py"
import run_pipeline
run_pipeline.main()
"""
    results = ends(start(outputs, "to_step=make_cam", code=code))
    assert [result[0] for result in results] == [1, 1], results
    assert "process 1 of 2" in results[0][2] and "the run folder must be on a file system that all machines share" in results[0][2]
    assert not list(outputs.glob("smoke/make_cam*")) and before      # before any work
