"""What a run prints: the plan, a line now and then while a step works, the time it took. Plain lines, flushed."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

EVERY_SECONDS = 5.0
LEVELS = ("debug", "info", "warning", "error")
HEADS = ("step", "action", "to do", "time", "disk", "memory", "why")


class Console:
    """Prints results and progress to standard output, warnings and errors to standard error, from `level` on."""

    def __init__(self, level: str = "info") -> None:
        self.level = LEVELS.index(level)
        self._started, self._printed, self._first, self._part = 0.0, 0.0, 0, ("", 0)

    @property
    def is_debug(self) -> bool:
        return self.level == 0

    def result(self, text: str) -> None:
        print(text, flush=True)

    def info(self, text: str) -> None:
        if self.level <= LEVELS.index("info"):
            print(text, flush=True)

    def warning(self, text: str) -> None:
        if self.level <= LEVELS.index("warning"):
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        print(f"error: {text}", file=sys.stderr, flush=True)

    def start(self, step: str) -> None:
        self._printed = time.monotonic()
        self._part = ("", 0)

    def progress(self, step: str, done: int, total: int, note: str) -> None:
        """A line every few seconds: how much is done, and the time left at the rate so far."""
        now = time.monotonic()
        if (step, total) != self._part:   # a new part of the step: its rate is its own
            self._started, self._first, self._part = now, done, (step, total)
        if now - self._printed >= EVERY_SECONDS or self.is_debug:
            self._printed = now
            left = (total - done) * (now - self._started) / max(done - self._first, 1)
            self.info(f"  {step}: {done}/{total}, {note}, {left:.0f} s left")

    def finish(self, step: str, seconds: float) -> None:
        self.info(f"  {step}: done in {seconds:.1f} s")


def head_line(folder: Path, dataset: Any, device: Any) -> str:
    lists = ", ".join(f"{len(ids)} {name}" for name, ids in dataset.lists.items() if name != "all")
    return f"{folder}  |  {dataset.name}: {lists}, {len(dataset.classes)} classes  |  {device}"


def plan_table(folder: Path, plan: list[Any]) -> str:
    """The plan as lines: what is done with each step, images or training steps to do, expected needs, and why."""
    rows = [HEADS]
    for planned in plan:
        expected = planned.expected
        counted = planned.action in ("continue", "reuse")
        action = f"{planned.action} {planned.done} of {planned.total}" if counted else planned.action
        needs = (_time(expected.seconds), _size(expected.disk_mb), _size(expected.memory_mb)) if expected else ("", "", "")
        rows.append((planned.name, action, f"{planned.to_do} {planned.unit}" if planned.to_do else "", *needs, planned.why))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS) - 1)]
    lines = ["  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip() for row in rows]
    needs = [planned.expected for planned in plan if planned.expected]
    if needs:
        known = [expected.seconds for expected in needs if expected.seconds is not None]
        some = "" if len(known) == len(needs) else " for the steps that were timed before"
        timed = [_time(sum(known)) + some] if known else []
        free = free_mb(folder)
        lines.append("  expected: " + ", ".join([*timed, f"{_size(sum(e.disk_mb for e in needs))} on disk ({_size(free)} free)",
                                                 f"{_size(max(e.memory_mb for e in needs))} of memory at the peak"]))
        if sum(e.disk_mb for e in needs) > free:
            lines.append("  there may not be room enough for it: make room, or choose another place with outputs=DIR")
    return "\n".join(lines)


def free_mb(folder: Path) -> float:
    """MiB free where `folder` lies or will lie."""
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(place).free / 2**20


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(mb: float) -> str:
    if mb < 0.1:
        return f"{mb * 1024:.0f} kB"
    return f"{mb:.1f} MB" if mb < 100 else f"{mb:.0f} MB" if mb < 4096 else f"{mb / 1024:.1f} GB"
