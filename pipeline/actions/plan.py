"""Print what a run would do and why, without running it."""

from typing import Any

from pipeline.console import head_line, plan_table
from pipeline.plan.plan import remarks


def run(pipeline: Any) -> int:
    steps = pipeline.plan()
    pipeline.console.result(head_line(pipeline.folder.path, pipeline.dataset, pipeline.config.backbone, pipeline.device_type))
    for remark in remarks(pipeline.config, steps):
        pipeline.console.result(f"  {remark}")
    pipeline.console.result(plan_table(pipeline.folder.path, steps))
    pipeline.console.result(f"  to run it: {pipeline.command}")
    return 0
