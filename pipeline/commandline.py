"""Run an action from the command line: errors become one line and an exit code."""

import os
import shlex
import signal
import sys
import time
import traceback
from typing import NoReturn

from pipeline import actions
from pipeline.cluster.distributed import GRACE, QuietConsole, find_place
from pipeline.runner import Pipeline
from steps.runtime.context import Stopped
from wsss.errors import WsssError


def act(pipeline: Pipeline) -> int:
    """Run the action, print its result and return the exit code of the process.

    0: done; 1: refused or failed, or `verify` found broken files; 128 + the signal number: stopped by a signal.

    If torchrun or srun started several processes, they share the work of `run`, and this function does not return.
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
    """End the process before there is a pipeline. Of several processes only rank 0 prints the error; the others exit later."""
    try:
        place = find_place()
    except WsssError:
        place = None
    if place is not None and place.rank:
        time.sleep(GRACE)   # a launcher stops all processes when one exits; rank 0 prints first
        sys.exit(1)
    sys.exit(f"error: {error}")


def _act(pipeline: Pipeline) -> int:
    console = pipeline.console
    try:
        with console.hear():
            return actions.load(pipeline.config.action.value).run(pipeline)
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
    except BrokenPipeError:   # for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        console.error("interrupted; the same command starts again")
        return 128 + signal.SIGINT
