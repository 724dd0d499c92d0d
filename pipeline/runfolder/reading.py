"""What reads a finished run and changes nothing in it: the steps it needs, and the claim that keeps them as they are."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from pipeline.runfolder.folder import RunFolder
from wsss.errors import ConfigError, StorageError


@contextmanager
def reading(folder: RunFolder, steps: Iterable[str], say: Callable[[str], None]) -> Iterator[None]:
    """Claim steps of a run for reading.

    Raises
    ------
    BusyError
        when another process makes one of them now.
    """
    with ExitStack() as held:
        with suppress(StorageError), folder.claims.planning(say):   # a disk that can only be read
            held.enter_context(folder.claims.hold([], steps))
        yield


@contextmanager
def reading_what_stands(folder: RunFolder, steps: Iterable[str], say: Callable[[str], None]) -> Iterator[set[str]]:
    """Claim for reading, and give, those of `steps` that are there and that no other process makes now."""
    busy = {step for claim in folder.claims.living() for step, _, _ in claim.makes}
    stand = {step for step in steps if step not in busy and (folder.result(step).exists() or folder.partials(step))}
    with reading(folder, stand, say):
        yield stand


def require_finished(folder: RunFolder, steps: Iterable[str], action: str) -> None:
    """Refuse a run that lacks one of `steps`. Raises ConfigError."""
    if lacking := [step for step in steps if folder.manifest(step) is None]:
        raise ConfigError(f"action={action} needs {', '.join(steps)}, and {folder.path} has no finished {', '.join(lacking)}. "
                          "Run these steps first, or choose another run")
