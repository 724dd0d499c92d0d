"""Write the report of a run, as one HTML file."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any


def do(pipeline: Any) -> Path:
    """Write `report/report.html` from what lies in the run folder, with the configuration of its last call; its path.

    Raises
    ------
    WsssError
        when there is no such run, or it cannot be read.
    """
    from pipeline.report.page import write_report  # matplotlib takes a second

    pipeline.require_run()
    with ExitStack() as held:
        return write_report(pipeline.recorded(pipeline.folder.path, held), progress=pipeline.progress("report"))


def run(pipeline: Any) -> int:
    pipeline.console.start("report")
    pipeline.console.result(f"Report: {do(pipeline)}")
    return 0
