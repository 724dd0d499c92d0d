"""The Slurm jobs of a run: requested resources, submitted jobs and their states."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from pipeline.order import BY_NAME, STEPS
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
    """The resources of the jobs of one step; None: the value of `submit.default`."""

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
        for row in STEPS:
            job = self.of(row.name)
            require(job.gpus in (0, None, job.tasks), f"submit.{row.name}.gpus", job.gpus,
                    f"0, or one for each of submit.{row.name}.tasks={job.tasks}")

    def of(self, step: str) -> JobSettings:
        """The resources of the jobs of `step`."""
        own = getattr(self, step)
        return JobSettings(**{item.name: getattr(self.default if getattr(own, item.name) is None else own, item.name)
                              for item in fields(JobSettings)})


SubmitSettings = make_dataclass(
    "SubmitSettings", [(row.name, JobSettings, field(default_factory=JobSettings)) for row in STEPS], bases=(_Submit,))
SubmitSettings.__module__ = __name__   # so that a launcher can unpickle it


def read_jobs(folder: RunFolder) -> list[dict[str, Any]]:
    """The submitted jobs of a run: step, part, number, shards. Raises ArtifactError if the file is damaged."""
    path = folder.path / FOLDER / JOBS
    if not path.exists():
        return []
    records = read_json(path)
    if not isinstance(records, list) or not all(map(_is_job, records)):
        raise ArtifactError(f"{path} is not a list of jobs. Check with squeue that no job of this run is queued, then delete it")
    return records


def _is_job(record: Any) -> bool:
    """Whether it is a job as `submit` writes it. Its values go into scripts and commands, and the run may be another user's."""
    return (isinstance(record, dict) and {"step", "part", "number", "shards"} <= record.keys() and record["step"] in BY_NAME
            and isinstance(record["shards"], int) and re.fullmatch(r"\d+", str(record["number"])) is not None)


def queue(numbers: Iterable[str]) -> dict[str, dict[str, str]]:
    """The states of jobs: number -> array task ("" for a job without array) -> state. Unknown jobs are left out.

    Raises BackendError if squeue fails.
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
    try:   # states of ended jobs, if Slurm accounting is installed
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
    """The lines about jobs in `action=status`: step -> lines."""
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
    """The output of a Slurm command. Raises BackendError if it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise BackendError(f"{command[0]} was not found{about}: submit where Slurm's commands are installed, or set "
                           "submit.dry_run=true to get the scripts only") from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{command[0]} did not answer within 120 seconds{about}. Try again when Slurm answers") from error
    if answer.returncode:
        words = answer.stderr.strip() or answer.stdout.strip()
        raise BackendError(f"{command[0]} failed{about}: {words}. Correct that setting in submit. (partition, account, ...) "
                           "and submit again")
    return answer.stdout
