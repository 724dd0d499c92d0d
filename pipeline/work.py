"""Run steps in this process, or in a group of processes that rank 0 coordinates."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.machine import peak_memory, prepared_process, reset_peak_memory, versions
from pipeline.console import Console
from pipeline.contexts import make_context, make_runtime
from pipeline.order import BY_NAME
from pipeline.plan.plan import CONTINUE, REUSE, PlannedStep, seen_by_step, work_folder
from pipeline.runfolder.folder import RUN, RunFolder
from pipeline.runfolder.reuse import take_over
from pipeline.settings import Precision
from pipeline.tracking import tracked
from steps.runtime.artifacts import quarantine
from steps.runtime.context import Group, Runtime, StepContext, settings_of
from steps.runtime.datasets import open_dataset
from steps.runtime.inference import with_fallback
from steps.runtime.journal import join_divisions, merge_journals, unfinished
from steps.runtime.memory import release
from steps.step import IMAGES, TRAINING
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError, StorageError, WsssError, prefixed
from wsss.files import file_sizes, require_folder, required

if TYPE_CHECKING:
    import torch

PATIENCE = 10.0   # seconds until all machines must see a new file


class Work:
    """The part of a pipeline that runs its steps."""

    config: Any
    folder: RunFolder
    dataset: Dataset
    device_type: str   # "cpu" or "cuda"
    console: Console
    group: Group

    @cached_property
    def device(self) -> torch.device:
        """The device of this process; `_assemble` assigns one to each of several processes."""
        import torch

        return torch.device(self.device_type)

    def _assemble(self) -> AbstractContextManager[None]:
        """Check that all processes see the run folder, and choose the device of each. Returns the context in which this process
        works.

        Raises ConfigError in every process, if one of them does not see the folder.
        """
        mark = Path(self.group.broadcast(lambda: str((self.folder.path / RUN).resolve())))
        end = time.monotonic() + PATIENCE
        while not (seen := mark.exists()) and time.monotonic() < end:   # a network file system may lag behind
            time.sleep(0.1)
        if others := [rank for rank, sees in enumerate(self.group.all_gather(seen)) if not sees]:
            raise ConfigError(f"{', '.join(map(self.group.name, others))} does not see {mark}: the run folder must be on a file "
                              "system that all machines share. Choose one with outputs=DIR")
        # the machines may have chosen different values of auto
        self.config.precision = Precision(self.group.broadcast(lambda: self.config.precision.value))
        self.device = self.group.choose_device(self.device)
        return prepared_process(self.config.threads, self.device, self.group.here)

    def _follow(self) -> dict[str, Any]:
        """The work of ranks other than 0: their part of every step that rank 0 starts."""
        with self.signals(), self._assemble():
            self.dataset = open_dataset(self.config.data, check=False)
            while order := self.group.broadcast(dict):
                lists = {purpose: tuple(ids) for purpose, ids in order["lists"].items()}
                self._do(PlannedStep(BY_NAME[order["step"]], lists, {}, order["sources"], ""), Path(order["folder"]))
        return {}

    def _work(self, planned: PlannedStep) -> None:
        """Do one step and make its result final."""
        import torch

        folder, step = work_folder(self.folder, planned), planned.step
        if self.config.part:   # other shards use the folder: delete nothing
            self.folder.share(planned.name, folder, planned.identity)
        else:
            self.folder.begin(planned.name, folder, planned.identity, planned.damaged)
        start, started = time.perf_counter(), time.strftime("%Y-%m-%d %H:%M:%S")
        reset_peak_memory(self.device)
        self.console.start(planned.name)
        taken = self._take(planned, folder) if planned.action == REUSE else None
        if taken is None:
            if step.KIND == IMAGES and self.config.shard is None:
                join_divisions(folder, planned.lists["ids"], self.group.size)
            self.group.broadcast(lambda: {"step": planned.name, "folder": str(folder), "lists": planned.lists,
                                          "sources": planned.sources})
            result = self._do(planned, folder)
            if self.config.shard is not None:
                self.console.finish(f"{planned.name}, shard={self.config.shard}", time.perf_counter() - start)
                return
        images = merge_journals(folder, planned.lists["ids"]) if step.KIND == IMAGES else None
        seconds = time.perf_counter() - start
        settings = {} if planned.imported else settings_of(getattr(self.config, planned.name))
        facts = taken or {
            "step": planned.name, "fingerprint": planned.fingerprint, "identity": planned.identity,
            "settings": settings, "seed": self.config.seed, "sources": planned.sources,
            "lists": {purpose: len(ids) for purpose, ids in planned.lists.items()}, "result": result,
            "device": str(self.device), "precision": self.config.precision.value, "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "started": started, "seconds": round(seconds, 2), "continued": planned.action == CONTINUE,
            "peak_memory_mb": peak_memory(self.device), "versions": versions()}
        facts |= {"images": images, "added": planned.added, "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
                  "made": {"units": planned.to_do, "seconds": round(seconds, 2), "total": planned.total},
                  "disk_mb": round(sum(file_sizes(folder).values()) / 2**20, 2)}
        self.folder.finish(planned.name, folder, facts)
        self.console.finish(planned.name, seconds)

    def _do(self, planned: PlannedStep, folder: Path) -> dict[str, Any]:
        """Run this process's part of a step and wait until all processes have finished theirs."""
        work = planned.step.run
        if planned.import_from is not None:
            work = partial(planned.step.OFFICIAL.convert, source=planned.import_from)
        elif self.config.shard == "prepare":
            work = planned.step.prepare or (lambda context: None)
        try:
            with required(folder), self._watched(planned, self._context(planned, folder)) as context:
                result = with_fallback(work, context)
        except WsssError as error:
            require_folder(folder)
            raise quarantined(error, planned.name) from error
        self.group.all_gather(None)
        release()
        return result

    @contextmanager
    def _watched(self, planned: PlannedStep, context: StepContext) -> Iterator[StepContext]:
        """The context of a step; for a training on rank 0 with the callbacks of the logger."""
        if planned.step.KIND != TRAINING or not self.group.is_main:
            yield context
            return
        settings = settings_of(context.settings)
        with tracked(context, self.config, self.folder.path, planned.name, planned.fingerprint, settings) as watched:
            yield replace(context, runtime=replace(context.runtime, **watched))

    def _take(self, planned: PlannedStep, folder: Path) -> dict | None:
        """Reuse the result of another run; return its manifest, or None if images remain to be made."""
        donor, ids = planned.donor.folder, planned.lists.get("ids", ())
        dataset = seen_by_step(self.config, self.dataset, planned)
        with ExitStack() as held:
            with suppress(StorageError):   # the run may be read-only
                with donor.claims.planning(self.console.warning):
                    held.enter_context(donor.claims.hold([], [planned.name]))
            manifest = take_over(donor, planned.name, folder, ids, dataset)
        if planned.step.KIND == IMAGES and unfinished(folder, ids, dataset, added=planned.added):
            return None
        return {**manifest, "taken_from": str(donor.path)}

    def _context(self, planned: PlannedStep, folder: Path) -> StepContext:
        name = planned.name
        runtime = self.runtime(progress=lambda done, total, note: self.console.progress(name, done, total, note),
                               warn=lambda message: self.console.warning(f"{name}: {message}"))
        return make_context(self.config, self.dataset, name, planned.lists, folder, planned.sources, self.folder.result, runtime)

    def runtime(self, **callbacks: Any) -> Runtime:
        """Where the steps work: this process, alone or in its group."""
        return make_runtime(self.config, self.device, self.group, **callbacks)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGINT, SIGTERM and SIGUSR1 save and stop the step; a second SIGINT or SIGTERM ends the process."""
        self.group.asked = None

        def ask(number: int, frame: Any) -> None:
            self.group.asked = number
            signal.signal(number, signal.SIG_IGN if number == signal.SIGUSR1 else signal.SIG_DFL)   # Slurm may send it twice
            self.console.warning(f"{signal.Signals(number).name}: saving, then stopping")
        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        except ValueError:   # not the main thread: signals stay as they are
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def saying_needs(steps: list[PlannedStep]) -> Iterator[None]:
    """If the disk is full inside the block, add to the error how much the `steps`, those that are left then, need on it."""
    try:
        yield
    except StorageError as error:
        cause: BaseException | None = error
        while isinstance(cause, WsssError):
            cause = cause.__cause__
        sizes = [planned.expected.disk_mb for planned in steps if planned.expected and planned.expected.disk_mb]
        if getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not sizes:
            raise
        names = ", ".join(planned.name for planned in steps)
        raise StorageError(f"{error}. What is left to do ({names}) needs about {sum(sizes):.1f} MiB there in all") from error


def quarantined(error: WsssError, step: str) -> WsssError:
    """The error with the name of its step; a damaged artifact that it names is renamed."""
    path = quarantine(error)
    return prefixed(error, step + (f" (renamed to {path.name}: the same command makes it again)" if path else ""))
