"""The finished steps of a run, with the settings and sources of their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pipeline.contexts import make_context
from pipeline.order import sources
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reading import CONFIG, read_config
from steps.runtime.context import Runtime, StepContext, methods_of, own_methods
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.families import FAMILIES, load_method


@dataclass(frozen=True)
class FinishedSteps:
    """The manifests of the finished steps of a run. `config` has the settings of steps that are not finished."""

    config: Any
    folder: RunFolder
    manifests: Mapping[str, dict[str, Any]]

    @classmethod
    def read(cls, config: Any, folder: RunFolder, names: Iterable[str]) -> FinishedSteps:
        """Those of the steps `names` that are finished."""
        return cls(config, folder, {name: manifest for name in names if (manifest := folder.manifest(name))})

    def sources(self, name: str) -> dict[str, tuple[str, ...]]:
        """The steps that a finished step has read, by role."""
        return {role: tuple(names) for role, names in self.manifests[name]["sources"].items()}

    @property
    def max_pixels(self) -> int | None:
        """The most pixels of an image of the run's data set, `data.max_pixels`. No manifest has it: no result depends on it."""
        path = self.folder.path / CONFIG
        data = read_config(path).get("data") if path.exists() else None
        found = data.get("max_pixels") if isinstance(data, DictConfig) else None
        return found if type(found) is int and found > 0 else None

    def place(self, name: str) -> Path | None:
        """The folder of a finished step; None if it is not finished."""
        return self.folder.result(name) if name in self.manifests else None

    def context(self, name: str, dataset: Dataset, lists: Mapping[str, tuple[str, ...]], runtime: Runtime,
                read: Mapping[str, tuple[str, ...]] | None = None, folder: Path | None = None,
                place: Callable[[str], Path | None] | None = None) -> StepContext:
        """The context of a step with the settings, methods and precision of its manifest, or of `config` if it is not finished.

        `read`: the steps that it reads, by role; by default those of the manifest, and of `config` where a role is not there.
        `folder`: by default that of the result. `place`: as of `pipeline.contexts.make_context`; by default finished results.
        """
        config, made = copy(self.config), self.manifests.get(name)
        config.further = {}   # results beside the main ones are only scored
        if read is None:
            read = {**sources(self.config, name), **(self.sources(name) if made else {})}
        if made:
            setattr(config, name, made_with(getattr(config, name), made["settings"]))
            config.seed = made["seed"]
            for family in made["identity"].keys() & FAMILIES:   # that the step uses
                method = recorded_method(family, methods_of(config, name)[family], made["identity"][family])
                setattr(getattr(config, name) if family in own_methods(getattr(config, name)) else config, family, method)
            runtime = replace(runtime, precision=made["precision"])
        return make_context(config, dataset, name, lists, folder or self.folder.result(name), read, place or self.place, runtime)


def recorded_method(family: str, chosen: Any, recorded: Mapping[str, Any]) -> Any:
    """The method in the identity of a finished step. Settings that were added to it later are those of `chosen`.

    Raises ConfigError if its file cannot be used, or `chosen` is another method and lacks these settings.
    """
    name = recorded["method"]
    try:
        if chosen.method == name:
            return made_with(chosen, recorded)
        return made_with(method := load_method(family, name), {**method.unrecorded, **recorded})
    except MissingMandatoryValue as error:
        raise ConfigError(f"{family}={name} has the setting {error.full_key} since this run was made: choose {family}={name} on "
                          "the command line, which has its value") from error


def made_with(settings: Any, recorded: Mapping[str, Any]) -> Any:
    """The `settings` of a step or a method with the recorded values. Those that were added later stay as they are."""
    known = {item.name for item in fields(settings)}
    values = {key: value for key, value in recorded.items() if key in known}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(settings), values))
