"""What the command line does with a pipeline: each `action`, what it prints, and the exit code."""

import os
import shlex
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from pipeline.cluster.distributed import GRACE, QuietConsole, find_place
from pipeline.cluster.jobs import FOLDER as SCRIPTS
from pipeline.cluster.jobs import job_lines
from pipeline.console import head_line, plan_table
from pipeline.plan.changes import changes
from pipeline.report.stages import stage_lines
from pipeline.runfolder.summary import score_table
from pipeline.runner import SUMMARY, Pipeline
from steps.runtime.context import Stopped
from steps.runtime.datasets import download_dataset, list_findings, open_dataset, prepare_dataset
from wsss.data.prepare import report_table
from wsss.errors import ArtifactError, WsssError
from wsss.files import user_path


def act(pipeline: Pipeline) -> int:
    """Do what `action` says, print what came of it, and return the exit code of the process.

    0: done; 1: refused or failed, or `verify` found something broken; 128 + the number of the signal: stopped.

    Where torchrun or srun started several processes they do `run` together, and this function does not return.
    """
    try:
        place = find_place()
        if place is None or pipeline.config.action.value != "run":
            return _act(pipeline) if place is None or place.rank == 0 else 0
        from pipeline.cluster.processes import Processes

        pipeline.group = Processes(place, pipeline.config.distributed)
    except WsssError as error:
        pipeline.console.error(str(error))
        return 1
    if place.rank:
        pipeline.console = QuietConsole(place.rank, pipeline.config.log_level.value)
    code = _act(pipeline)
    pipeline.group.leave(code, getattr(pipeline.console, "error_text", ""))


def end_with(error: WsssError) -> NoReturn:
    """End the process before there is a pipeline. Of several processes the first says why, and has time to."""
    try:
        place = find_place()
    except WsssError:
        place = None
    if place is not None and place.rank:
        time.sleep(GRACE)   # a launcher ends all when the first one has ended
        sys.exit(1)
    sys.exit(f"error: {error}")


def _act(pipeline: Pipeline) -> int:
    console = pipeline.console
    try:
        return ACTIONS[pipeline.config.action.value](pipeline)
    except WsssError as error:
        if console.is_debug:
            traceback.print_exc()
        console.error(str(error))
        return 1
    except Stopped:
        number = pipeline.group.asked or signal.SIGTERM
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
    before = None
    with suppress(ArtifactError):   # the first run in this folder
        before = pipeline.results()
    summary = pipeline.run()
    if not pipeline.group.is_main or pipeline.config.shard is not None:
        return 0
    pipeline.console.result("\n" + score_table(summary))
    for line in stage_lines(summary["stages"]):
        pipeline.console.result(line)
    for line in changes(before, summary):
        pipeline.console.result(line)
    pipeline.console.result(f"Everything lies in {pipeline.folder.path}/, the scores in {pipeline.folder.path / SUMMARY}")
    if pipeline.report_path:
        pipeline.console.result(f"Report: {pipeline.report_path}")
    return 0


def plan(pipeline: Pipeline) -> int:
    steps = pipeline.plan()
    pipeline.console.result(head_line(pipeline.folder.path, pipeline.dataset, pipeline.config.model, pipeline.device_type))
    pipeline.console.result(plan_table(pipeline.folder.path, steps))
    pipeline.console.result(f"  to do it: {pipeline.command}")
    return 0


def status(pipeline: Pipeline) -> int:
    steps = pipeline.status()
    pipeline.console.result(head_line(pipeline.folder.path, pipeline.dataset, pipeline.config.model, pipeline.device_type))
    jobs = job_lines(pipeline.folder)
    for step in steps:
        pipeline.console.result(f"  {step}")
        for line in jobs.get(step.name, []):
            pipeline.console.result(f"    {line}")
    for left_over in [path for step in steps for path in step.left_over]:
        pipeline.console.result(f"  {left_over}")
    return 0


def submit(pipeline: Pipeline) -> int:
    jobs = pipeline.submit()
    for done in jobs:
        name = f"{done.job.step} ({done.job.part}{f' {done.job.array}' if done.job.array else ''})"
        state = "is queued already" if done.queued else "would be submitted" if done.number is None else "submitted"
        pipeline.console.result(f"  {name}: {state}" + (f", job {done.number}" if done.number else f": {done.command}"))
    pipeline.console.result(f"The scripts and logs lie in {pipeline.folder.path / SCRIPTS}/" if jobs else "nothing to do")
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
    return 0 if all(step.ok for step in steps) else 1


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


def predict(pipeline: Pipeline) -> int:
    from pipeline.actions.predict import empty_folder
    from steps.parts.prediction import RECORD, write_prediction

    config, console, image = pipeline.config, pipeline.console, user_path(pipeline.config.image)
    prediction = pipeline.predict(image, config.classes)
    folder = empty_folder(pipeline.folder, image)
    write_prediction(prediction, folder, {
        "image": str(image.resolve()), "run": str(pipeline.folder.path.resolve()),
        "classes_by": "the command line" if config.classes else f"the classifier, above {config.class_threshold:g}"})
    likely = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:5]
    console.result(f"classes: {', '.join(prediction.classes) or 'none'} (by the classifier: "
                   f"{', '.join(f'{name} {p:.2f}' for name, p in likely)}; class_threshold {config.class_threshold:g})")
    if prediction.mask is None:
        console.result(f"no mask: {pipeline.folder.path} has no finished make_sem_seg_labels")
    else:
        threshold = prediction.threshold
        console.result(f"background threshold of the mask: {threshold['threshold']:.2f} ({threshold['source']})")
    console.result(f"Maps, mask, their pictures and {RECORD} lie in {folder}/")
    return 0


def tune(pipeline: Pipeline) -> int:
    from pipeline.actions.tune import place_of, tune_lines, write_tune

    result = pipeline.tune()
    folder = place_of(pipeline.folder, result["labels"])
    write_tune(result, folder)
    for line in tune_lines(result):
        pipeline.console.result(line)
    pipeline.console.result(f"The run is unchanged. Curves and plot lie in {folder}/")
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


def report(pipeline: Pipeline) -> int:
    pipeline.console.start("report")
    pipeline.console.result(f"Report: {pipeline.report()}")
    return 0


def compare(pipeline: Pipeline) -> int:
    pipeline.console.start("compare")
    table, path = pipeline.compare()
    pipeline.console.result(f"{table}\nPage: {path}")
    return 0


ACTIONS = {"run": run, "plan": plan, "status": status, "verify": verify, "submit": submit, "report": report, "compare": compare,
           "predict": predict, "tune": tune, "prepare": prepare, "export_voc": export_voc,
           "import_official": import_official, "export_official": export_official}
