"""A run as recorded in its folder: the configuration of its last call and the state of each step. Used by reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config import method_schema
from pipeline.contexts import make_context
from pipeline.order import BY_NAME, STEPS, Row, main_masks, sources
from pipeline.plan.plan import DONE, PARTIAL, PlannedStep
from pipeline.presets import CONF as PRESETS
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import CONFIG, not_of_a_run, read_config
from steps.runtime.context import Runtime, StepContext, own_methods
from steps.runtime.datasets import KINDS
from steps.step import SCORE
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.families import FAMILIES

CALL_KEYS = ("action", "device", "threads", "log_level", "report")   # keys that do not affect results


@dataclass(frozen=True)
class RecordedRun:
    """The data of a run for a report. `plan` is its survey, `summary` has the scores of the steps that are up to date."""

    config: Any
    composed: DictConfig
    dataset: Dataset
    folder: RunFolder
    runtime: Runtime
    plan: list[PlannedStep]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.path.name

    @cached_property
    def by_name(self) -> dict[str, PlannedStep]:
        return {planned.name: planned for planned in self.plan}

    @cached_property
    def masks(self) -> str | None:
        """The step with the masks of the run, `pipeline.order.main_masks`."""
        return main_masks([*self.by_name])

    def _scorers(self, step: str) -> list[Row]:
        """The steps that can score the results of a step, those of the experiment first."""
        found = [row for row in STEPS if row.KIND == SCORE and step in sum(sources(self.config, row.name).values(), ())]
        return sorted(found, key=lambda row: row.name not in self.by_name)

    def scored(self, step: str) -> tuple[str, ...]:
        """The ids on which the results of a step are scored; () if they are not."""
        lists = (self.by_name[row.name].lists.get("scored", ()) for row in self._scorers(step) if row.name in self.by_name)
        return next(filter(None, lists), ())

    def ignore(self, step: str) -> str:
        """What a 255 in the masks of a step counts as: the setting `ignore` of the step that scores them."""
        values = (getattr(getattr(self.config, row.name), "ignore", None) for row in self._scorers(step))
        return next((value.value for value in values if value is not None), "background")

    def place(self, step: str | None) -> Path | None:
        """The folder of the up-to-date artifacts of a step, complete or partial; None if there are none.

        Stale artifacts are not used: they belong to other settings than the report prints.
        """
        planned = self.by_name.get(step or "")
        if step is None or planned is None or planned.state not in (DONE, PARTIAL):
            return None
        manifest, partial = self.folder.manifest(step), self.folder.partial(step, planned.fingerprint)
        current = manifest is not None and manifest["fingerprint"] == planned.fingerprint
        return self.folder.result(step) if current else partial if partial.exists() else None

    def context(self, step: str) -> StepContext:
        """The context of a step, to read what it made and recompute what it did not store. Nothing is written.

        The folder of a step without artifacts that are up to date does not exist.
        """
        planned, folder = self.by_name[step], self.place(step) or self.folder.path / f"{step}.missing"
        return make_context(self.config, self.dataset, step, planned.lists, folder, planned.sources, self.place, self.runtime)


RENAMED = {"amn_taps": "taps"}   # keys of steps in the configurations of older runs -> their names now


def _renamed(stored: DictConfig) -> DictConfig:
    for section in stored.values():
        for old in RENAMED.keys() & (section.keys() if OmegaConf.is_dict(section) else ()):
            section[RENAMED[old]] = section.pop(old)
    return stored


def recorded_config(run: Path, current: DictConfig, call_keys: Iterable[str], moved: bool = False) -> DictConfig:
    """The configuration of the last call on a run folder; keys that it does not have are taken from `current`.

    `call_keys`: further keys that are those of `current`, besides `CALL_KEYS`. `moved`: use the `data.root` of `current`.

    Raises ConfigError if it is missing or damaged, the run has a step that this version does not have, or the file of its method
    cannot be used.
    """
    path = run / CONFIG
    try:
        stored = _renamed(read_config(path))
        _drop_steps(stored, current)
        schema = OmegaConf.structured(OmegaConf.get_type(current))
        schema.data = OmegaConf.merge(OmegaConf.structured(KINDS[stored.data.kind].settings), _data_defaults(stored.data.kind))
        methods = {family: stored[family].method for family in FAMILIES if family in stored}   # not in older runs
        for family, name in methods.items():
            schema[family] = method_schema(family, name)
        for row in (row for row in STEPS if row.name in stored):
            for family in own_methods(row.settings_type):
                if own := stored[row.name].get(family):
                    schema[row.name] = OmegaConf.structured(row.settings_type)
                    schema[row.name][family] = method_schema(family, own.method)
        others = {"data", *(family for family, name in methods.items() if name != current[family].method)}
        known = {key: value for key, value in current.items() if key not in others}
        of_the_call = {key: current[key] for key in (*CALL_KEYS, *call_keys)}
        place = {"data": {"root": current.data.root}} if moved else {}
        config = OmegaConf.merge(schema, known, stored, of_the_call, {"outputs": str(run.parent), "name": run.name},
                                 {"multirun": {"name": None, "over": []}}, place)
    except ConfigError:   # of the method
        raise
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OmegaConfBaseException) as error:
        raise not_of_a_run(path, error) from error
    if gone := [name for name in config.steps if name not in BY_NAME]:
        raise ConfigError(f"{path}: the run has the steps {', '.join(config.steps)}, but this version of the program has no step "
                          f"{', '.join(gone)}. Use the version that made the run, or make a new run without it, name=NAME")
    return config


def _data_defaults(kind: str) -> dict[str, Any]:
    """The values in `conf/data/` of the keys of a kind of data set: older runs have not all of them."""
    values = yaml.safe_load((PRESETS / "data" / f"{kind}.yaml").read_text(encoding="utf-8"))["data"]
    return {key: value for key, value in values.items() if value != "???"}


def _drop_steps(stored: DictConfig, current: DictConfig) -> None:
    """Remove the settings of steps that this version does not have: their sections, flags, jobs and keys for each kind of map."""
    jobs = stored.get("submit") or {}   # has a section for each step of the version that wrote it
    gone = [name for name, job in jobs.items() if OmegaConf.is_dict(job) and name not in current.submit]
    flags = [key for key, value in stored.items() if gone and key not in current and (value is None or isinstance(value, bool))]
    for name in gone:
        del jobs[name]
    for key in (*gone, *flags):   # a flag may have any name
        stored.pop(key, None)
    kinds = {kind for row in STEPS for kind in row.map_kinds}
    for row in STEPS:
        for item in fields(row.settings_type) if row.name in stored else ():
            values = stored[row.name].get(item.name) if item.metadata.get("per_map") else None
            for kind in [kind for kind in values or () if kind not in kinds]:
                del values[kind]
