"""What a run prints: the plan, a line now and then while a step works, the time it took. Plain lines, flushed."""

import sys
import time
from pathlib import Path
from typing import IO, Any

EVERY_SECONDS = 5.0


class Console:
    """Prints to standard output; errors and warnings go where `file` says."""

    def __init__(self) -> None:
        self._started, self._printed, self._first, self._total = 0.0, 0.0, 0, 0

    def line(self, text: str, file: IO[str] | None = None) -> None:
        print(text, file=file or sys.stdout, flush=True)

    def plan(self, folder: Path, dataset: Any, device: Any, plan: list[Any]) -> None:
        lists = ", ".join(f"{len(ids)} {name}" for name, ids in dataset.lists.items() if name != "all")
        self.line(f"{folder}  |  {dataset.name}: {lists}, {len(dataset.classes)} classes  |  {device}")
        for planned in plan:
            count = f"{planned.to_do} images" if planned.to_do else ""
            self.line(f"  {planned.name:<20} {planned.action:<16} {count:<12} {planned.why}".rstrip())

    def start(self, step: str) -> None:
        self._printed = time.monotonic()
        self._total = 0

    def progress(self, step: str, done: int, total: int, note: str) -> None:
        """A line every few seconds: how much is done, and the time left at the rate so far."""
        now = time.monotonic()
        if total != self._total:   # a new part of the step: its rate is its own
            self._started, self._first, self._total = now, done, total
        if now - self._printed >= EVERY_SECONDS:
            self._printed = now
            left = (total - done) * (now - self._started) / max(done - self._first, 1)
            self.line(f"  {step}: {done}/{total}, {note}, {left:.0f} s left")

    def finish(self, step: str, seconds: float) -> None:
        self.line(f"  {step}: done in {seconds:.1f} s")
