"""Run a pipeline: compose, plan, work, report. The same from the command line and from Python."""

from __future__ import annotations

import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pipeline import config as configuration
from pipeline.actions.export_voc import STEP as EXPORTED
from pipeline.actions.export_voc import export_voc
from pipeline.cluster.machine import choose_device, fast_precision, prepare_process
from pipeline.cluster.submit import Submitted, Submitter, require_one_step
from pipeline.config import Precision, selected
from pipeline.console import Console, head_line, plan_table
from pipeline.plan.expect import expect
from pipeline.plan.plan import REUSE, PlannedStep, check_share, make_plan, survey
from pipeline.report.stages import settings_in_use
from pipeline.runfolder.claims import Claim, Owner
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import find_run, reading
from pipeline.runfolder.recorded import RecordedRun, recorded_config
from pipeline.runfolder.reuse import open_donors
from pipeline.runfolder.status import StepStatus, run_status
from pipeline.runfolder.summary import build_summary
from pipeline.runfolder.verify import Verified, verify_step
from pipeline.tracking import check_logger
from pipeline.work import Work, quarantined
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.context import Group
from steps.runtime.datasets import open_dataset
from wsss.data.dataset import did_you_mean
from wsss.data.findings import Finding
from wsss.errors import ArtifactError, ConfigError
from wsss.files import user_path, write_text

if TYPE_CHECKING:
    from steps.parts.prediction import Prediction

SUMMARY, LOG = "summary.json", "run.log"
# keys that only other actions look at
ACTION_KEYS = ("action", "download", "import_from", "export_to", "run", "runs", "image", "classes", "class_threshold", "tune")


class Pipeline(Work):
    """A composed pipeline.

    Examples
    --------
    >>> pipeline = Pipeline.compose("experiment=smoke", "name=first")
    >>> summary = pipeline.run()
    >>> summary["eval_sem_seg"]["miou"]
    """

    def __init__(self, config: DictConfig, overrides: tuple[str, ...] = ()):
        if config.multirun.name:
            config.name = f"{config.multirun.name}/{configuration.member_name(config.multirun.over, overrides)}"
        self.composed, self.config, self.overrides = config, configuration.typed(config), overrides
        self.folder = RunFolder(self.config.folder, inside=config.multirun.name is not None)
        self.device_type = choose_device(self.config.device.value)
        if self.config.precision is Precision.auto:
            config.precision = self.config.precision = Precision(fast_precision(self.device_type))
        self.console = Console(self.config.log_level.value)
        self.report_path: Path | None = None   # of the report that the last call of `run` left
        self.group = Group()   # the processes of this run; `pipeline.cluster.processes` makes it several

    @classmethod
    def compose(cls, *overrides: str) -> Pipeline:
        """From overrides as on the command line, for example `Pipeline.compose("data=folder", "data.root=photos")`."""
        return cls(configuration.compose(overrides), overrides)

    def plan(self) -> list[PlannedStep]:
        """What a run would do now, step by step. Starts nothing and writes nothing.

        Raises
        ------
        WsssError
            for everything that `run` refuses before it works.
        """
        with tempfile.TemporaryDirectory() as scratch:   # for an embedded data set that is not drawn yet
            self.dataset = open_dataset(self.config.data, scratch=Path(scratch))
            plan = self._plan(fetch=False)
        mine = Claim(Owner.me(), "", *map(tuple, _claimed([planned for planned in plan if planned.works])))
        for other in self.folder.claims.living():
            if step := mine.collides(other):
                self.console.warning(f"{step} is in use by {other.owner} since {other.since}: now a run would be refused")
        return plan

    def status(self) -> list[StepStatus]:
        """How far each step is, from names and sizes alone: no artifact, image or mask is read.

        Raises
        ------
        ConfigError
            when there is no such run.
        """
        self._require_run()
        with tempfile.TemporaryDirectory() as scratch:
            self.dataset = open_dataset(self.config.data, scratch=Path(scratch), check=False)
            self.folder.check_data(self._data)
            return run_status(self.config, self.dataset, self.folder)

    def verify(self) -> list[Verified]:
        """Read and check every artifact of the finished steps; broken ones are put away, so that a run makes them again.

        Raises
        ------
        ConfigError, BusyError
            when there is no such run, or another process works on it.
        """
        found = []
        with self._reading(self.config.steps):
            for name in self.config.steps:
                self.console.start(name)
                found.append(verify_step(self.folder, name, self.dataset, lambda done, total, name=name: self.console.progress(
                    name, done, total, "artifacts")))
        return found

    def run(self) -> dict[str, Any]:
        """Do what the plan says and return the summary, which is also in `summary.json`.

        Raises
        ------
        WsssError
            for anything that cannot be: bad configuration or data before any work, a failing step during it.
        Stopped
            after SIGINT or SIGTERM; what was finished is saved.
        """
        if not self.group.is_main:
            return self._follow()
        return self._carry_out(self._plan)

    def import_official(self) -> dict[str, Any]:
        """Convert official files into finished steps (`pipeline.actions.official`); the summary, as `run` returns it."""
        from pipeline.actions.official import import_plan

        return self._carry_out(lambda: import_plan(self.config, self.dataset, self.folder))

    def _carry_out(self, plan_of: Callable[[], list[PlannedStep]]) -> dict[str, Any]:
        config = self.config
        self.dataset = open_dataset(config.data)
        self.folder.check_data(self._data)
        early = config.part or not self.folder.path.exists()   # many shards plan at once; nothing is written for what is refused
        plan = plan_of() if early else None
        with ExitStack() as held:
            with self.folder.claims.planning(self.console.warning):
                self.folder.recover(config.steps)
                if plan is None or self.folder.is_started() and not config.part:
                    plan = plan_of()
                held.enter_context(self._signals())
                to_do = [planned for planned in plan if planned.works]
                claim = held.enter_context(self.folder.claims.hold(*_claimed(to_do, config.part)))
            self.folder.open(self._data)
            if config.shard is None:
                write_text(self.folder.path / "config.yaml", OmegaConf.to_yaml(self.composed, resolve=True))
                self.console.log_to(self.folder.path / LOG, shlex.join(["python", "run_pipeline.py", *self.overrides]))
                held.push(self.console.leave)
            self._assemble()
            self.console.info(head_line(self.folder.path, self.dataset, self.config.model, self.device))
            self.console.info(plan_table(self.folder.path, plan))
            for number, planned in enumerate(to_do):
                claim(*_claimed(to_do[number:], config.part), planned.name)
                self._work(planned)
            self.group.broadcast(lambda: None)   # the others may go
            if config.shard is not None:
                return {}
            summary = self._summary()
            write_json(self.folder.path / SUMMARY, summary)
        self._report_on(summary)
        return summary

    def submit(self) -> list[Submitted]:
        """Write a script for each step that a run would do, and submit what is not queued yet, as a chain of jobs.

        Raises
        ------
        WsssError
            for everything that `run` refuses before it works; when sbatch is not there or refuses.
        """
        self.dataset = open_dataset(self.config.data)
        self.folder.check_data(self._data)
        plan = self._plan()
        with self.folder.claims.planning(self.console.warning):
            self.folder.open(self._data)
            return Submitter(self.config, self.folder, self.dataset, self.overrides).submit(plan)

    def export_voc(self) -> list[Finding]:
        """Write images and pseudo masks as a folder in the layout of PASCAL VOC (`pipeline.actions.export_voc`)."""
        with self._reading([EXPORTED]):
            self.console.start("export_voc")
            command = self.command.replace(" force=true", "")   # meant for the folder, not for the steps
            return export_voc(self.config, self.dataset, self.folder, command, self.console.progress)

    def export_official(self) -> list[Finding]:
        """Write maps, labels and networks as the official code would have written them (`pipeline.actions.official`)."""
        from pipeline.actions.official import export_official

        chosen = selected(self.config)
        with self._reading(chosen):
            self.console.start("export_official")
            return export_official(self.config, self.dataset, self.folder, chosen, self.console.progress)

    def predict(self, image: str | Path, classes: Sequence[str] = ()) -> Prediction:
        """CAM, LPCAM, random walk and mask of any JPEG or PNG, by this finished run. Writes nothing.

        `classes` are names; without any those whose probability by the classifier is above `class_threshold`. The data set
        of the run is not needed.

        Raises
        ------
        ConfigError, DataError
            when there is no such run, class or image.
        """
        from pipeline.actions.predict import class_indices, finished_run
        from steps.parts.prediction import predict

        self._require_run()
        run = finished_run(self.config, self.folder)
        indices = class_indices(classes, run.classes) or None
        prepare_process(self.config.threads, self.device)
        with reading(self.folder, run.folders, self.console.warning):
            return predict(run, user_path(image), indices, self.config.class_threshold, self.device, self.console.warning)

    def tune(self) -> dict[str, Any]:
        """Scores over thresholds and walks on the stored maps of this finished run (`pipeline.actions.tune`). Writes nothing.

        Raises
        ------
        ConfigError
            when there is no such run, or its maps or the masks of `tune.split` are missing, or that list is of test images.
        Stopped
            after SIGINT or SIGTERM.
        """
        from pipeline.actions.tune import finished_steps, run_tune

        self._require_run()
        steps = finished_steps(self.config, self.folder)
        prepare_process(self.config.threads, self.device)
        self.console.start("tune")
        with self._reading(steps), self._signals():
            return run_tune(self.config, self.dataset, self.folder, steps, device=self.device,
                             stop=lambda: self.group.asked is not None, warn=self.console.warning,
                             progress=lambda done, total, note: self.console.progress("tune", done, total, note))

    def report(self) -> Path:
        """Write `report/report.html` from what lies in the run folder, with the configuration of its last call; its path.

        Raises
        ------
        WsssError
            when there is no such run, or it cannot be read.
        """
        from pipeline.report.page import write_report

        self._require_run()
        return write_report(self._recorded(self.folder.path), progress=self._progress("report"))

    def compare(self) -> tuple[str, Path]:
        """Set the runs of `runs` side by side: a table for the screen, and the path of a page that is written.

        Raises
        ------
        WsssError
            when there are fewer than two runs, or they cannot be compared.
        """
        from pipeline.report.compare import check_runs, write_comparison

        paths = check_runs([find_run("runs", run, self.config.outputs) for run in self.config.runs])
        runs = [self._recorded(path) for path in paths]
        return write_comparison(runs, user_path(self.config.outputs), self._progress("compare"))

    def results(self) -> dict[str, Any]:
        """The summary of the last finished call of `run`. Raises ArtifactError where there is none."""
        return read_json(self.folder.path / SUMMARY)

    @property
    def command(self) -> str:
        """The command line that runs this pipeline."""
        words = [word for word in self.overrides if word.partition("=")[0].split(".")[0] not in ACTION_KEYS]
        return shlex.join(["python", "run_pipeline.py", *words])

    @property
    def _data(self) -> dict[str, Any]:
        data = self.config.data
        return {"kind": data.kind, "name": data.name, "root": str(user_path(data.root).resolve()),
                "classes": list(self.dataset.classes)}

    def _plan(self, fetch: bool = True) -> list[PlannedStep]:
        config, dataset = self.config, self.dataset
        check_logger(config.logger)
        self.folder.check_data(self._data)
        try:
            plan = make_plan(config, dataset, self.folder, open_donors(config), fetch)
        except FileNotFoundError:   # another run has just finished a step, which renames its folder
            plan = make_plan(config, dataset, self.folder, open_donors(config), fetch)
        if config.shard is not None:
            require_one_step(config, configuration.selected(config), plan)
        for planned in plan:
            if planned.works and planned.action != REUSE:
                check_share(config, planned, self.group.size)
            if planned.works:
                planned.expected = expect(config, dataset, self.folder, planned, self.device_type)
        return plan

    def _summary(self) -> dict[str, Any]:
        """The summary of what is up to date by now, also by other runs on this folder."""
        plan = survey(self.config, self.dataset, self.folder, read_images=False)
        try:
            return build_summary(self.folder, plan, self.dataset.classes, self.config.published,
                                 settings_in_use(self.config))
        except ArtifactError as error:
            raise quarantined(error, "summary") from error

    def _recorded(self, path: Path) -> RecordedRun:
        """A run as its folder recorded it; `report`, `device` and, where it is given, `data.root` are of this call."""
        moved = any(word.startswith("data.root=") for word in self.overrides)
        last = Pipeline(recorded_config(path.resolve(), self.composed, moved))
        last.dataset = open_dataset(last.config.data, check=False)
        last.folder.check_data(last._data)
        return last._as_recorded(last._summary())

    def _as_recorded(self, summary: dict[str, Any]) -> RecordedRun:
        plan = survey(self.config, self.dataset, self.folder, read_images=False)
        return RecordedRun(self.config, self.composed, self.dataset, self.folder, self.device, plan, summary)

    def _report_on(self, summary: dict[str, Any]) -> None:
        """Write the report of the run that has just ended. Its results are complete: nothing here makes it fail."""
        self.report_path = None
        if not self.config.report.write:
            return
        try:
            from pipeline.report.page import write_report

            self.console.start("report")
            self.report_path = write_report(self._as_recorded(summary), again=False, progress=self._progress("report"))
        except Exception as error:   # whatever it is: the report can be written again
            if self.console.is_debug:
                traceback.print_exc()
            self.console.warning(f"the report could not be written ({type(error).__name__}: {error}); the results are complete, "
                                 "and action=report tries it again")

    def _progress(self, what: str) -> Callable[[int, int, str], None]:
        return lambda done, total, note: self.console.progress(what, done, total, note)

    def _require_run(self) -> None:
        if self.folder.path.is_dir():
            return
        outputs = user_path(self.config.outputs)
        runs = sorted(path.name for path in outputs.glob("*") if path.is_dir() and not path.name.startswith("."))
        raise ConfigError(f"there is no run {self.folder.path}{did_you_mean(self.config.run_name, runs)} (in {outputs}: "
                          f"{', '.join(runs) or 'none'}). Choose one with name=NAME, or start it: {self.command}")

    @contextmanager
    def _reading(self, steps: Iterable[str]) -> Iterator[None]:
        """Open the data set of an existing run and claim the steps that are read."""
        self._require_run()
        self.dataset = open_dataset(self.config.data)
        self.folder.check_data(self._data)
        with reading(self.folder, steps, self.console.warning):
            yield

def _claimed(steps: list[PlannedStep], part: tuple[int, int] | None = None) -> tuple[list[tuple[str, int, int]], list[str]]:
    """What is claimed to work on `steps`: what is made, as (step, shard, shards), and what is read."""
    return [(step.name, *(part or (0, 1))) for step in steps], [source for step in steps for source in step.reads]
