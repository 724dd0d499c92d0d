"""A run as recorded in its folder: the configuration of its last call and the state of each step. Used by reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.contexts import make_context
from pipeline.plan.plan import DONE, PARTIAL, PlannedStep
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import CONFIG
from steps.runtime.context import Runtime, StepContext
from steps.runtime.datasets import KINDS
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError

if TYPE_CHECKING:
    pass

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

    def place(self, step: str) -> Path | None:
        """The folder of the up-to-date artifacts of a step, complete or partial; None if there are none.

        Stale artifacts are not used: they belong to other settings than the report prints.
        """
        planned = self.by_name.get(step)
        if planned is None or planned.state not in (DONE, PARTIAL):
            return None
        manifest, partial = self.folder.manifest(step), self.folder.partial(step, planned.fingerprint)
        current = manifest is not None and manifest["fingerprint"] == planned.fingerprint
        return self.folder.result(step) if current else partial if partial.exists() else None

    def context(self, step: str) -> StepContext:
        """The context of a step with artifacts, to read what it made and recompute what it did not store. Nothing is written."""
        planned = self.by_name[step]
        return make_context(self.config, self.dataset, step, planned.lists, self.place(step) or self.folder.result(step),
                            planned.sources, self.place, self.runtime)


def recorded_config(run: Path, current: DictConfig, call_keys: Iterable[str], moved: bool = False) -> DictConfig:
    """The configuration of the last call on a run folder; keys that it does not have are taken from `current`.

    `call_keys`: further keys that are those of `current`, besides `CALL_KEYS`. `moved`: use the `data.root` of `current`.

    Raises ConfigError if it is missing or damaged.
    """
    path = run / CONFIG
    try:
        stored = OmegaConf.load(path)
        schema = OmegaConf.structured(OmegaConf.get_type(current))
        schema.data = OmegaConf.structured(KINDS[stored.data.kind].settings)
        known = {key: value for key, value in current.items() if key != "data"}
        of_the_call = {key: current[key] for key in (*CALL_KEYS, *call_keys)}
        place = {"data": {"root": current.data.root}} if moved else {}
        return OmegaConf.merge(schema, known, stored, of_the_call, {"outputs": str(run.parent), "name": run.name},
                               {"multirun": {"name": None, "over": []}}, place)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{path} does not hold the configuration of a run ({type(error).__name__}: {why}). Repeat the "
                          "command that made the run to write it again") from error
