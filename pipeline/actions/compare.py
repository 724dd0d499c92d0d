"""Compare the settings, scores and pseudo masks of runs, `runs=[A,B]`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runfolder.reading import find_run
from wsss.files import user_path


@dataclass
class Settings:
    runs: list[str]              # the runs, by name or folder


def do(pipeline: Any) -> tuple[str, Path]:
    """Write an HTML comparison; return a text table and the path of the page.

    Raises WsssError if there are fewer than two runs, or they cannot be compared.
    """
    from pipeline.report.compare import check_runs, write_comparison

    config = pipeline.config
    paths = check_runs([find_run("runs", run, config.outputs) for run in config.runs])
    with ExitStack() as held:
        runs = [pipeline.recorded(path, held) for path in paths]
        return write_comparison(runs, user_path(config.outputs), pipeline.progress("compare"))


def run(pipeline: Any) -> int:
    pipeline.console.start("compare")
    table, path = do(pipeline)
    pipeline.console.result(f"{table}\nPage: {path}")
    return 0
