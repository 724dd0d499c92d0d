"""The jobs of a run at Slurm: what they ask for, which were submitted, and what became of them."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from pipeline.order import STEPS
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import read_json
from steps.runtime.context import require
from wsss.errors import ArtifactError, BackendError

FOLDER, JOBS = "slurm", "jobs.json"
PREPARE, SHARDS, WHOLE = "prepare", "shards", "whole"   # parts of a step
LIVING = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
          "SPECIAL_EXIT", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}


@dataclass
class JobSettings:
    """What the jobs of one step ask for; None: as `submit.default`."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    nodes: int | None = None
    tasks: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    memory: str | None = None
    setup: list[str] | None = None
    options: list[str] | None = None


@dataclass
class _Submit:
    to: str
    dry_run: bool
    shards: int
    warn_seconds: int
    python: str | None
    default: JobSettings

    def __post_init__(self) -> None:
        require(self.to == "slurm", "submit.to", self.to, "slurm")
        require(self.shards >= 1, "submit.shards", self.shards, "at least 1")
        require(self.warn_seconds >= 1, "submit.warn_seconds", self.warn_seconds, "at least 1")
        for name in ("nodes", "tasks", "cpus"):
            require((getattr(self.default, name) or 0) >= 1, f"submit.default.{name}", getattr(self.default, name), "at least 1")
        for step in STEPS:
            job = self.of(step.name)
            require(job.gpus in (0, None, job.tasks), f"submit.{step.name}.gpus", job.gpus,
                    f"0, or one for each of submit.{step.name}.tasks={job.tasks}")

    def of(self, step: str) -> JobSettings:
        """What the jobs of `step` ask for."""
        own = getattr(self, step)
        return JobSettings(**{item.name: getattr(self.default if getattr(own, item.name) is None else own, item.name)
                              for item in fields(JobSettings)})


SubmitSettings = make_dataclass(
    "SubmitSettings", [(step.name, JobSettings, field(default_factory=JobSettings)) for step in STEPS], bases=(_Submit,))
SubmitSettings.__module__ = __name__   # so that it is found by name where a launcher has pickled it


def read_jobs(folder: RunFolder) -> list[dict[str, Any]]:
    """The jobs that were submitted for a run: step, part, number, shards."""
    path = folder.path / FOLDER / JOBS
    if not path.exists():
        return []
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) and {"step", "part", "number", "shards"} <= record.keys()
                                                for record in records):
        raise ArtifactError(f"{path} is no list of jobs. See with squeue that none of this run is queued, then delete it")
    return records


def queue(numbers: Iterable[str]) -> dict[str, dict[str, str]]:
    """What Slurm says of jobs: number -> task of the array ("" for a job without) -> state, of those that it knows.

    Raises
    ------
    BackendError
        when squeue cannot be asked.
    """
    numbers = sorted(set(numbers))
    if not numbers:
        return {}
    states: dict[str, dict[str, str]] = {}
    for line in ask(["squeue", "--noheader", "--array", "--me", "--format=%F|%K|%T|%r"]).splitlines():
        number, task, state, reason = line.strip().split("|", 3)
        if number in numbers:
            waits = f" ({reason})" if state == "PENDING" and reason not in ("None", "") else ""
            states.setdefault(number, {})["" if task == "N/A" else task] = state + waits
    try:   # of jobs that have ended the accounting knows, where there is one
        text = ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs=" + ",".join(numbers)])
    except BackendError:
        return states
    for line in text.splitlines():
        name, _, state = line.strip().partition("|")
        number, _, task = name.partition("_")
        if re.fullmatch(r"\d*", task):
            states.setdefault(number, {}).setdefault(task, state.split(" ")[0])
    return states


def job_lines(folder: RunFolder) -> dict[str, list[str]]:
    """What `action=status` shows of the jobs: step -> lines."""
    records, lines = read_jobs(folder), {}
    try:
        states = queue(record["number"] for record in records)
    except BackendError as error:
        return {record["step"]: [str(error)] for record in records[-1:]}
    for record in records:
        counts: dict[str, int] = {}
        for state in states.get(record["number"], {}).values():
            counts[state] = counts.get(state, 0) + 1
        if counts:
            text = ", ".join(state if n == 1 and record["part"] != SHARDS else f"{n} {state}" for state, n in counts.items())
            lines.setdefault(record["step"], []).append(f"job {record['number']} ({record['part']}): {text}")
    return lines


def living(states: dict[str, dict[str, str]], record: dict[str, Any]) -> bool:
    return any(state.split(" ")[0] in LIVING for state in states.get(record["number"], {}).values())


def ask(command: list[str], about: str = "") -> str:
    """What a command of Slurm says."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise BackendError(f"{command[0]} is not there{about}: submit where Slurm's commands are installed, or set "
                           "submit.dry_run=true to get the scripts only") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{command[0]} has not answered for 120 seconds{about}. Try again when Slurm answers") from error
    if answer.returncode:
        words = answer.stderr.strip() or answer.stdout.strip()
        raise BackendError(f"{command[0]} refused{about}: {words}. Mend what it names in submit. (partition, account, ...), then "
                           "submit again")
    return answer.stdout
