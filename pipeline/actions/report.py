"""Write the report of a run, as one HTML file."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any


def do(pipeline: Any) -> Path:
    """Write `report/report.html` from the run folder, with the configuration of its last call; return its path.

    Raises WsssError if the run does not exist or cannot be read.
    """
    from pipeline.report.page import write_report  # importing matplotlib takes a second

    pipeline.require_run()
    with ExitStack() as held:
        return write_report(pipeline.recorded(pipeline.folder.path, held), progress=pipeline.progress("report"))


def run(pipeline: Any) -> int:
    pipeline.console.start("report")
    pipeline.console.result(f"Report: {do(pipeline)}")
    return 0
