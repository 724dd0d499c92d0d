"""The configuration: closed, typed structures, assembled from the settings of the steps and composed by Hydra from `conf/`."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
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

from pipeline.cluster.distributed import DistributedSettings
from pipeline.cluster.jobs import SubmitSettings
from pipeline.helptext import CONF
from pipeline.order import BY_NAME, STEPS, seed_step
from pipeline.report.published import Published
from pipeline.tracking import Logger
from steps.parts.tuning import TuneSettings
from steps.runtime.context import require
from steps.runtime.datasets import KINDS
from steps.runtime.model import ModelSettings
from steps.runtime.store import ArtifactSettings
from wsss.data.ids import check_id
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError, WsssError
from wsss.files import user_path

SET_BY_FILES = ("experiment_name", "recipe_name")   # of conf/, by no user


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    auto = "auto"        # whichever of the two the device is fast in; a run holds the one that was chosen
    float32 = "float32"
    bf16 = "bf16"


class Action(Enum):
    run = "run"          # do what the plan says
    plan = "plan"        # say what a run would do
    status = "status"    # say how far the run is
    verify = "verify"    # read and check every artifact
    submit = "submit"    # hand the steps to a cluster
    report = "report"    # write the report of a run
    compare = "compare"  # set runs side by side
    predict = "predict"  # maps and mask of one image, by a finished run
    tune = "tune"        # scores over thresholds and walks, from the stored maps of a finished run
    prepare = "prepare"  # check the data set and make once what is derived from its files
    export_voc = "export_voc"             # write images and pseudo masks as a folder in the layout of PASCAL VOC
    import_official = "import_official"   # convert results of the official code into finished steps
    export_official = "export_official"   # write results as the official code writes them


class LogLevel(Enum):
    debug = "debug"      # progress of every image and step; tracebacks of errors
    info = "info"
    warning = "warning"  # warnings, errors and the result
    error = "error"      # errors and the result


class SeedMaps(Enum):
    cam = "cam"
    lpcam = "lpcam"


@dataclass
class ReportSettings:
    """`report.`: what the report of a run shows. The values stand in `conf/config.yaml`."""

    write: bool                  # at the end of every run
    images: int                  # in each of the galleries best, worst and random
    images_per_class: int        # of every class besides
    traces: int                  # images whose way through the steps is shown
    changes: int                 # images that gained most, and as many that lost most, from each stage to the next

    def __post_init__(self) -> None:
        for key in ("images", "images_per_class", "traces", "changes"):
            require(0 <= getattr(self, key) <= 200, f"report.{key}", getattr(self, key), "from 0 to 200: all are in one file")


@dataclass
class MultirunSettings:
    """`multirun.`: set by `-m` for the members of a sweep."""

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
    workers: int | None          # loader processes of the training steps; null: as many as cores with a GPU, none without
    force: bool                  # run also what is up to date
    replace: bool                # allow a finished training to be replaced
    reuse_from: list[str]        # runs whose results are taken over where the fingerprints are equal
    log_level: LogLevel
    logger: Logger | None        # where else the curves of the trainings go; null: log.jsonl and log.csv alone
    pictures_every: int          # training steps between the pictures that a logger is given
    import_from: str | None      # folder of the official code's files that `action=import_official` reads
    download: bool               # let `action=prepare` fetch what is missing of the official archives
    export_to: str | None        # folder that the export actions write
    run: str | None              # the finished run that `action=predict` goes by; null: the one of `name`
    image: str | None            # the image of `action=predict`
    classes: list[str]           # on that image; empty: those that the classifier finds
    class_threshold: float       # it finds a class where its probability is above
    tune: TuneSettings
    runs: list[str]              # runs that `action=compare` sets side by side
    report: ReportSettings
    steps: list[str]             # of the experiment, in order
    seed_maps: SeedMaps          # the seed maps to cam_to_ir_label, make_sem_seg_labels and make_ins_seg_labels
    published: Published | None  # the scores of the paper that the experiment re-does
    data: Any                    # a class of steps.runtime.datasets
    model: ModelSettings
    artifacts: ArtifactSettings
    distributed: DistributedSettings
    submit: SubmitSettings
    multirun: MultirunSettings
    shard: str | None            # I/N: only the I-th of N parts of one step; prepare: what all parts need

    def __post_init__(self) -> None:
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "null or at least 1")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "null, or 0 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(not self.download or self.action is Action.prepare, "download", True, "false, but for action=prepare")
        require(self.pictures_every >= 1, "pictures_every", self.pictures_every, "at least 1")
        require(0 <= self.class_threshold < 1, "class_threshold", self.class_threshold, "a probability in [0, 1)")
        require(self.run is None or self.action is Action.predict, "run", self.run,
                "nothing, but for action=predict; elsewhere a run is chosen by name=NAME")
        require(self.run is None or self.name is None, "run", self.run, f"nothing beside name={self.name}: both choose the run")
        require((self.image is not None) == (self.action is Action.predict), "image", self.image,
                "an image with action=predict, and only there")
        require(not self.classes or self.action is Action.predict, "classes", self.classes, "nothing, but for action=predict")
        require(not self.runs or self.action is Action.compare, "runs", self.runs, "nothing, but for action=compare")
        require(self.shard in (None, "prepare") or self.part is not None, "shard", self.shard,
                "I/N with I from 0 to N-1, or prepare")
        for key in ("name", "outputs", "from_step", "to_step", "export_to"):
            require(getattr(self, key) != "", key, "", "a value; leave the key out for the default")
        _check_steps("steps", self.steps, BY_NAME)
        ordered = [name for name in BY_NAME if name in self.steps]
        require(self.steps == ordered and len(self.steps) > 0, "steps", self.steps, f"each step once and in order: {ordered}")
        for key in ("from_step", "to_step"):
            _check_steps(key, [getattr(self, key)] if getattr(self, key) else [], self.steps)
        first, last = self._ends()
        require(first <= last, "from_step", self.from_step, f"a step not after to_step={self.to_step} (in order: "
                f"{', '.join(self.steps)})")
        reads_seeds = {"cam_to_ir_label", "make_sem_seg_labels", "make_ins_seg_labels"} & set(self.steps)
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
        return self.run or self.name or self.experiment_name or f"{self.data.name}-{self.recipe_name}"

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
    for word in overrides:
        if not re.search("[=~]", word):
            raise ConfigError(f"{word!r} is no setting of the form KEY=VALUE{_as_setting(word)} (--help shows what can be set)")
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
    _refuse_added(config)
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
        wrong = full_key.rsplit(".", 1)[-1]
        return _no_such_key(full_key, [str(key) for key in parent] if "." in full_key else _at_the_root(wrong))
    if choice := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", text):   # of an enumeration
        allowed = choice[2].split(", ")
        return (f"{full_key}={choice[1]}: there is no such choice{did_you_mean(choice[1], allowed)} "
                f"(allowed: {', '.join(allowed)})")
    if "is not a ListConfig" in text:
        return f"{full_key}: expected a list, as {full_key}=[A,B]"
    return f"{full_key}: {text}"


def _no_such_key(full_key: str, keys: Sequence[str]) -> str:
    nearest = did_you_mean(full_key.rsplit(".", 1)[-1], keys)
    return f"{full_key}: there is no such key{nearest} (allowed here: {', '.join(keys)})"


def _at_the_root(wrong: str) -> list[str]:
    """What may stand at the beginning of a setting: the groups and keys, or the flags where one of these was meant."""
    flags = [step.flag for step in STEPS]
    if "pas" in wrong:
        return flags
    return ["experiment", "recipe", *(item.name for item in fields(Config) if item.name not in {*flags, *SET_BY_FILES})]


def _as_setting(word: str) -> str:
    """The setting that somebody may have meant by a bare word: an action, a step, help."""
    known = {action.value: f"action={action.value}" for action in Action} | {step.name: f"{step.flag}=true" for step in STEPS}
    nearest = difflib.get_close_matches(word, [*known, "help"], n=1)
    return f"; did you mean {known.get(nearest[0], '--help')}?" if nearest else ""


def _refuse_added(config: DictConfig, inside: str = "") -> None:
    """Refuse a key that Hydra's "+" added: nothing would look at it."""
    kind = OmegaConf.get_type(config)
    for key in config:
        if is_dataclass(kind) and key not in (known := [item.name for item in fields(kind)]):
            raise ConfigError(_no_such_key(f"{inside}{key}", known if inside else _at_the_root(str(key))))
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        if OmegaConf.is_dict(child := config[key]):
            _refuse_added(child, f"{inside}{key}.")


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
