"""Compose the configuration from `conf/` with Hydra, check it, and rewrite Hydra's errors as one line."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pipeline.order import BY_NAME, STEPS, Row
from pipeline.presets import CONF, presets
from pipeline.settings import Action, Config
from pipeline.words import as_meant, quoted
from steps.runtime.context import require
from steps.runtime.datasets import KINDS
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError
from wsss.families import FAMILIES, load_method, method_files

MOST_ELSEWHERE = 5   # suggested keys of other groups
SET_BY_FILES = ("experiment_name", "recipe_name")   # in conf/, not by users


def register() -> None:
    """Register the schema in Hydra: `run_schema` for the root, `schema/data` for each kind of data set, `schema/FAMILY` for each
    method. A method whose file cannot be used is left out: `explain` says why when it is chosen."""
    _register(tuple((family, path, path.stat().st_mtime_ns) for family in FAMILIES for path in method_files(family).values()))


@lru_cache(maxsize=1)
def _register(files: tuple) -> None:
    """`register`, once as long as the files of the methods are the same."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=_schema())
    for name, kind in KINDS.items():
        store.store(group="schema/data", name=name, node=kind.settings)
    for family in FAMILIES:
        for name in method_files(family):
            with suppress(ConfigError):
                store.store(group=f"schema/{family}", name=name, node=method_schema(family, name))


def _schema() -> DictConfig:
    """The schema of the root. Settings for each kind of map have their keys: null, or in a second row of a file missing. Those of
    the kinds of further methods can be set, and are added where such a method is named (`_add_kinds`)."""
    schema = OmegaConf.structured(Config)
    kinds = _main_kinds()
    for row in STEPS:
        own, types = OmegaConf.structured(row.settings_type), get_type_hints(row.settings_type)
        for item in fields(row.settings_type):
            if item.metadata.get("per_map"):
                settings = next(filter(is_dataclass, get_args(get_args(types[item.name])[1])), None)   # so that they can be set
                unset = OmegaConf.structured(settings) if settings else None
                own[item.name] = dict.fromkeys(kinds, MISSING if row.like else unset)
                OmegaConf.set_struct(own[item.name], False)
            elif row.like and is_dataclass(types[item.name]):   # so that single keys of it can be set
                own[item.name] = OmegaConf.structured(types[item.name])
        schema[row.name] = own
    return schema


def method_schema(family: str, name: str) -> DictConfig:
    """The settings of a method, with its name as the key `method`.

    Raises ConfigError, which names the file or the class, if they cannot be read.
    """
    method = load_method(family, name)
    try:
        schema = OmegaConf.structured(method)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{family}: the settings of {method.__module__}.{method.__name__} cannot be used: "
                          f"{' '.join(str(error).split('full_key:')[0].split())}") from error
    schema.method = name
    return schema


def _main_kinds() -> list[str]:
    """The kinds of maps that no setting of further methods adds."""
    return [kind for row in STEPS for kind, folder in row.map_kinds.items() if folder in row.MAPS]


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the configuration from `conf/` and command-line overrides.

    Raises ConfigError for an unknown key or group, or a value of the wrong type; names the key, the value and the allowed values.
    """
    register()
    for word in overrides:
        if not re.search("[=~]", word) or re.search(r"\s", word.partition("=")[0]):
            raise ConfigError(f"{word!r} is not a setting of the form KEY=VALUE{_as_setting(word)} (see --help)")
    try:
        return _composed("config", [as_meant(word) for word in overrides])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error)) from error


def _composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose from the file `name` of `conf/`, also within a Hydra job or a program with a Hydra session of its own."""
    session = GlobalHydra.instance()
    before, session.hydra = session.hydra, None
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose(name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = before


def typed(config: DictConfig) -> Any:
    """The checked `Config` of a composed configuration.

    Raises ConfigError if a value is missing or invalid.
    """
    _refuse_added(config)
    for row in STEPS:
        if row.like:
            _fill(config, row.name, config[row.like])
    further = {row.name: _further_methods(config, row) for row in STEPS if row.further}
    _add_kinds(config, further)
    try:
        found: Any = OmegaConf.to_object(config)
        _refuse_not_finite(found)
        found.further = further
        return found
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value: set {error.full_key}=... on the command line") from error
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def _refuse_not_finite(values: Any, key: str = "") -> None:
    """Raise ConfigError for a number of a configuration that is NaN or infinite."""
    children = vars(values) if is_dataclass(values) else values if isinstance(values, dict) else \
        dict(enumerate(values)) if isinstance(values, list) else {}
    for name, value in children.items():
        if isinstance(value, float):
            require(math.isfinite(value), f"{key}{name}", value, "a finite number")
        _refuse_not_finite(value, f"{key}{name}.")


def _further_methods(config: DictConfig, row: Row) -> dict[str, Any]:
    """The methods that a step's setting of further methods names, each with the values of its file in `conf/`.

    Raises ConfigError if there is no such file, or a name is there twice.
    """
    key, family = row.further
    names = [] if OmegaConf.is_missing(config[row.name], key) else list(config[row.name][key])
    for name in names:
        require(name in presets(family), f"{row.name}.{key}", names, f"names of files in conf/{family}/, {name!r} is none"
                f"{did_you_mean(name, presets(family))} ({', '.join(presets(family))})")
        require(names.count(name) == 1, f"{row.name}.{key}", names, "no name twice")
    return {name: OmegaConf.to_object(_composed(f"{family}/{name}")[family]) for name in names}


def _add_kinds(config: DictConfig, further: Mapping[str, Iterable[str]]) -> None:
    """Add the keys of the kinds of maps by further methods (step -> their names) to the settings for each kind of map. A value
    that is not set is null, or that of the main maps of the step if the setting says so.

    Raises ConfigError for the key of a kind that no step can make.
    """
    kinds = [kind for row in STEPS for kind in row.map_kinds]
    added = {kind: name for name, names in further.items() for kind, folder in BY_NAME[name].map_kinds.items() if folder in names}
    for row in STEPS:
        for item in (item for item in fields(row.settings_type) if "per_map" in item.metadata):
            values = config[row.name][item.name]
            if unknown := [kind for kind in values if kind not in kinds]:
                key = f"{row.name}.{item.name}.{unknown[0]}"
                raise ConfigError(_no_such_key(key, [*_main_kinds(), *added], key, kinds))
            for kind, main in added.items():
                if kind not in values:
                    values[kind] = deepcopy(values[main]) if item.metadata["per_map"] == "as_main" else None


def _fill(parent: DictConfig, key: str, like: Any) -> None:
    """Set what has no value below `parent[key]` to the value in `like`."""
    if OmegaConf.is_missing(parent, key):
        parent[key] = deepcopy(like)
    elif OmegaConf.is_dict(like) and OmegaConf.is_dict(parent[key]):
        for name in like:
            if not OmegaConf.is_missing(like, name):
                _fill(parent[key], name, like[name])


def explain(error: Exception) -> str:
    """An error of Hydra or OmegaConf as one line: the key, the value and the allowed values."""
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, (HydraException, OmegaConfBaseException)):
        cause = cause.__cause__
    if isinstance(cause, MissingConfigException) and cause.options:   # a group's option: data=shape
        group, _, wrong = str(cause.missing_cfg_file).rpartition("/")
        if (family := group.removeprefix("schema/")) in FAMILIES and family != group:   # a file in conf/ names this method
            try:
                method_schema(family, wrong)
            except ConfigError as why:
                return str(why)
        return (f"{group}={wrong}: there is no such option{did_you_mean(wrong, cause.options)} "
                f"(allowed: {', '.join(_with_needed_keys(group, option) for option in cause.options)})")
    full_key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    text = " ".join(str(cause).split(" full_key:")[0].split())
    if clash := re.search(r"In 'experiment/(\w+)'.*Key '(\w+)' not in '(\w+)'", " ".join(str(error).split())):
        what = "data set" if clash[3] in {kind.settings.__name__ for kind in KINDS.values()} else "method"
        return f"experiment={clash[1]} sets {clash[2]}, which this {what} does not have: leave out the experiment or the {what}"
    if several := re.search(r"Ambiguous value for argument '(.+?)=(.*)' 1\. To use it", text):
        key, value = several.groups()
        return (f"{key}={value} is read as several values. For one text with a comma type \"{key}={quoted(value)}\", for a list "
                f"{key}=[{value}], and for a run with each value add -m")
    if not full_key:
        return " ".join(str(error).split())
    if text.startswith("Key ") and parent is not None:
        asked = re.search(r"Could not override '(.+?)'", str(error))   # of "model.backbone" the full key is "model"
        return _no_such_key(full_key, [str(key) for key in parent] if "." in full_key else _at_the_root(full_key),
                            asked[1] if asked else full_key)
    if choice := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", text):   # of an enumeration
        allowed = choice[2].split(", ")
        return (f"{full_key}={choice[1]}: there is no such choice{did_you_mean(choice[1], allowed)} "
                f"(allowed: {', '.join(allowed)})")
    if text.endswith("is not Optional"):
        return f"{full_key}=null is not possible: expected a value"
    if "is not a ListConfig" in text:
        return f"{full_key}: expected a list, for example {full_key}=[A,B]"
    return f"{full_key}: {text}"


def _no_such_key(full_key: str, keys: Sequence[str], asked: str, near: Sequence[str] = ()) -> str:
    """The message for a key that does not exist; `near`: further keys that may be meant, too many to be listed."""
    settable = [key for key in keys if key != "method" or "." not in full_key]   # the name of a method is set by FAMILY=NAME
    inside = full_key.rpartition(".")[0]
    if not keys and (family := inside.rpartition(".")[2]) in FAMILIES:   # a step's own method, null
        return f"{full_key}: there is no such key, because {inside} is null: choose a method by {family}@{inside}=NAME"
    nearest = did_you_mean(full_key.rsplit(".", 1)[-1], [*settable, *near]) or _elsewhere(asked)
    return f"{full_key}: there is no such key{nearest} (allowed here: {', '.join(settable) or 'none'})"


def _elsewhere(asked: str) -> str:
    """A suggestion for a key that stands in another group of the default configuration under the same last word."""
    word, found = asked.rsplit(".", 1)[-1], []
    groups = [("", compose())]
    for inside, group in groups:
        for key in group:
            if key == word and f"{inside}{key}" != asked:
                found.append(f"{inside}{key}")
            if not OmegaConf.is_missing(group, key) and OmegaConf.is_dict(group[key]):
                groups.append((f"{inside}{key}.", group[key]))
    return f"; did you mean {' or '.join(map(repr, found))}?" if 0 < len(found) <= MOST_ELSEWHERE else ""


def _with_needed_keys(group: str, option: str) -> str:
    """An option with the keys that have no value in its file: "folder data.root=..."."""
    file = CONF / group / f"{option}.yaml"
    keys = re.findall(r"^(\w+): \?\?\?", file.read_text(encoding="utf-8"), re.MULTILINE) if file.is_file() else []
    return " ".join([option, *(f"{group}.{key}=..." for key in keys)])


def _at_the_root(wrong: str) -> list[str]:
    """The keys and groups allowed at the root, or the step flags if `wrong` resembles one."""
    flags = [row.flag for row in STEPS]
    if "pas" in wrong:
        return flags
    return ["experiment", "recipe", *(item.name for item in fields(Config) if item.name not in {*flags, *SET_BY_FILES})]


def _as_setting(word: str) -> str:
    """A suggestion for a word without =: the setting of a similar action or step, or --help."""
    known = {action.value: f"action={action.value}" for action in Action} | {row.name: f"{row.flag}=true" for row in STEPS}
    nearest = difflib.get_close_matches(word, [*known, "help"], n=1)
    return f"; did you mean {known.get(nearest[0], '--help')}?" if nearest else ""


def _refuse_added(config: DictConfig, inside: str = "") -> None:
    """Raise ConfigError for an unknown key that was added with Hydra's "+"; it would have no effect."""
    kind = OmegaConf.get_type(config)
    for key in config:
        if is_dataclass(kind) and key not in (known := [item.name for item in fields(kind)]):
            raise ConfigError(_no_such_key(f"{inside}{key}", known if inside else _at_the_root(str(key)), f"{inside}{key}"))
        if OmegaConf.is_missing(config, key) or OmegaConf.is_interpolation(config, key):
            continue
        if OmegaConf.is_dict(child := config[key]):
            _refuse_added(child, f"{inside}{key}.")


def member_name(keys: Iterable[str], overrides: Iterable[str]) -> str:
    """The name of a sweep member: KEY=VALUE for each key, separated by commas."""
    values = dict(word.split("=", 1) for word in overrides if "=" in word)
    return ",".join(f"{key}={values[key]}" for key in keys)
