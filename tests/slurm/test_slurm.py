"""The steps as jobs of a real Slurm: chain, arrays, failures, preemption; results equal those of an undisturbed run."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from steps.runtime.journal import journal_lines
from tests import processes
from tests.conftest import SMOKE, contents, remove

pytestmark = pytest.mark.slow
JOB = ("submit.default.cpus=1", "submit.default.memory=1G", "submit.default.time=10")


class Cluster:
    def __init__(self, outputs: Path, environment: dict[str, str]):
        self.outputs, self.environment = outputs, environment

    def ask(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    def call(self, *overrides: str) -> str:
        done = processes.run("run_pipeline.py", *SMOKE, *JOB, f"outputs={self.outputs}", *overrides, env=self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def queued(self) -> list[str]:
        return self.ask("squeue", "-h", "-r", "-o", "%j %T").splitlines()

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.outputs.glob("smoke/slurm/*.log")))

    def wait(self, condition, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "\n".join([*self.queued(), self.logs()])
            time.sleep(0.2)

    def numbers(self) -> dict[tuple[str, str], str]:
        return {(job["step"], job["part"]): job["number"] for job in json.loads((self.outputs / "smoke/slurm/jobs.json").read_text())}


@pytest.fixture
def cluster(slurm, outputs):   # nothing is run where there is none
    cluster = Cluster(outputs, slurm)
    yield cluster
    cluster.ask("scancel", "--user=root")
    cluster.wait(lambda: not cluster.queued())


def test_a_chain_of_jobs(cluster, outputs):
    """Arrays, a training of two processes, evaluation; submitted twice, cancelled, submitted again."""
    steps = ("cam_to_ir_label", "train_irn", "make_sem_seg_labels", "eval_sem_seg")
    before = {step: remove(outputs, step) for step in steps}
    call = ("action=submit", "submit.shards=2", "submit.train_irn.tasks=2", "submit.train_irn.gpus=2")
    later = 'submit.default.options=["--begin=now+1hour"]'
    text = cluster.call(*call, later)
    assert text.count("submitted, job") == 7 and "make_sem_seg_labels (prepare): submitted" in text
    script = (outputs / "smoke/slurm/train_irn.sh").read_text()
    assert "#SBATCH --ntasks-per-node=2" in script and "#SBATCH --gres=gpu:2" in script and "train_irn_pass=true" in script
    text = cluster.call(*call, later)
    assert text.count("is queued already") == 7 and "submitted," not in text
    status = cluster.call("action=status")
    assert "(shards): 2 PENDING (BeginTime)" in status and "(whole): PENDING (Dependency)" in status
    cluster.ask("scancel", "--user=root")
    cluster.wait(lambda: not cluster.queued())
    assert cluster.call(*call).count("submitted, job") == 7
    cluster.wait(lambda: not cluster.queued())
    assert contents(outputs / "smoke/cam_to_ir_label") == before["cam_to_ir_label"], cluster.logs()
    for step in steps[1:]:
        assert contents(outputs / "smoke" / step).keys() == before[step].keys(), cluster.logs()
    assert "process" not in cluster.logs().replace("processes", "")
    assert "nothing to do" in cluster.call(*call)


def test_a_failed_shard_and_one_that_is_told_to_save(cluster, smoke, outputs, tmp_path):
    """Task 1 fails and leaves its siblings alone; task 0 gets the warning before a time limit, queues again and continues."""
    longer = "make_cam.scales=[1.0,0.5,1.5,2.0,3.0,4.0,5.0,6.0]"   # else task 0 could be over before it is warned
    smoke("make_cam_pass=true", longer).run()
    before, mended = remove(outputs, "make_cam"), tmp_path / "mended"
    setup = f'submit.make_cam.setup=["test -e {mended} -o x$SLURM_ARRAY_TASK_ID != x1 || exit 3"]'
    call = ("action=submit", "to_step=make_cam", "submit.shards=3", longer, setup)
    assert cluster.call(*call).count("submitted, job") == 2
    number = cluster.numbers()["make_cam", "shards"]

    ids = [json.loads(line)["id"] for line in before["index.jsonl"].decode().splitlines()]

    def done(shard: int) -> int:
        return sum(line["id"] in ids[shard::3] for folder in outputs.glob("smoke/make_cam.partial-*") for line in journal_lines(folder))
    cluster.wait(lambda: done(0) >= 2)
    cluster.ask("scancel", "--batch", "--signal=USR1", f"{number}_0")
    cluster.wait(lambda: not cluster.queued())   # the completing job goes too: it could never start
    log = (outputs / f"smoke/slurm/make_cam-shards-{number}_0.log").read_text()
    assert "stopped by SIGUSR1" in log and log.count("make_cam, shard=0/3: done") == 1, log
    assert [done(shard) for shard in range(3)] == [11, 0, 10] and not (outputs / "smoke/make_cam").exists()

    mended.touch()
    text = cluster.call(*call)
    assert "make_cam (shards 1): submitted" in text and "make_cam (whole): submitted" in text
    cluster.wait(lambda: not cluster.queued())
    assert contents(outputs / "smoke/make_cam") == before, cluster.logs()


def test_the_members_of_a_sweep_as_jobs(cluster, outputs):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra [slurm] is not installed")
    text = cluster.call("-m", "refiner.beta=4,8", "hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1")
    assert "pseudo masks" in text and (outputs / "smoke/sweep.csv").read_text().count("\n") == 3
    for beta in (4, 8):
        assert "taken_from" in (outputs / f"smoke/refiner.beta={beta}/train_irn/manifest.json").read_text()


def test_a_training_that_is_preempted(cluster, outputs):
    """A job of a partition that goes first takes the node; the training saves, queues again and ends with the same bytes."""
    longer = ("train_irn_pass=true", "train_irn.epochs=60")   # else it could be over before the other job goes first
    remove(outputs, "train_irn")
    assert "train_irn (whole): submitted" in cluster.call("action=submit", *longer)
    cluster.wait(lambda: not cluster.queued())
    before = remove(outputs, "train_irn")
    assert "train_irn (whole): submitted" in cluster.call("action=submit", *longer)
    cluster.wait(lambda: any(outputs.glob("smoke/train_irn.partial-*/state.safetensors")))
    cluster.ask("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait(lambda: not cluster.queued())
    assert contents(outputs / "smoke/train_irn") == before, cluster.logs()
    assert "stopped by SIG" in cluster.logs() and "continue" in cluster.logs()
