"""The steps that a call runs, selected by from_step and to_step or by the flags."""

from collections.abc import Iterable
from typing import Any

from pipeline.order import BY_NAME, STEPS
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError


def selected(config: Any) -> tuple[str, ...]:
    """The names of the steps to run: from_step to to_step, or those with a true flag, or else all without a false flag.

    Raises
    ------
    ConfigError
        if a flag belongs to no step of the experiment, flags are combined with from_step or to_step, or no step is left.
    """
    flags = {row.name: getattr(config, row.flag) for row in STEPS}
    for name, flag in flags.items():
        if flag and name not in config.steps:
            raise ConfigError(f"{BY_NAME[name].flag}=true, but this experiment has no {name}: its steps are "
                              f"{', '.join(config.steps)}")
    ends = [f"{key}={getattr(config, key)}" for key in ("from_step", "to_step") if getattr(config, key)]
    if ends and (given := [name for name, flag in flags.items() if flag is not None]):
        flag = f"{BY_NAME[given[0]].flag}={str(flags[given[0]]).lower()}"
        raise ConfigError(f"{' and '.join(ends)} together with {flag}: select the steps by only one of the two")
    if ends:
        return tuple(config.in_range)
    chosen = [name for name in config.steps if flags[name]] or [name for name in config.steps if flags[name] is not False]
    if not chosen:
        raise ConfigError("every step is switched off: leave at least one flag null or true")
    return tuple(chosen)


def check_steps(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: there is no step {name!r}{did_you_mean(name, known)} (allowed: {', '.join(known)})")
