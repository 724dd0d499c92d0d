"""What the command line does with a pipeline: each `action`, what it prints, and the exit code."""

import os
import shlex
import signal
import sys
import traceback

from pipeline.console import head_line, plan_table
from pipeline.runner import SUMMARY, Pipeline
from pipeline.summary import score_table
from steps.context import Stopped
from steps.datasets import download_dataset, list_findings, open_dataset, prepare_dataset
from wsss.data.prepare import report_table
from wsss.errors import WsssError


def act(pipeline: Pipeline) -> int:
    """Do what `action` says, print what came of it, and return the exit code of the process.

    0: done; 1: refused or failed, or `verify` found something broken; 128 + the number of the signal: stopped.
    """
    console = pipeline.console
    try:
        return ACTIONS[pipeline.config.action.value](pipeline)
    except WsssError as error:
        if console.is_debug:
            traceback.print_exc()
        console.error(str(error))
        return 1
    except Stopped:
        number = pipeline.stop_signal or signal.SIGTERM
        console.error(f"stopped by {signal.Signals(number).name}; what was finished is saved, the same command continues: "
                      f"{shlex.join(['python', 'run_pipeline.py', *pipeline.overrides])}")
        return 128 + number
    except BrokenPipeError:   # the reader of the output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        console.error("interrupted; the same command starts again")
        return 128 + signal.SIGINT


def run(pipeline: Pipeline) -> int:
    summary = pipeline.run()
    pipeline.console.result("\n" + score_table(summary))
    pipeline.console.result(f"Everything lies in {pipeline.folder.path}/, the scores in {pipeline.folder.path / SUMMARY}")
    if pipeline.report_path:
        pipeline.console.result(f"Report: {pipeline.report_path}")
    return 0


def plan(pipeline: Pipeline) -> int:
    steps = pipeline.plan()
    pipeline.console.result(head_line(pipeline.folder.path, pipeline.dataset, pipeline.device))
    pipeline.console.result(plan_table(pipeline.folder.path, steps))
    pipeline.console.result(f"  to do it: {pipeline.command}")
    return 0


def status(pipeline: Pipeline) -> int:
    steps = pipeline.status()
    pipeline.console.result(head_line(pipeline.folder.path, pipeline.dataset, pipeline.device))
    for step in steps:
        pipeline.console.result(f"  {step}")
    for left_over in [path for step in steps for path in step.left_over]:
        pipeline.console.result(f"  {left_over}")
    return 0


def verify(pipeline: Pipeline) -> int:
    steps = pipeline.verify()
    for step in steps:
        pipeline.console.result(f"  {step}")
        for file, wrong in step.broken.items():
            pipeline.console.result(f"    {file}: {wrong}")
    broken = sum(len(step.broken) for step in steps)
    if broken:
        replace = " replace=true" * any(step.needs_replace for step in steps)
        pipeline.console.result(f"{broken} broken; what could be read is kept as FILE.damaged. To make them again: "
                                f"{pipeline.command}{replace}")
    return 0 if all(step.sound for step in steps) else 1


def prepare(pipeline: Pipeline) -> int:
    config, console = pipeline.config, pipeline.console
    if config.download:
        console.start("download")
        console.result(report_table(download_dataset(config.data, console.progress)))
    findings = prepare_dataset(config.data)
    if findings:
        pipeline.console.result(report_table(findings))
    dataset = open_dataset(pipeline.config.data)   # what is missing and cannot be done without ends it here
    pipeline.console.result(report_table(list_findings(dataset)))
    return 0


def report(pipeline: Pipeline) -> int:
    pipeline.console.start("report")
    pipeline.console.result(f"Report: {pipeline.report()}")
    return 0


def compare(pipeline: Pipeline) -> int:
    pipeline.console.start("compare")
    table, path = pipeline.compare()
    pipeline.console.result(f"{table}\nPage: {path}")
    return 0


def export_voc(pipeline: Pipeline) -> int:
    pipeline.console.result(report_table(pipeline.export_voc()))
    return 0


def import_official(pipeline: Pipeline) -> int:
    pipeline.import_official()
    for step in pipeline.status():
        pipeline.console.result(f"  {step}")
    return 0


def export_official(pipeline: Pipeline) -> int:
    pipeline.console.result(report_table(pipeline.export_official()))
    return 0


ACTIONS = {"run": run, "plan": plan, "status": status, "verify": verify, "prepare": prepare, "import_official": import_official,
           "export_official": export_official, "export_voc": export_voc, "report": report, "compare": compare}
