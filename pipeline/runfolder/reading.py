"""Read a run without changing it: find its folder, check its steps and claim them for reading."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.runfolder.folder import MANIFEST, RunFolder
from wsss.data.messages import did_you_mean
from wsss.errors import ConfigError, StorageError
from wsss.files import user_path
from wsss.reading import read_yaml

CONFIG = "config.yaml"


def read_config(path: Path) -> DictConfig:
    """The configuration in a run folder, as it is there. Raises ConfigError for a file that is damaged or has no plain values."""
    try:
        if isinstance(read_yaml(path), dict):
            return OmegaConf.load(path)   # reads numbers as the run wrote them
        reason: Exception = TypeError("it has no keys")
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = error
    raise not_of_a_run(path, reason)


def not_of_a_run(path: Path, reason: Exception) -> ConfigError:
    why = " ".join(str(reason).split())[:300]
    return ConfigError(f"{path} does not hold the configuration of a run ({type(reason).__name__}: {why}). Repeat the command "
                       "that made the run to write it again")


def find_run(key: str, run: str, outputs: str, finished: bool = False) -> Path:
    """The folder of a run, from its name below `outputs` or its path. `key`: the setting, for the message.

    `finished`: at least one step must be finished. Raises ConfigError if there is no such run.
    """
    below, held = user_path(outputs), f"*/{MANIFEST}" if finished else CONFIG
    for path in (below / run, user_path(run)):
        if any(path.glob(held)):
            return path.resolve()
    found = sorted(str(path.parent.relative_to(below)) for path in below.glob(f"**/{CONFIG}") if any(path.parent.glob(held)))
    raise ConfigError(f"{key}: there is no run {run!r}{' with a finished step' * finished}{did_you_mean(run, found)} "
                      f"(in {below}: {', '.join(found) or 'none'})")


@contextmanager
def reading(folder: RunFolder, steps: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Claim steps of a run for reading.

    Raises BusyError if another process makes one of them now.
    """
    with ExitStack() as held:
        with suppress(StorageError), folder.claims.planning(say):   # a read-only disk
            held.enter_context(folder.claims.hold([], steps))
        yield


@contextmanager
def reading_available(folder: RunFolder, steps: Iterable[str], say: Callable[[str], None]) -> Iterator[set[str]]:
    """Claim for reading, and yield, those of `steps` that exist and that no other process makes now."""
    def available() -> set[str]:
        busy = {step for claim in folder.claims.living() for step, _, _ in claim.makes}
        return {step for step in steps if step not in busy and (folder.result(step).exists() or folder.partials(step))}
    with ExitStack() as held:
        found = None
        with suppress(StorageError), folder.claims.planning(say):   # read-only disk
            found = available()
            held.enter_context(folder.claims.hold([], found))
        yield available() if found is None else found


def require_finished(folder: RunFolder, steps: Iterable[str], action: str) -> None:
    """Raise ConfigError if one of `steps` is not finished."""
    if missing := [step for step in steps if folder.manifest(step) is None]:
        raise ConfigError(f"action={action} needs {', '.join(steps)}, but {folder.path} has no finished {', '.join(missing)}. "
                          "Run these steps first, or choose another run")
