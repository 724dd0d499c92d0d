"""What the command line does with a pipeline: the action, its errors in one line, and the exit code."""

import os
import shlex
import signal
import sys
import time
import traceback
from typing import NoReturn

from pipeline import actions
from pipeline.cluster.distributed import QuietConsole, find_place
from pipeline.runner import Pipeline
from steps.runtime.context import Stopped
from wsss.errors import WsssError


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
        from pipeline.cluster.heartbeat import GRACE

        time.sleep(GRACE)   # a launcher ends all when the first one has ended
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
    except BrokenPipeError:   # the reader of the output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        console.error("interrupted; the same command starts again")
        return 128 + signal.SIGINT
