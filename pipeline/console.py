"""The output of a run: the plan, the progress of the current step and its time. The run's log contains the same lines.

On a terminal rich redraws one line for each step, and so does a notebook; elsewhere a plain line is printed every few seconds.
"""

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.cluster.machine import free_gpu_mb
from steps.runtime.context import Stopped
from wsss.files import free_bytes, storage
from wsss.text import aligned, duration, mib

EVERY_SECONDS = 5.0      # between plain lines
REDRAW_SECONDS = 0.2     # between drawings on a terminal
LEVELS = ("debug", "info", "warning", "error")
PACKAGES = ("wsss", "steps", "pipeline")   # whose loggers a console shows
HEADS = ("step", "action", "to do", "time", "disk", "memory", "GPU", "why")


class Console:
    """Prints results and progress to standard output, warnings and errors to standard error, from `level` on.

    After `log_to`, all messages of level "info" and above are also appended to the log, independently of `level`. Earlier
    warnings are added to it.
    """

    def __init__(self, level: str = "info") -> None:
        self.level = LEVELS.index(level)
        self._started, self._printed, self._first, self._part = 0.0, 0.0, 0, ("", 0)
        self._bar: Any = None            # rich's Progress, while it is drawn
        self._drawn = 0.0                # time of the last drawing, monotonic clock
        self._log: Path | None = None
        self._early: list[str] = []      # lines from before `log_to`

    @property
    def is_debug(self) -> bool:
        return self.level == 0

    def result(self, text: str) -> None:
        self._print("info", text, wanted=True)

    def info(self, text: str) -> None:
        self._print("info", text, wanted=self.level <= LEVELS.index("info"))

    def warning(self, text: str) -> None:
        self._print("warning", text, wanted=self.level <= LEVELS.index("warning"))

    def error(self, text: str) -> None:
        self._print("error", text, wanted=True)

    def start(self, step: str) -> None:
        self._printed = time.monotonic()
        self._part = ("", 0)

    def progress(self, step: str, done: int, total: int, note: str) -> None:
        """Show how much is done, the rate and the estimated time left, drawn or as a line every few seconds."""
        now = time.monotonic()
        if (step, total) != self._part:   # a new part of the step has its own rate
            self._started, self._first, self._part = now, done, (step, total)
            self._erase()
        tail = ", ".join([note, *_pace(done - self._first, total - done, now - self._started)])
        if self._draws():
            self._draw(step, done, total, tail)
        if now - self._printed >= EVERY_SECONDS or self.is_debug:
            self._printed = now
            line = f"  {step}: {done}/{total}, {tail}"
            if self._draws():
                self._record("info", line)
            else:
                self.info(line)

    def finish(self, step: str, seconds: float) -> None:
        self._erase()
        self.info(f"  {step}: done in {seconds:.1f} s")

    def log_to(self, path: Path, command: str) -> None:
        """Append all further messages to the file `path`, beginning with the command. Raises StorageError."""
        with storage(path), open(path, "a", encoding="utf-8"):
            pass
        self._log = path
        self._record("info", f"--- {command}")
        self._append(self._early)
        self._early = []

    @contextmanager
    def hear(self) -> Iterator[None]:
        """Inside this context, show and record the messages of Python's `logging` too."""
        handler, loggers = _Handler(self), [logging.getLogger(name) for name in PACKAGES]
        before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.INFO)
            logger.handlers, logger.propagate = [handler], False
        try:
            yield
        finally:
            for logger, (level, handlers, propagate) in zip(loggers, before):
                logger.setLevel(level)
                logger.handlers, logger.propagate = handlers, propagate

    def leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Exit callback for an ExitStack: erase the drawn line and write an error with its traceback into the log."""
        self._erase()
        if error is not None and not isinstance(error, Stopped):
            self._record("error", "".join(traceback.format_exception(kind, error, trace)).rstrip())

    def _print(self, level: str, text: str, wanted: bool) -> None:
        self._record(level, text)
        if wanted:
            self._erase()   # the next `progress` draws it below
            prefix = "" if level == "info" else f"{level}: "
            print(prefix + text, file=sys.stdout if level == "info" else sys.stderr, flush=True)

    def _record(self, level: str, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = [f"{now} {level:<7} {line}\n" for line in text.splitlines() if line.strip()]
        if self._log is not None:
            self._append(lines)
        elif level == "warning":
            self._early += lines

    def _append(self, lines: list[str]) -> None:
        with suppress(OSError), open(self._log, "a", encoding="utf-8") as file:   # a log that cannot be written is no error
            file.write("".join(lines))

    def _draws(self) -> bool:
        return self.level == LEVELS.index("info") and (sys.stdout.isatty() or _in_notebook())

    def _draw(self, step: str, done: int, total: int, tail: str) -> None:
        bar = self._bar   # a signal handler may call `_erase` between these lines
        if bar is None and _in_notebook():
            bar = self._bar = _Cell()
        elif bar is None:
            from rich.console import Console as Terminal  # imported here: only a terminal needs it
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("  {task.description}"), BarColumn(20),
                       TextColumn("{task.completed}/{task.total}, {task.fields[tail]}"))
            # no refresh thread: processes are forked while the bar is shown
            bar = Progress(*columns, console=Terminal(highlight=False), auto_refresh=False, transient=True, redirect_stdout=False,
                           redirect_stderr=False)
            bar.add_task(step, total=total, tail=tail)
            bar.start()
            bar.console.show_cursor(True)   # a killed process cannot restore it
            self._bar, self._drawn = bar, 0.0
        if isinstance(bar, _Cell):
            bar.text = f"  {step}: {done}/{total}, {tail}"
        else:
            bar.update(bar.task_ids[0], completed=done, tail=tail)
        if time.monotonic() - self._drawn >= REDRAW_SECONDS:
            self._drawn = time.monotonic()
            bar.refresh()
        if done >= total:
            self._erase()

    def _erase(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()


class _Cell:
    """A line in the output of a notebook's cell, which replaces itself."""

    def __init__(self) -> None:
        self.text, self._handle = "", None

    def refresh(self) -> None:
        from IPython.display import Pretty, display

        if self._handle is None:
            self._handle = display(Pretty(self.text), display_id=True)
        else:
            self._handle.update(Pretty(self.text))

    def stop(self) -> None:
        if self._handle is not None:
            self.text = ""
            self.refresh()


def _in_notebook() -> bool:
    """Whether the program runs in a Jupyter kernel. A terminal's IPython has a terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


class _Handler(logging.Handler):
    """Passes records of Python's `logging` to a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        (self.console.warning if record.levelno >= logging.WARNING else self.console.info)(record.getMessage())


def _pace(made: int, left: int, seconds: float) -> list[str]:
    """The rate and the time left; empty if nothing is done yet."""
    if made < 1 or seconds <= 0:
        return []
    rate = made / seconds
    return [f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each", f"{duration(left / rate)} left"]


def head_line(folder: Path, dataset: Any, backbone: Any, device: Any) -> str:
    lists = ", ".join(f"{len(ids)} {name}" for name, ids in dataset.lists.items() if name != "all")
    return f"{folder}  |  {dataset.name}: {lists}, {len(dataset.classes)} classes  |  {backbone}  |  {device}"


def plan_table(folder: Path, plan: list[Any]) -> str:
    """The plan as a table: for each step the action, the images or training steps to do, the expected cost and the reason.

    The memory of a GPU is shown if it is known for some step.
    """
    rows = [HEADS]
    for planned in plan:
        expected = planned.expected
        counted = planned.action in ("continue", "reuse")
        action = f"{planned.action} {planned.done} of {planned.total}" if counted else planned.action
        needs = [""] * 4 if expected is None else [duration(expected.seconds), mib(expected.disk_mb) or "?",
                                                   mib(expected.memory_mb) or "?", mib(expected.gpu_mb) or "?"]
        rows.append((planned.name, action, f"{planned.to_do} {planned.unit}" if planned.to_do else "", *needs, planned.why))
    needs = [planned.expected for planned in plan if planned.expected]
    if all(expected.gpu_mb is None for expected in needs):
        rows = [(*row[:6], row[7]) for row in rows]
    lines = [f"  {line}" for line in aligned(rows, left=range(len(rows[0])))]
    return "\n".join(lines + (_expected(folder, needs) if needs else []))


def _expected(folder: Path, needs: list[Any]) -> list[str]:
    """The expected cost of all steps together, and a line for each resource of which there may not be enough."""
    seconds, disks, memories, gpus = ([value for value in values if value is not None] for values in zip(*map(astuple, needs)))
    some = "" if len(seconds) == len(needs) else " for the steps that were timed before"
    free = free_bytes(folder) / 2**20
    free_on_gpu = free_gpu_mb() if gpus else None
    parts = [duration(sum(seconds)) + some] if seconds else []
    parts += [f"{mib(sum(disks))} on disk ({mib(free)} free)"] if disks else []
    parts += [f"{mib(max(memories))} of memory at the peak"] if memories else []
    if gpus:
        parts.append(f"{mib(max(gpus))} of GPU memory at the peak ({mib(free_on_gpu) or 'unknown'} free)")
    if unknown := len(needs) - min(len(disks), len(memories)):
        parts.append(f"disk and memory of {unknown} step{'s' * (unknown > 1)} unknown")
    lines = [f"  expected: {', '.join(parts)}"]
    if sum(disks) > free:
        lines.append("  there may not be enough disk space: free some, or choose another place with outputs=DIR")
    if free_on_gpu is not None and max(gpus) > free_on_gpu:
        lines.append("  there may not be enough GPU memory: end other processes on the GPU, raise parts or lower batch_size of a "
                     "training, set data.max_side for large images, or set device=cpu")
    return lines
