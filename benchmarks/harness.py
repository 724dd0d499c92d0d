"""How two forms of one thing are measured: interleaved times, peak memory in a process of their own, difference of their results.

The official form is a plain re-statement of what the official code does, ours is what the steps call. Both get the same inputs.
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
    cpu: float      # of all threads together, and of the commands that have been started and have ended


@dataclass
class Case:
    """One comparison. `ours` and `official` take nothing and return tensors, numbers, or lists and dicts of them.

    `disk` replaces the times of a comparison of bytes: (official, ours) in MiB.
    """

    size: str
    ours: Callable[[], Any]
    official: Callable[[], Any] | None = None
    difference: Callable[[Any, Any], float] | None = None   # of (official, ours)
    against: str = ""               # what the official form is
    form: str = "float32, NCHW"     # precision and memory format of both, or of official -> ours
    per: int | dict[str, int] = 1   # images that a call works on, by which its time is divided
    disk: tuple[float, float] | None = None
    elsewhere: bool = False         # official: in processes of its own, whose memory and processor time are not known
    commands: bool = False          # both forms are commands: their times are processor time, their memory is not known
    once: bool = False              # too long to repeat: both forms are prepared by a first call, which returns what is measured


@dataclass
class Row:
    """What a comparison gave; None where there is nothing to say. Seconds an image."""

    name: str
    size: str
    against: str
    form: str
    threads: int
    official_s: float | None
    ours_s: float | None
    ratio: float | None             # official / ours, of times, or of `disk_mb`
    max_difference: float | None
    official_peak_mb: float | None  # above what the process held with its inputs, MiB
    ours_peak_mb: float | None
    official_disk_mb: float | None = None
    ours_disk_mb: float | None = None
    official_cpu_s: float | None = None   # of all threads: what is left to compare by where other work disturbs
    ours_cpu_s: float | None = None
    once: str = ""                  # the forms that ran once, for they are slow

    @property
    def cpu_ratio(self) -> float | None:
        return self.official_cpu_s / self.ours_cpu_s if self.official_cpu_s and self.ours_cpu_s else None


Builder = Callable[[bool], Case]
FORMS = ("official", "ours")


class Alone(NamedTuple):
    """What one form gave in a process of its own."""

    seconds: Seconds
    peak_mb: float | None
    result: Any             # None where it is quick: then it is computed again


def measure(name: str, build: Builder, quick: bool, threads: int, repeats: int = REPEATS, peaks: bool = True) -> Row:
    """The row of one benchmark. Without `peaks` no process is started and no memory measured.

    This process must not compute with torch: the threads that it would start are not in the processes that it forks.
    """
    if not peaks:
        return _compare(name, build, quick, threads, repeats, {})
    alone = {form: in_child(lambda form=form: measure_alone(build, form, quick, threads)) for form in FORMS}
    return in_child(lambda: _compare(name, build, quick, threads, repeats, alone))


def _compare(name: str, build: Builder, quick: bool, threads: int, repeats: int, alone: dict[str, Alone | None]) -> Row:
    """Both forms one after the other, `repeats` times after a warm-up; what is slow is taken as it was `alone`."""
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
            run = getattr(case, form)
            seconds, results[form] = timed(run() if case.once else run)      # the warm-up
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
    return Seconds(time.perf_counter() - wall, cpu_time() - cpu), result


def cpu_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure_alone(build: Builder, form: str, quick: bool, threads: int) -> Alone | None:
    """The seconds, the peak memory and the result of one form; None where the comparison has no such form, or is one of bytes."""
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
    if seconds is None or seconds.wall <= SLOW:   # again, with the libraries' kernels made
        result = None
        held = peak_before()
        seconds, result = timed(run)
    peak = peak_memory(CPU).get("host")
    known = peak and not case.commands and not (case.elsewhere and form == "official")
    peak = round(max(0.0, peak - held), 1) if known else None
    return Alone(seconds, peak, result if case.once or seconds.wall > SLOW else None)


def peak_before() -> float:
    """MiB that this process holds now, everything freed given back; the peak is measured from here on."""
    gc.collect()
    with suppress(OSError, AttributeError):
        CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory(CPU)
    return peak_memory(CPU).get("host", 0.0)


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own, which takes the imported modules from this one.

    Raises
    ------
    RuntimeError
        when the process ends without a result; it has printed why.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        file = Path(folder, "result.pt")

        def child() -> None:
            tempfile.tempdir = folder            # whatever it leaves goes with the folder
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
    return float((torch.as_tensor(official).double() - torch.as_tensor(ours).double()).abs().max())


def share_of_unequal(official: torch.Tensor, ours: torch.Tensor) -> float:
    """The share of labels that differ."""
    return float((official != ours).double().mean())


def machine() -> str:
    """The processor, the versions."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, IndexError):
        model = Path("/proc/cpuinfo").read_text().split("model name")[1].split(":", 1)[1].split("\n")[0].strip()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()}, torch {torch.__version__}"


def table(rows: Iterable[Row]) -> str:
    """The rows as a table in Markdown."""
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
