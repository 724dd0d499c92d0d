"""Comparison of two forms of a computation: interleaved times, peak memory in separate processes, difference of the results.

The official form is a plain re-implementation of the official code, ours is what the steps call. Both get the same inputs.
"""

import gc
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ctypes import CDLL
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.cluster.machine import peak_memory, reset_peak_memory

REPEATS, SLOW = 5, 10.0      # a form that takes more than SLOW seconds runs once
MIB = 2**20
CPU = torch.device("cpu")


class Seconds(NamedTuple):
    wall: float
    cpu: float      # of all threads together, and of finished child processes


@dataclass
class Case:
    """A comparison. `ours` and `official` take no arguments and return tensors, numbers, or lists and dicts of them.

    `disk`: (official, ours) in MiB instead of times, for a comparison of sizes.
    """

    size: str
    ours: Callable[[], Any]
    official: Callable[[], Any] | None = None
    difference: Callable[[Any, Any], float] | None = None   # of (official, ours)
    against: str = ""               # description of the official form
    form: str = "float32, NCHW"     # precision and memory format of both, or of official -> ours
    per: int | dict[str, int] = 1   # images per call, by which its time is divided
    disk: tuple[float, float] | None = None
    elsewhere: bool = False         # the official form runs in other processes, whose memory and processor time are unknown
    commands: bool = False          # both forms are commands: their times are processor time, their memory is unknown
    once: bool = False              # too long to repeat: a first call prepares a form and returns the call to measure


@dataclass
class Row:
    """The result of a comparison, in seconds per image; None where not applicable."""

    name: str
    size: str
    against: str
    form: str
    threads: int
    official_s: float | None
    ours_s: float | None
    ratio: float | None             # official / ours, of times, or of `disk_mb`
    max_difference: float | None
    official_peak_mb: float | None  # above the memory of the process with its inputs, MiB; of the GPU if that is used
    ours_peak_mb: float | None
    official_disk_mb: float | None = None
    ours_disk_mb: float | None = None
    official_cpu_s: float | None = None   # of all threads: comparable even if other work disturbs the times
    ours_cpu_s: float | None = None
    once: str = ""                  # the slow forms, which ran once

    @property
    def cpu_ratio(self) -> float | None:
        return self.official_cpu_s / self.ours_cpu_s if self.official_cpu_s and self.ours_cpu_s else None


Builder = Callable[[bool], Case]
FORMS = ("official", "ours")


class Alone(NamedTuple):
    """The measurement of one form in its own process."""

    seconds: Seconds
    peak_mb: float | None
    result: Any             # None for a quick form, which is computed again


def measure(name: str, build: Builder, quick: bool, threads: int, repeats: int = REPEATS, peaks: bool = True) -> Row:
    """Measure one benchmark. Without `peaks` no process is started and no memory measured.

    This process must not compute with torch, because forked processes do not inherit the threads that torch starts.
    """
    if not peaks:
        return _compare(name, build, quick, threads, repeats, {})
    alone = {form: in_child(lambda form=form: measure_alone(build, form, quick, threads)) for form in FORMS}
    return in_child(lambda: _compare(name, build, quick, threads, repeats, alone))


def _compare(name: str, build: Builder, quick: bool, threads: int, repeats: int, alone: dict[str, Alone | None]) -> Row:
    """Run both forms alternately, `repeats` times after a warm-up; slow forms keep the measurement of `alone`."""
    torch.set_num_threads(threads)
    case = build(quick)
    row = Row(name, case.size, case.against, case.form, threads, *[None] * 6)
    if case.disk:
        row.official_disk_mb, row.ours_disk_mb = case.disk
        row.ratio = case.disk[0] / case.disk[1]
        return row
    forms = [form for form in FORMS if getattr(case, form)]
    taken, results, slow = {}, {}, []
    for form in forms:
        known = alone.get(form)
        if known:
            setattr(row, f"{form}_peak_mb", known.peak_mb)
        if known and (case.once or known.seconds.wall > SLOW):
            seconds, results[form] = known.seconds, known.result
        else:
            run, held = getattr(case, form), gpu_memory()
            seconds, results[form] = timed(run() if case.once else run)      # the warm-up
            if held is not None:
                setattr(row, f"{form}_peak_mb", round(torch.cuda.max_memory_allocated() / MIB - held, 1))
        if case.once or seconds.wall > SLOW:
            slow.append(form)
        taken[form] = [seconds] if form in slow else []
    for _ in range(repeats):
        for form in forms:
            if form not in slow:
                taken[form].append(timed(getattr(case, form))[0])
    per = case.per if isinstance(case.per, dict) else dict.fromkeys(forms, case.per)
    for form in forms:
        wall, cpu = (statistics.median(each) / per[form] for each in zip(*taken[form]))
        setattr(row, f"{form}_s", cpu if case.commands else wall)
        setattr(row, f"{form}_cpu_s", None if case.elsewhere else cpu)
    row.once = ", ".join(slow)
    if case.official:
        row.ratio = row.official_s / row.ours_s
        if case.difference:
            row.max_difference = case.difference(results["official"], results["ours"])
    return row


def timed(form: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, cpu = time.perf_counter(), cpu_time()
    result = form()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, cpu_time() - cpu), result


def gpu_memory() -> float | None:
    """Reset the peak of the GPU, and return the MiB of its tensors; None if this process does not use it."""
    if not torch.cuda.is_initialized():
        return None
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / MIB


def cpu_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure_alone(build: Builder, form: str, quick: bool, threads: int) -> Alone | None:
    """The seconds, peak memory and result of one form; None if the comparison has no such form or compares sizes."""
    torch.set_num_threads(threads)
    case = build(quick)
    if case.disk or not getattr(case, form):
        return None
    run, seconds = getattr(case, form), None
    if case.once:
        run = run()
    else:
        held = peak_before()
        seconds, result = timed(run)
    if seconds is None or seconds.wall <= SLOW:   # again, after the libraries have built their kernels
        result = None
        held = peak_before()
        seconds, result = timed(run)
    peak = peak_memory(CPU).get("host")
    known = peak and not case.commands and not (case.elsewhere and form == "official")
    peak = round(max(0.0, peak - held), 1) if known else None
    return Alone(seconds, peak, result if case.once or seconds.wall > SLOW else None)


def peak_before() -> float:
    """Release freed memory, reset the peak, and return the MiB that this process holds."""
    gc.collect()
    with suppress(OSError, AttributeError):
        CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory(CPU)
    return peak_memory(CPU).get("host", 0.0)


def in_child(work: Callable[[], Any]) -> Any:
    """Run `work` in a forked process, which inherits the imported modules, and return its result.

    Raises
    ------
    RuntimeError
        if the process ends without a result; it prints the reason.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder, "result.pt")

        def child() -> None:
            tempfile.tempdir = folder            # so that leftovers are removed with the folder
            torch.save(work(), file)
        process = get_context("fork").Process(target=child)
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the process of a measurement ended with exit code {process.exitcode}")
        return torch.load(file, weights_only=False)


def greatest_difference(official: Any, ours: Any) -> float:
    """The greatest absolute difference of two tensors, or of two lists of them."""
    if isinstance(official, (list, tuple)):
        return max(greatest_difference(a, b) for a, b in zip(official, ours, strict=True))
    return float((torch.as_tensor(official).double().cpu() - torch.as_tensor(ours).double().cpu()).abs().max())


def share_of_unequal(official: torch.Tensor, ours: torch.Tensor) -> float:
    """The share of labels that differ."""
    return float((official.cpu() != ours.cpu()).double().mean())


def machine() -> str:
    """A description of the processor and the versions."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        model = Path("/proc/cpuinfo").read_text().split("model name")[1].split(":", 1)[1].split("\n")[0].strip()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()}, torch {torch.__version__}"


def table(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    head = ["name", "size", "official s", "ours s", "ratio", "CPU ratio", "difference", "official MiB", "ours MiB", "threads",
            "form", "official form"]
    lines = [[row.name, row.size, *(_seconds(row, form) for form in ("official", "ours")),
              *map(_number, (row.ratio, row.cpu_ratio, row.max_difference, row.official_peak_mb, row.ours_peak_mb)),
              str(row.threads), row.form, row.against] for row in rows]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in [head, rule, *lines]]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def as_json(rows: Iterable[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1)


KEYS = tuple(field.name for field in fields(Row))


def _seconds(row: Row, form: str) -> str:
    if row.ours_disk_mb is not None:
        return f"{_number(getattr(row, f'{form}_disk_mb'))} MiB on disk"
    return _number(getattr(row, f"{form}_s")) + " (once)" * (form in row.once.split(", "))


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
