"""The keys `run` and `out`, shared by the actions that use the network of a finished run."""

from dataclasses import dataclass
from typing import Any

from steps.runtime.context import require


@dataclass
class NetworkSettings:
    run: str | None              # a run, by its name below `outputs` or its folder; null: the run of `name=`
    out: str | None              # where the results are written


def check_run(config: Any) -> None:
    """Raise ConfigError if two keys name the run."""
    require(config.run is None or config.name is None, "name", config.name,
            f"no value with run={config.run}, which names the run")
