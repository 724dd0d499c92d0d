"""The ids of each step: by default exactly those that the later steps of the experiment read."""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.order import BY_NAME, SEEDS, sources
from steps.runtime.context import Source
from steps.step import IMAGES, SCORE, Lists, Setup
from wsss.data.dataset import Dataset
from wsss.data.ids import union
from wsss.errors import ConfigError


def setup_of(config: Any, dataset: Dataset, name: str, **more: Any) -> Setup:
    """What is known about a step of the experiment before any work; `more`: further fields of the setup."""
    read = {role: tuple(Source(source, BY_NAME[source].map_kinds) for source in names)
            for role, names in sources(config, name).items()}
    return Setup(name, getattr(config, name), config, dataset, read, **more)


def imported_file(config: Any, name: str) -> str | None:
    """The file whose network is taken instead of training the step; None if it is trained, or no training."""
    return getattr(getattr(config, name), "weights", None)


def derive_lists(config: Any, dataset: Dataset, imported: Collection[str] = ()) -> dict[str, Lists]:
    """The lists of every step of the experiment, by purpose (see `steps.step.lists`).

    The lists depend on the steps of the experiment, not on the flags of this call, so that steps can be run in separate calls.
    Scoring lists are empty without masks; "val" is empty if nothing is chosen on it. A training that is imported from a file
    has no list; it and the `imported` steps read nothing.

    Raises ConfigError if an explicit list does not cover the ids that a later step reads.
    """
    lists: dict[str, Lists] = {}
    wanted: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in BY_NAME}   # step -> reader -> ids
    for name in reversed(config.steps):
        if imported_file(config, name):
            lists[name] = {}
            continue
        lists[name] = BY_NAME[name].lists(setup_of(config, dataset, name, wanted=wanted[name]))
        if BY_NAME[name].KIND == IMAGES:
            _check_cover(config, name, lists[name]["ids"], wanted[name])
        ids = union(lists[name].values())
        for read in sources(config, name).values() if name not in imported else ():
            for source in read:
                wanted[source][name] = ids
    return {name: lists[name] for name in config.steps}


def reads_of(config: Any, dataset: Dataset, lists: Mapping[str, Lists], name: str) -> dict[str, tuple[str, ...]]:
    """The steps that a step really reads, by role: not those that its settings or the data make unnecessary
    (`steps.step.unused`), and no step that has nothing to score."""
    unused = BY_NAME[name].unused(setup_of(config, dataset, name, lists=lists[name]))
    read = {role: tuple(source for source in names if source not in lists or BY_NAME[source].KIND != SCORE
                        or any(lists[source].values()))
            for role, names in sources(config, name).items() if role not in unused}
    return {role: names for role, names in read.items() if names}


def unread_steps(config: Any, dataset: Dataset, lists: Mapping[str, Lists]) -> dict[str, str]:
    """The steps that a step of the experiment could read, but with these settings none does, each with the reason."""
    unread: dict[str, str] = {}
    for name in reversed(config.steps):
        readers = [reader for reader in config.steps[config.steps.index(name) + 1:]
                   if BY_NAME[reader].KIND != SCORE or any(lists[reader].values())]   # a step with nothing to score reads nothing
        reasons = [_why_not(config, dataset, lists, reader, name) for reader in readers]
        reasons = [unread.get(reader, why) if why == "" else why for reader, why in zip(readers, reasons)]
        if "" not in reasons and any(reasons) and BY_NAME[name].KIND != SCORE:
            unread[name] = next(filter(None, reasons))
    return unread


def _why_not(config: Any, dataset: Dataset, lists: Mapping[str, Lists], reader: str, name: str) -> str | None:
    """Why `reader` does not read the step `name`; "" if it does, None if it never could."""
    if any(name in names for names in reads_of(config, dataset, lists, reader).values()):
        return ""
    unused = BY_NAME[reader].unused(setup_of(config, dataset, reader, lists=lists[reader]))
    for role, source in BY_NAME[reader].reads.items():
        if source == name:
            return f"no step reads it with {reader}.{unused[role]}" if role in unused else None
        if source == SEEDS and BY_NAME[name].MAPS:
            return f"no step reads it with seed_maps={config.seed_maps}"
    return None


def _check_cover(config: Any, name: str, ids: tuple[str, ...], readers: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ConfigError if an explicit list does not cover the ids that a later step reads."""
    have = set(ids)
    for reader, wanted in reversed(readers.items()):
        missing = [image_id for image_id in wanted if image_id not in have]
        if missing:
            raise ConfigError(f"{name}.split={getattr(config, name).split!r} covers {len(wanted) - len(missing)} of the "
                              f"{len(wanted)} ids that {reader} reads (first missing: {missing[0]!r}). Set {name}.split"
                              f"=null to make the ids of all its readers, or choose a list for {reader} that it covers")
