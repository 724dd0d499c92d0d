"""Print the progress of each step of a run, from file names and sizes only."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.cluster.jobs import job_lines
from pipeline.console import head_line
from pipeline.runfolder.status import StepStatus, run_status
from steps.runtime.datasets import open_dataset


def do(pipeline: Any) -> list[StepStatus]:
    """The progress of each step; reads no artifact, image or mask. Raises ConfigError if the run does not exist."""
    pipeline.require_run()
    with tempfile.TemporaryDirectory() as scratch:   # for an embedded data set that is not generated yet
        pipeline.dataset = open_dataset(pipeline.config.data, scratch=Path(scratch), check=False)
        pipeline.folder.check_data(pipeline.data_identity)
        return run_status(pipeline.config, pipeline.dataset, pipeline.folder)


def run(pipeline: Any) -> int:
    steps, say = do(pipeline), pipeline.console.result
    say(head_line(pipeline.folder.path, pipeline.dataset, pipeline.config.backbone, pipeline.device_type))
    jobs = job_lines(pipeline.folder)
    for step in steps:
        say(f"  {step}")
        for line in jobs.get(step.name, []):
            say(f"    {line}")
    for left_over in [path for step in steps for path in step.left_over]:
        say(f"  {left_over}")
    return 0
