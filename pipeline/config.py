"""The configuration: closed, typed structures, assembled from the settings of the steps and composed by Hydra from `conf/`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.distributed import DistributedSettings
from pipeline.jobs import SubmitSettings
from pipeline.order import BY_NAME, STEPS, seed_step
from steps.context import require
from steps.datasets import KINDS
from steps.networks import ModelSettings
from wsss.data.dataset import check_id, did_you_mean
from wsss.errors import ConfigError, WsssError
from wsss.files import user_path

CONF = Path(__file__).resolve().parent.parent / "conf"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    float32 = "float32"
    bf16 = "bf16"


class Action(Enum):
    run = "run"          # do what the plan says
    plan = "plan"        # say what a run would do
    status = "status"    # say how far the run is
    verify = "verify"    # read and check every artifact
    submit = "submit"    # hand the steps to a cluster
    prepare = "prepare"  # check the data set and make once what is derived from its files


class LogLevel(Enum):
    debug = "debug"      # progress of every image and step; tracebacks of errors
    info = "info"
    warning = "warning"  # warnings, errors and the result
    error = "error"      # errors and the result


class SeedMaps(Enum):
    cam = "cam"
    lpcam = "lpcam"


@dataclass
class SweepSettings:
    """`sweep.`: set by `-m` for the members of a sweep."""

    name: str | None             # of the whole sweep
    over: list[str]              # the keys whose values go into the member's name


@dataclass
class RunSettings:
    """What a run has besides the settings of its steps. The values stand in `conf/config.yaml`."""

    action: Action
    from_step: str | None        # the first step to do; null: the experiment's first
    to_step: str | None          # the last one; null: the experiment's last
    name: str | None             # of the run folder below `outputs`; null: the experiment's, else data-recipe
    outputs: str
    experiment_name: str | None
    recipe_name: str
    seed: int
    device: Device
    precision: Precision
    threads: int | None          # null: all cores this process may use
    workers: int                 # loader processes of the training steps
    force: bool                  # run also what is up to date
    replace: bool                # allow a finished training to be replaced
    reuse_from: list[str]        # runs whose results are taken over where the fingerprints are equal
    log_level: LogLevel
    steps: list[str]             # of the experiment, in order
    seed_maps: SeedMaps          # the maps that go on to cam_to_ir_label and make_sem_seg_labels
    data: Any                    # a class of steps.datasets
    model: ModelSettings
    distributed: DistributedSettings
    submit: SubmitSettings
    sweep: SweepSettings
    shard: str | None            # I/N: only the I-th of N parts of one step; prepare: what all parts need

    def __post_init__(self) -> None:
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "null or at least 1")
        require(self.workers >= 0, "workers", self.workers, "0 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.shard in (None, "prepare") or self.part is not None, "shard", self.shard,
                "I/N with I from 0 to N-1, or prepare")
        for key in ("name", "outputs", "from_step", "to_step"):
            require(getattr(self, key) != "", key, "", "a value; leave the key out for the default")
        _check_steps("steps", self.steps, BY_NAME)
        in_order = [name for name in BY_NAME if name in self.steps]
        require(self.steps == in_order and len(self.steps) > 0, "steps", self.steps, f"each step once and in order: {in_order}")
        for key in ("from_step", "to_step"):
            _check_steps(key, [getattr(self, key)] if getattr(self, key) else [], self.steps)
        first, last = self._ends()
        require(first <= last, "from_step", self.from_step, f"a step not after to_step={self.to_step} (in order: "
                f"{', '.join(self.steps)})")
        reads_seeds = {"cam_to_ir_label", "make_sem_seg_labels"} & set(self.steps)
        require(not reads_seeds or seed_step(self) in self.steps, "seed_maps", self.seed_maps.value,
                f"maps that the steps make ({seed_step(self)} is not among them)")
        try:
            for part in self.run_name.split("/"):   # a member of a sweep is NAME/KEY=VALUE
                check_id(part)
        except WsssError as error:
            raise ConfigError(f"name={self.run_name!r} is not possible: {error}") from error

    def _ends(self) -> tuple[int, int]:
        """Positions of the first and the last step to do among `steps`."""
        return (self.steps.index(self.from_step) if self.from_step else 0,
                self.steps.index(self.to_step) if self.to_step else len(self.steps) - 1)

    @property
    def in_range(self) -> list[str]:
        """The steps from `from_step` to `to_step`."""
        first, last = self._ends()
        return self.steps[first:last + 1]

    @property
    def part(self) -> tuple[int, int] | None:
        """(I, N) of `shard`; None where it is another word."""
        numbers = re.fullmatch(r"(\d+)/(\d+)", self.shard or "")
        index, count = map(int, numbers.groups()) if numbers else (0, 0)
        return (index, count) if index < count else None

    @property
    def run_name(self) -> str:
        return self.name or self.experiment_name or f"{self.data.name}-{self.recipe_name}"

    @property
    def folder(self) -> Path:
        return user_path(self.outputs) / self.run_name


Config = make_dataclass(
    "Config",
    [(step.name, step.module.Settings) for step in STEPS] + [(step.flag, bool | None, field(default=None)) for step in STEPS],
    bases=(RunSettings,))
Config.__module__ = __name__   # so that it is found by name where a launcher has pickled it


def register() -> None:
    """Make the schema known to Hydra: `run_schema` for the root, `schema/data` for each kind of data set."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=Config)
    for name, kind in KINDS.items():
        store.store(group="schema/data", name=name, node=kind.settings)


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration from `conf/` and command-line overrides.

    Raises
    ------
    ConfigError
        for an unknown key or group, or a value of the wrong type: the key, the value and what is allowed.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_explain(error)) from error


def typed(config: DictConfig) -> Any:
    """The checked `Config` of a composed configuration.

    Raises
    ------
    ConfigError
        for a value that is missing or impossible.
    """
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value: set {error.full_key}=... on the command line") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error


def selected(config: Any) -> tuple[str, ...]:
    """The names of the steps to run, by from_step and to_step, or by the flags: any true: only those; false: removed.

    Raises
    ------
    ConfigError
        for a flag of a step that the experiment lacks, flags together with from_step or to_step, or nothing left to do.
    """
    flags = {step.name: getattr(config, step.flag) for step in STEPS}
    for name, flag in flags.items():
        if flag and name not in config.steps:
            raise ConfigError(f"{BY_NAME[name].flag}=true, but this experiment has no {name}: its steps are "
                              f"{', '.join(config.steps)}")
    ends = [f"{key}={getattr(config, key)}" for key in ("from_step", "to_step") if getattr(config, key)]
    if ends and (given := [name for name, flag in flags.items() if flag is not None]):
        flag = f"{BY_NAME[given[0]].flag}={str(flags[given[0]]).lower()}"
        raise ConfigError(f"{' and '.join(ends)} together with {flag}: choose the steps by the one or by the other")
    if ends:
        return tuple(config.in_range)
    chosen = [name for name in config.steps if flags[name]] or [name for name in config.steps if flags[name] is not False]
    if not chosen:
        raise ConfigError("every step is switched off: leave at least one flag null or true")
    return tuple(chosen)


def _check_steps(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: there is no step {name!r}{did_you_mean(name, known)} (allowed: {', '.join(known)})")


def _explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf: what was wrong, where, and what is allowed there."""
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
        cause = cause.__cause__
    if isinstance(cause, MissingConfigException) and cause.options:   # a group's option: data=shape
        group, _, wrong = str(cause.missing_cfg_file).rpartition("/")
        return (f"{group}={wrong}: there is no such option{did_you_mean(wrong, cause.options)} "
                f"(allowed: {', '.join(cause.options)})")
    full_key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    text = " ".join(str(cause).split(" full_key:")[0].split())
    if clash := re.search(r"In 'experiment/(\w+)'.*Key '(\w+)' not in '(\w+)'", " ".join(str(error).split())):
        return (f"experiment={clash[1]} sets {clash[2]}, which this data set does not have: leave out the experiment or the "
                "data set")
    if not full_key:
        return " ".join(str(error).split())
    if text.startswith("Key ") and parent is not None:
        keys = [str(key) for key in parent]
        wrong = full_key.rsplit(".", 1)[-1]
        return f"{full_key}: there is no such key{did_you_mean(wrong, keys)} (allowed here: {', '.join(keys)})"
    if choice := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", text):   # of an enumeration
        allowed = choice[2].split(", ")
        return (f"{full_key}={choice[1]}: there is no such choice{did_you_mean(choice[1], allowed)} "
                f"(allowed: {', '.join(allowed)})")
    if "is not a ListConfig" in text:
        return f"{full_key}: expected a list, as {full_key}=[A,B]"
    return f"{full_key}: {text}"


def member_name(keys: Iterable[str], overrides: Iterable[str]) -> str:
    """What tells a member of a sweep from the others: KEY=VALUE, of several keys with commas between them."""
    values = dict(word.split("=", 1) for word in overrides if "=" in word)
    return ",".join(f"{key}={values[key]}" for key in keys)


def settings_of(value: Any) -> Any:
    """A settings dataclass as plain JSON-able values (enums by their name)."""
    if isinstance(value, Enum):
        return value.name
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: settings_of(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (list, tuple)):
        return [settings_of(item) for item in value]
    return value
