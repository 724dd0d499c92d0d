"""Run a pipeline: compose, plan, work, report. The same from the command line and from Python."""

import os
import platform
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from pipeline import config as configuration
from pipeline.console import Console
from pipeline.plan import CONTINUE, PlannedStep, make_plan
from pipeline.runfolder import RunFolder, directory_size
from pipeline.summary import build_summary, score_table
from steps.artifacts import write_json
from steps.context import StepContext, Stopped
from steps.datasets import open_dataset
from steps.journal import merge_journals
from wsss.errors import ConfigError, WsssError
from wsss.files import sweep, write_text


class Pipeline:
    """A composed pipeline.

    >>> pipeline = Pipeline.compose("experiment=smoke", "name=first")
    >>> summary = pipeline.run()
    >>> summary["eval_sem_seg"]["miou"]
    """

    def __init__(self, config: DictConfig):
        self.composed, self.config = config, configuration.typed(config)
        self.folder = RunFolder(self.config.folder)
        self.device = _device(self.config.device.value)
        self.console = Console()
        self._stop_signal: int | None = None

    @classmethod
    def compose(cls, *overrides: str) -> "Pipeline":
        """From overrides as on the command line, for example `Pipeline.compose("data=folder", "data.root=photos")`."""
        return cls(configuration.compose(overrides))

    def plan(self) -> list[PlannedStep]:
        """What a run would do now, step by step; writes nothing but the embedded data set on its first use."""
        self.dataset = open_dataset(self.config.data)
        return make_plan(self.config, self.dataset, self.folder)

    def run(self) -> dict[str, Any]:
        """Do what the plan says and return the summary, which is also in `summary.json`.

        Raises
        ------
        WsssError
            for anything that cannot be: bad configuration or data before any work, a failing step during it.
        Stopped
            after SIGINT or SIGTERM; what was finished is saved.
        """
        self.dataset = open_dataset(self.config.data)
        if not self.folder.path.exists():
            make_plan(self.config, self.dataset, self.folder)   # refuses what cannot be before the folder is made
        with self.folder.locked(), self._signals():
            _pin_threads(self.config.threads, self.device)
            self.folder.recover(self.config.steps)
            plan = make_plan(self.config, self.dataset, self.folder)
            write_text(self.folder.path / "config.yaml", OmegaConf.to_yaml(self.composed, resolve=True))
            self.console.plan(self.folder.path, self.dataset, self.device, plan)
            for planned in plan:
                if planned.works:
                    self._work(planned)
            summary = build_summary(self.folder, plan, self.dataset.classes)
            write_json(self.folder.path / "summary.json", summary)
        return summary

    def run_and_report(self) -> int:
        """Run, print the table of scores and where everything lies; return the exit code of the process."""
        try:
            summary = self.run()
        except WsssError as error:
            self.console.line(f"error: {error}", file=sys.stderr)
            return 1
        except Stopped:
            self.console.line("stopped; what was finished is saved, the same command continues", file=sys.stderr)
            return 128 + (self._stop_signal or signal.SIGTERM)
        self.console.line("\n" + score_table(summary))
        self.console.line(f"Everything lies in {self.folder.path}{os.sep}, the scores in {self.folder.path / 'summary.json'}")
        return 0

    def _work(self, planned: PlannedStep) -> None:
        """Do one step and make its result final."""
        folder = self._work_folder(planned)
        if planned.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        for name in planned.damaged:
            (folder / name).unlink(missing_ok=True)
        context = self._context(planned, folder)
        start, started = time.perf_counter(), time.strftime("%Y-%m-%dT%H:%M:%S")
        _reset_peak_memory(self.device)
        self.console.start(planned.name)
        result = planned.step.module.run(context)
        images = merge_journals(folder, context.ids) if planned.step.kind == "images" else None
        seconds = time.perf_counter() - start
        self.folder.finish(planned.name, folder, {
            "step": planned.name, "fingerprint": planned.fingerprint, "identity": planned.identity,
            "settings": configuration.settings_of(context.settings), "seed": self.config.seed,
            "lists": {purpose: len(ids) for purpose, ids in planned.lists.items()}, "images": images, "result": result,
            "device": str(self.device), "precision": self.config.precision.value, "threads": torch.get_num_threads(),
            "started": started, "seconds": round(seconds, 2), "images_made": planned.to_do,
            "continued": planned.action == CONTINUE, "peak_memory_mb": _peak_memory(self.device),
            "disk_mb": round(directory_size(folder) / 2**20, 2), "versions": _versions()})
        self.console.finish(planned.name, seconds)

    def _work_folder(self, planned: PlannedStep) -> Path:
        manifest = self.folder.manifest(planned.name)
        if manifest is not None and manifest["fingerprint"] == planned.fingerprint and not planned.fresh:
            return self.folder.result(planned.name)   # only some images are missing
        return self.folder.partial(planned.name, planned.fingerprint)

    def _context(self, planned: PlannedStep, folder: Path) -> StepContext:
        config = self.config
        return StepContext(
            settings=getattr(config, planned.name), dataset=self.dataset, lists=planned.lists, folder=folder,
            inputs={source: self.folder.result(source) for source in planned.reads}, model=config.model,
            seed_maps=config.seed_maps.value, seed=config.seed, device=self.device, precision=config.precision.value,
            workers=config.workers, stop=lambda: self._stop_signal is not None,
            progress=lambda done, total, note: self.console.progress(planned.name, done, total, note),
            warn=lambda message: self.console.line(f"warning: {planned.name}: {message}", file=sys.stderr))

    @contextmanager
    def _signals(self):
        """SIGINT and SIGTERM ask the step to save and stop; a second one ends the process at once."""
        self._stop_signal = None

        def ask(number: int, frame: Any) -> None:
            self._stop_signal = number
            signal.signal(number, signal.SIG_DFL)
            self.console.line(f"{signal.Signals(number).name}: saving, then stopping", file=sys.stderr)
        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:   # not the main thread: signals stay as they are
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here. Set device=cpu or device=auto, or install a torch "
                          "build that fits the driver")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _pin_threads(threads: int | None, device: torch.device) -> None:
    """A fixed thread count: sums depend on it, so results are bit-identical at the same count only."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or available)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False   # float32 is float32
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")   # asked for by torch's deterministic algorithms
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")   # Linux: starts the process's memory high-water mark anew
    except OSError:
        pass


def _peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB of the process, and of the CUDA device where one is used."""
    peak = {}
    try:
        status = Path("/proc/self/status").read_text()
        peak["host"] = round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)
    except (OSError, IndexError):
        pass
    if device.type == "cuda":
        peak["cuda"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": version("torchvision"),
            "numpy": np.__version__, "hydra-core": version("hydra-core")}
