"""Submit the steps of a run to Slurm: one script for each step in `RUN/slurm/`, submitted as a chain of jobs.

A step that works image by image has up to three jobs of one script: the part common to all images (shard=prepare), an array
of shards (shard=I/N), and the job that completes the step. A job starts after all earlier jobs have succeeded (afterok).
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.jobs import FOLDER, JOBS, LIVING, PREPARE, SHARDS, WHOLE, ask, living, queue, read_jobs
from pipeline.order import STEPS
from pipeline.plan.plan import REUSE, PlannedStep, check_share, seen_by_step, work_folder
from pipeline.runfolder.folder import RunFolder
from steps.runtime.artifacts import write_json
from steps.runtime.journal import unfinished
from steps.step import IMAGES
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.files import write_text

DOOR = Path(__file__).resolve().parents[2] / "run_pipeline.py"


@dataclass(frozen=True)
class Job:
    """A job of one step: its `part` and the `indices` of its shards."""

    step: str
    part: str
    indices: tuple[int, ...] = ()

    @property
    def array(self) -> str | None:
        """The option --array."""
        return ",".join(map(str, self.indices)) if self.part == SHARDS else None


@dataclass(frozen=True)
class Submitted:
    """A job with its Slurm number; None in a dry run."""

    job: Job
    number: str | None
    command: str
    queued: bool     # submitted by an earlier call and still queued or running


class Submitter:
    """Submits the jobs of a plan that are not queued yet.

    Raises ConfigError if there are more processes than images in a batch, and BackendError with sbatch's message if sbatch is
    missing or fails.
    """

    def __init__(self, config: Any, folder: RunFolder, dataset: Dataset, overrides: Iterable[str]):
        self.config, self.folder, self.dataset = config, folder, dataset
        flags = {row.flag for row in STEPS} | {"action", "shard", "from_step", "to_step", "precision"}
        self.overrides = [word for word in overrides if word.split("=")[0].lstrip("+") not in flags and
                          not re.match(r"\+*submit[.=]", word)]
        self.overrides.append(f"precision={config.precision.value}")   # the same on all machines
        self.place = folder.path.resolve() / FOLDER

    def submit(self, plan: list[PlannedStep]) -> list[Submitted]:
        settings, done, before = self.config.submit, [], []
        steps = [planned for planned in plan if planned.works]
        for planned in steps:
            job = settings.of(planned.name)
            check_share(self.config, planned, job.nodes * job.tasks)
        records = read_jobs(self.folder)
        states = {} if settings.dry_run and not records else queue(record["number"] for record in records)
        for planned in steps:
            old = [record for record in records if record["step"] == planned.name and living(states, record)]
            shards = next((record["shards"] for record in old if record["part"] == SHARDS), settings.shards)
            path = self._write(planned, shards)
            for job in self._jobs(planned, shards):
                alive = [record for record in old if record["part"] == job.part]
                new = _missing(job, alive, states)
                done += [Submitted(job, record["number"], "", True) for record in alive]
                numbers = [record["number"] for record in alive]
                if new is not None:
                    command = self._command(new, path, before)
                    number = None if settings.dry_run else _sbatch(command, planned.name)
                    done.append(Submitted(new, number, shlex.join(command), False))
                    if number is not None:
                        records.append({"step": job.step, "part": job.part, "number": number, "shards": shards})
                        write_json(self.place / JOBS, records)
                    numbers.append(number or f"{job.step}-{job.part}")
                before = numbers
        return done

    def _jobs(self, planned: PlannedStep, shards: int) -> list[Job]:
        """The jobs of a step, in order of execution."""
        whole = Job(planned.name, WHOLE)
        if planned.step.KIND != IMAGES or planned.action == REUSE or shards == 1:
            return [whole]
        ids = planned.lists["ids"]
        open_ids = unfinished(work_folder(self.folder, planned), ids, seen_by_step(self.config, self.dataset, planned),
                              added=planned.added)
        indices = tuple(i for i in range(min(shards, len(ids))) if any(image_id in open_ids for image_id in ids[i::shards]))
        if not indices:
            return [whole]
        prepare = [Job(planned.name, PREPARE)] * (planned.step.prepare is not None)
        return [*prepare, Job(planned.name, SHARDS, indices), whole]

    def _command(self, job: Job, path: Path, before: list[str]) -> list[str]:
        log = self.place / f"{job.step}-{job.part}-{'%A_%a' if job.array else '%j'}.log"
        return ["sbatch", "--parsable", f"--job-name={self.folder.path.name}-{job.step}-{job.part}", f"--output={log}",
                *([f"--array={job.array}"] if job.array else []),
                *([f"--dependency=afterok:{':'.join(before)}", "--kill-on-invalid-dep=yes"] if before else []),
                str(path), *(["shard=prepare"] if job.part == PREPARE else [])]

    def _write(self, planned: PlannedStep, shards: int) -> Path:
        """Write the script of a step."""
        job, path = self.config.submit.of(planned.name), self.place / f"{planned.name}.sh"
        asked = {"partition": job.partition, "account": job.account, "time": job.time, "nodes": job.nodes,
                 "ntasks-per-node": job.tasks, "cpus-per-task": job.cpus, "gres": f"gpu:{job.gpus}" if job.gpus else None,
                 "mem": job.memory}
        options = [f"--{name}={value}" for name, value in asked.items() if value is not None] + list(job.options or ())
        call = shlex.join([self.config.submit.python or sys.executable, str(DOOR), *self.overrides, f"{planned.step.flag}=true"])
        write_text(path, SCRIPT.format(
            step=planned.name, run=self.folder.path, options="\n".join(f"#SBATCH {option}" for option in options),
            warn=self.config.submit.warn_seconds, here=shlex.quote(os.getcwd()), script=shlex.quote(str(path)),
            setup="".join(f"{line}\n" for line in job.setup or ()), call=call, shards=shards))
        return path


SCRIPT = """\
#!/bin/bash
# The step {step} of the run {run}, for sbatch. Written by action=submit, which also sets the job's name, log, array
# and dependencies. An argument (shard=prepare) is passed on to the run; an array task runs its own shard.
{options}
#SBATCH --requeue --open-mode=append --signal=B:USR1@{warn}

cd {here} || exit 1
test -e {script} || {{ echo "error: $(hostname) does not see the run folder: it must be on a shared file system" >&2; exit 1; }}
{setup}
# USR1 is sent before the time limit: the step saves and stops, and the job is requeued to continue.
queue_again() {{
  trap '' USR1
  scancel --signal=USR1 "$SLURM_JOB_ID.0"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60   # until Slurm ends this attempt
}}
trap queue_again USR1

srun --kill-on-bad-exit=1 {call} \\
  ${{SLURM_ARRAY_TASK_ID:+shard=$SLURM_ARRAY_TASK_ID/{shards}}} "$@" &
step=$!
wait "$step"
"""


def _missing(job: Job, alive: list[dict], states: dict[str, dict[str, str]]) -> Job | None:
    """The part of a job that is not queued; None if all of it is."""
    if job.part != SHARDS:
        return None if alive else job
    queued = {task for record in alive for task, state in states[record["number"]].items() if state.split(" ")[0] in LIVING}
    indices = tuple(index for index in job.indices if str(index) not in queued)
    return Job(job.step, job.part, indices) if indices else None


def _sbatch(command: list[str], step: str) -> str:
    return ask(command, f", for {step}").strip().split(";")[0]


def require_one_step(config: Any, names: tuple[str, ...], plan: list[PlannedStep]) -> None:
    """Raise ConfigError if shard= is set and the selection is not one step that works image by image."""
    chosen = [planned for planned in plan if planned.name in names]
    if len(chosen) != 1 or chosen[0].step.KIND != IMAGES:
        raise ConfigError(f"shard={config.shard} needs one step that makes one artifact per image, selected by its flag "
                          f"(STEP_pass=true); selected: {', '.join(names)}")
    if chosen[0].action == REUSE:
        raise ConfigError(f"shard={config.shard}: {chosen[0].name} is reused from another run, which is not done in shards. "
                          "Leave out shard")
