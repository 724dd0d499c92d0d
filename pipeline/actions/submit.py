"""Submit the steps of a run to Slurm as a chain of jobs."""

from typing import Any

from pipeline.cluster.jobs import FOLDER
from pipeline.cluster.submit import Submitted, Submitter
from steps.runtime.datasets import open_dataset


def do(pipeline: Any) -> list[Submitted]:
    """Write a script for each step of the plan that works, and submit the jobs that are not queued yet.

    Raises WsssError for everything that `run` refuses before any work, and if sbatch is missing or fails.
    """
    pipeline.dataset = open_dataset(pipeline.config.data)
    pipeline.folder.check_data(pipeline.data_identity)
    plan = pipeline.make_plan()
    with pipeline.folder.claims.planning(pipeline.console.warning):
        pipeline.folder.open(pipeline.data_identity)
        return Submitter(pipeline.config, pipeline.folder, pipeline.dataset, pipeline.overrides).submit(plan)


def run(pipeline: Any) -> int:
    jobs, say = do(pipeline), pipeline.console.result
    for done in jobs:
        name = f"{done.job.step} ({done.job.part}{f' {done.job.array}' if done.job.array else ''})"
        state = "is queued already" if done.queued else "would be submitted" if done.number is None else "submitted"
        say(f"  {name}: {state}" + (f", job {done.number}" if done.number else f": {done.command}"))
    say(f"The scripts and logs are in {pipeline.folder.path / FOLDER}/" if jobs else "nothing to do")
    return 0
