"""Run a pipeline: compose, plan, work, report. Used by the command line and from Python."""

from __future__ import annotations

import shlex
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline import actions
from pipeline import config as configuration
from pipeline.cluster.machine import choose_device, fast_precision
from pipeline.cluster.submit import require_one_step
from pipeline.console import Console, head_line, plan_table
from pipeline.plan.expect import expect
from pipeline.plan.plan import ABSENT, NOTHING, REUSE, PlannedStep, check_share, make_plan, remarks, survey
from pipeline.plan.selection import selected
from pipeline.runfolder.claims import Claim, Owner
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import reading, reading_available
from pipeline.runfolder.recorded import RecordedRun, recorded_config
from pipeline.runfolder.reuse import open_donors
from pipeline.runfolder.summary import SUMMARY, Summary, build_summary
from pipeline.settings import KEYS_OF_ACTIONS, Precision
from pipeline.tracking import check_logger
from pipeline.work import Work, quarantined, saying_needs
from steps.runtime.artifacts import read_json, write_json
from steps.runtime.context import Group
from steps.runtime.datasets import open_dataset
from wsss.data.messages import did_you_mean
from wsss.errors import ArtifactError, ConfigError
from wsss.files import required, user_path, write_text

LOG = "run.log"


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
        self.report_path: Path | None = None   # the report that the last call of `run` wrote
        self.readable: set[str] | None = None   # the steps claimed for a report; None: all
        self.group = Group()   # this process only; see `pipeline.cluster.processes` for several

    @classmethod
    def compose(cls, *overrides: str) -> Pipeline:
        """Compose from command-line overrides, for example `Pipeline.compose("data=folder", "data.root=photos")`."""
        return cls(configuration.compose(overrides), overrides)

    def plan(self) -> list[PlannedStep]:
        """The plan of a run: what it would do with each step. Starts nothing and writes nothing.

        Raises WsssError for everything that `run` refuses before any work.
        """
        with tempfile.TemporaryDirectory() as scratch:   # for an embedded data set that is not generated yet
            self.dataset = open_dataset(self.config.data, scratch=Path(scratch))
            plan = self.make_plan(fetch=False)
        claim = Claim(Owner.me(), "", *map(tuple, _claimed([planned for planned in plan if planned.works])))
        for other in self.folder.claims.living():
            if step := claim.collides(other):
                self.console.warning(f"{step} is in use by {other.owner} since {other.since}: a run would be refused now")
        return plan

    def run(self) -> Summary:
        """Run the plan and return the summary, which is also written to `summary.json`.

        Raises
        ------
        WsssError
            if the configuration or the data are invalid (before any work), or if a step fails.
        Stopped
            after SIGINT or SIGTERM; finished work is saved.
        """
        if not self.group.is_main:
            return Summary(self._follow())
        return Summary(self.carry_out(self.make_plan))

    def carry_out(self, plan_of: Callable[[], list[PlannedStep]]) -> dict[str, Any]:
        config = self.config
        to_do: list[PlannedStep] = []
        with ExitStack() as held:
            held.enter_context(self.console.hear())
            held.enter_context(saying_needs(to_do))
            self.dataset = open_dataset(config.data)
            self.folder.check_data(self.data_identity)
            early = config.part or not self.folder.path.exists()   # many shards plan at once; a refused run writes nothing
            plan = plan_of() if early else None
            with self.folder.claims.planning(self.console.warning):
                self.folder.recover(config.steps)
                if plan is None or self.folder.is_started() and not config.part:
                    plan = plan_of()
                held.enter_context(self.signals())
                to_do += [planned for planned in plan if planned.works]
                claim = held.enter_context(self.folder.claims.hold(*_claimed(to_do, config.part)))
            held.enter_context(required(self.folder.path))
            self.folder.open(self.data_identity)
            if config.shard is None:
                write_text(self.folder.path / "config.yaml", OmegaConf.to_yaml(self.composed, resolve=True))
                self.console.log_to(self.folder.path / LOG, shlex.join(["python", "run_pipeline.py", *self.overrides]))
                held.push(self.console.leave)
            held.enter_context(self._assemble())
            self.console.info(head_line(self.folder.path, self.dataset, self.config.backbone, self.device))
            for remark in remarks(self.config, plan):
                self.console.info(f"  {remark}")
            self.console.info(plan_table(self.folder.path, plan))
            while to_do:
                claim(*_claimed(to_do, config.part), to_do[0].name)
                self._work(to_do[0])
                del to_do[0]
            self.group.broadcast(lambda: None)   # the other processes stop following
            if config.shard is not None:
                return {}
            summary = self._summary()
            write_json(self.folder.path / SUMMARY, summary)
        self._report_on(summary)
        return summary

    def __getattr__(self, name: str) -> Any:
        """Every action is a method: `pipeline.status()` is `do` of `pipeline/actions/status.py`."""
        if name in actions.names() and hasattr(module := actions.load(name), "do"):
            return partial(module.do, self)
        return object.__getattribute__(self, name)   # raises the error of a property, where it was one

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *actions.names()]

    def results(self) -> Summary:
        """The summary of the last finished call of `run`. Raises ArtifactError if there is none."""
        return Summary(read_json(self.folder.path / SUMMARY))

    @property
    def command(self) -> str:
        """The command line that runs this pipeline."""
        words = [word for word in self.overrides if word.partition("=")[0].split(".")[0] not in {"action", *KEYS_OF_ACTIONS}]
        return shlex.join(["python", "run_pipeline.py", *words])

    @property
    def data_identity(self) -> dict[str, Any]:
        data = self.config.data
        return {"kind": data.kind, "name": data.name, "root": str(user_path(data.root).resolve()),
                "classes": list(self.dataset.classes)}

    def make_plan(self, fetch: bool = True) -> list[PlannedStep]:
        config, dataset = self.config, self.dataset
        check_logger(config.logger)
        self.folder.check_data(self.data_identity)
        try:
            plan = make_plan(config, dataset, self.folder, open_donors(config), fetch)
        except FileNotFoundError:   # another run has just finished a step, which renames its folder
            plan = make_plan(config, dataset, self.folder, open_donors(config), fetch)
        if config.shard is not None:
            require_one_step(config, selected(config), plan)
        for planned in plan:
            if planned.works and planned.action != REUSE:
                check_share(config, planned, self.group.size)
            if planned.works:
                planned.expected = expect(config, dataset, self.folder, planned, self.device_type)
        return plan

    def _summary(self) -> dict[str, Any]:
        """The summary of all steps that are up to date now, including those that other processes made."""
        try:
            return build_summary(self.config, self.folder, self._survey(), self.dataset.classes)
        except ArtifactError as error:
            raise quarantined(error, "summary") from error

    def _survey(self) -> list[PlannedStep]:
        """The state of every step, from names and sizes. In a report, steps that other processes make now count as missing."""
        try:
            plan = survey(self.config, self.dataset, self.folder, read_images=False)
        except FileNotFoundError:   # another run has just finished a step, which renames its folder
            plan = survey(self.config, self.dataset, self.folder, read_images=False)
        for planned in plan:
            if self.readable is not None and planned.name not in self.readable and planned.state not in (ABSENT, NOTHING):
                planned.state, planned.why = ABSENT, "another process makes it now"
        return plan

    def recorded(self, path: Path, held: ExitStack | None = None) -> RecordedRun:
        """A run as recorded in its folder; `report`, `device` and, if set, `data.root` are those of this call.

        `held` keeps the claim on the steps that are read.
        """
        RunFolder(path).check_format()
        moved = any(word.startswith("data.root=") for word in self.overrides)
        last = Pipeline(recorded_config(path.resolve(), self.composed, KEYS_OF_ACTIONS, moved))
        last.folder = RunFolder(path.resolve(), inside=True)   # it may be a member of a sweep
        last.dataset = open_dataset(last.config.data, check=False)
        last.folder.check_data(last.data_identity)
        if held is not None:
            last.readable = held.enter_context(reading_available(last.folder, last.config.steps, self.console.warning))
        return last._as_recorded(last._summary())

    def _as_recorded(self, summary: dict[str, Any]) -> RecordedRun:
        return RecordedRun(self.config, self.composed, self.dataset, self.folder, self.runtime(), self._survey(), summary)

    def _report_on(self, summary: dict[str, Any]) -> None:
        """Write the report of the run that has just ended. Its results are complete, so an error here is only a warning."""
        self.report_path = None
        if not self.config.report.write:
            return
        try:
            from pipeline.report.page import write_report

            self.console.start("report")
            with reading_available(self.folder, self.config.steps, self.console.warning) as self.readable:
                self.report_path = write_report(self._as_recorded(summary), again=False, progress=self.progress("report"))
        except Exception as error:   # any error: the report can be written again
            if self.console.is_debug:
                traceback.print_exc()
            self.console.warning(f"the report could not be written ({type(error).__name__}: {error}); the results are complete, "
                                 "and action=report tries it again")
        finally:
            self.readable = None

    def progress(self, what: str) -> Callable[[int, int, str], None]:
        return lambda done, total, note: self.console.progress(what, done, total, note)

    def require_run(self) -> None:
        """Raise ConfigError if there is no run, or another version of this program wrote it."""
        if self.folder.path.is_dir():
            return self.folder.check_format()
        outputs = user_path(self.config.outputs)
        runs = sorted(path.name for path in outputs.glob("*") if path.is_dir() and not path.name.startswith("."))
        raise ConfigError(f"there is no run {self.folder.path}{did_you_mean(self.config.run_name, runs)} (in {outputs}: "
                          f"{', '.join(runs) or 'none'}). Choose one with name=NAME, or start it: {self.command}")

    @contextmanager
    def reading(self, steps: Iterable[str]) -> Iterator[None]:
        """Open the data set of an existing run and claim the given steps for reading."""
        self.require_run()
        self.dataset = open_dataset(self.config.data)
        self.folder.check_data(self.data_identity)
        with reading(self.folder, steps, self.console.warning):
            yield

def _claimed(steps: list[PlannedStep], part: tuple[int, int] | None = None) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The claim for work on `steps`: the steps made, as (step, shard, shards), and the steps read."""
    return [(step.name, *(part or (0, 1))) for step in steps], [source for step in steps for source in step.reads]
