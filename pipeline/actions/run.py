"""Run the plan; the same command continues an interrupted run."""

from contextlib import suppress
from typing import Any

from pipeline.plan.changes import changes
from pipeline.report.stages import stage_lines
from pipeline.runfolder.summary import SUMMARY, score_table
from wsss.errors import ArtifactError


def run(pipeline: Any) -> int:
    before = None
    with suppress(ArtifactError):   # the first run in this folder
        before = pipeline.results()
    summary = pipeline.run()
    if not pipeline.group.is_main or pipeline.config.shard is not None:
        return 0
    say = pipeline.console.result
    say("\n" + score_table(summary))
    for line in [*stage_lines(summary["stages"]), *changes(before, summary)]:
        say(line)
    say(f"All results are in {pipeline.folder.path}/, the scores in {pipeline.folder.path / SUMMARY}")
    if pipeline.report_path:
        say(f"Report: {pipeline.report_path}")
    return 0
