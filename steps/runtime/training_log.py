"""The log of a training. On a GPU the losses of several steps are read at once, because a read waits for the device."""

import csv
import io
import json
import math
from typing import Any

import torch

from steps.runtime.context import StepContext
from steps.runtime.schedule import LOG, LOG_CSV
from wsss.errors import WsssError
from wsss.files import write_text

STEPS_PER_READ = {"cpu": 1, "cuda": 20}   # by the type of the device: the most optimiser steps between two reads of the losses


class TrainingLog:
    """The lines of a training's log: one per step, with its losses, and one per validation.

    The lines of the last steps are missing in `lines` until `read` is called, by all processes after the same step.
    """

    def __init__(self, context: StepContext, parts: int, lines: list[dict[str, Any]]):
        self.lines = lines
        self._context, self._parts = context, parts   # `parts` of a batch, of all processes
        self._unread: list[tuple[dict[str, Any], list[str], torch.Tensor]] = []

    def add(self, line: dict[str, Any]) -> None:
        """Append a complete line."""
        self.lines.append(line)
        self._context.runtime.track(line)

    def add_step(self, line: dict[str, Any], losses: dict[str, torch.Tensor]) -> None:
        """Append the line of a step. `losses`: (parts of this process,) each, on any device; their sum goes into the line."""
        self._unread.append((line, list(losses), torch.stack(list(losses.values()), dim=1)))
        if len(self._unread) >= STEPS_PER_READ[self._context.runtime.device.type]:
            self.read()

    def read(self) -> None:
        """Complete the lines of all steps, with one copy from the device and one message between the processes.

        Raises
        ------
        WsssError
            if a loss is not finite, with the first step at which it was not.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        group = self._context.runtime.group
        shares = torch.cat([values.flatten() for _, _, values in unread]).cpu()
        tables = [torch.zeros(self._parts, len(names), dtype=torch.float64) for _, names, _ in unread]
        for table, share in zip(tables, shares.split([values.numel() for _, _, values in unread]), strict=True):
            table[group.rank::group.size] = share.view(-1, table.shape[1])
        sums = group.sum(torch.cat([table.flatten() for table in tables]))   # zeros are added between processes: exact
        for (line, names, _), table in zip(unread, sums.split([table.numel() for table in tables]), strict=True):
            values = table.view(self._parts, len(names)).sum(0).tolist()     # in the order of the parts
            self.add(line | {name: self._finite(name, value, line["step"]) for name, value in zip(names, values, strict=True)})

    def note(self, more: dict[str, Any]) -> str:
        """The last loss that was read and `more` values, for the progress of the step."""
        last = next((line["loss"] for line in reversed(self.lines) if "loss" in line), None)
        return ", ".join(f"{name} {value:.4f}" for name, value in {"loss": last, **more}.items() if isinstance(value, float))

    def write(self) -> None:
        """Write the log as JSON lines and as CSV: the losses of every step and the validations, without times."""
        folder, lines = self._context.folder, self.lines
        write_text(folder / LOG, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
        text = io.StringIO()
        names = sorted({name for line in lines for name in line} - {"step", "epoch"})   # a log read from a file has another order
        table = csv.DictWriter(text, ["step", "epoch", *names], lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
        write_text(folder / LOG_CSV, text.getvalue())

    def _finite(self, name: str, value: float, step: int) -> float:
        if not math.isfinite(value):
            raise WsssError(f"{name} is {value} at step {step}, expected a finite number. Lower {self._context.name}.lr; "
                            "the last saved state is untouched")
        return value
