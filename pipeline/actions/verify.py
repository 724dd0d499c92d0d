"""Read and check every file of a run; the next run makes damaged ones again."""

from typing import Any

from pipeline.runfolder.verify import Verified, verify_step


def do(pipeline: Any) -> list[Verified]:
    """Check the artifacts of the finished steps. Raises ConfigError if there is no run, BusyError if another process uses it."""
    found, console = [], pipeline.console
    with pipeline.reading(pipeline.config.steps):
        for name in pipeline.config.steps:
            console.start(name)
            found.append(verify_step(pipeline.folder, name, pipeline.dataset, lambda done, total, name=name: console.progress(
                name, done, total, "artifacts")))
    return found


def run(pipeline: Any) -> int:
    steps, say = do(pipeline), pipeline.console.result
    for step in steps:
        say(f"  {step}")
        for file, wrong in step.broken.items():
            say(f"    {file}: {wrong}")
    broken = sum(len(step.broken) for step in steps)
    if broken:
        replace = " replace=true" * any(step.needs_replace for step in steps)
        say(f"{broken} broken; damaged files are kept as FILE.damaged. To make them again: {pipeline.command}{replace}")
    return 0 if all(step.ok for step in steps) else 1
