"""The ids of each step: by default exactly those that the later steps of the experiment read."""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.order import BY_NAME, SEEDS, STEPS, made_kinds, sources
from steps.runtime.context import Source
from steps.step import IMAGES, SCORE, TRAINING, Lists, Setup
from wsss.data.dataset import Dataset
from wsss.data.ids import union
from wsss.errors import ConfigError
from wsss.families import FAMILIES


def dataset_of(config: Any, dataset: Dataset, name: str) -> Dataset:
    """The data set as a step sees it: without corrected masks if its results do not depend on them."""
    return dataset if BY_NAME[name].corrected(getattr(config, name)) else dataset.uncorrected


def setup_of(config: Any, dataset: Dataset, name: str, reads: Mapping[str, tuple[str, ...]] | None = None, **more: Any) -> Setup:
    """What is known about a step of the experiment before any work.

    `reads`: the steps that it reads, by role; None: all that it may read. `more`: further fields of the setup.
    """
    read = {role: tuple(Source(source, made_kinds(config, source)) for source in names)
            for role, names in (sources(config, name) if reads is None else reads).items()}
    return Setup(name, getattr(config, name), config, dataset_of(config, dataset, name), read, **more)


def added_by(config: Any, dataset: Dataset, name: str) -> dict[str, Any]:
    """The kinds of results that a step adds to finished images (`steps.step.added`)."""
    return dict(BY_NAME[name].added(setup_of(config, dataset, name, reads={})))


def imported_file(config: Any, name: str) -> str | None:
    """The file whose network is taken instead of training the step; None if it is trained, or no training."""
    return getattr(config, name).weights if BY_NAME[name].KIND == TRAINING else None


def derive_lists(config: Any, dataset: Dataset, imported: Collection[str] = ()) -> dict[str, Lists]:
    """The lists of every step of the experiment, by purpose (see `steps.step.lists`).

    The lists depend on the steps of the experiment, not on the flags of this call, so that steps can be run in separate calls.
    Scoring lists are empty without masks; "val" is empty if nothing is chosen on it. A training that is imported from a file
    has no list; it and the `imported` steps read nothing.

    Raises ConfigError if an explicit list does not cover the ids that a later step reads, or has images without labels for a step
    that reads those.
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
        _check_labelled(name, dataset, lists[name])
        ids = union(ids for purpose, ids in lists[name].items() if purpose != "log")   # those need no earlier results
        for read in sources(config, name).values() if name not in imported else ():
            for source in read:
                wanted[source][name] = ids
    return {name: lists[name] for name in config.steps}


def reads_of(config: Any, dataset: Dataset, lists: Mapping[str, Lists], name: str) -> dict[str, tuple[str, ...]]:
    """The steps that a step really reads, by role: not those that its settings or the data make unnecessary
    (`steps.step.unused`), and no step that has nothing to score."""
    def makes(source: str) -> bool:
        if BY_NAME[source].KIND != SCORE:
            return True
        ids = lists[source] if source in lists else BY_NAME[source].lists(setup_of(config, dataset, source))
        return any(ids.values())
    unused = BY_NAME[name].unused(setup_of(config, dataset, name, lists=lists[name]))
    read = {role: tuple(filter(makes, names)) for role, names in sources(config, name).items() if role not in unused}
    return {role: names for role, names in read.items() if names}


def unread_steps(config: Any, dataset: Dataset, lists: Mapping[str, Lists], imported: Collection[str]) -> dict[str, str]:
    """The steps that a step of the experiment could read, but with these settings none does, each with the reason. The steps
    `imported` from files read nothing."""
    unread: dict[str, str] = {}
    could_read = {name: _could_read(config, dataset, lists, name) for name in config.steps
                  if BY_NAME[name].KIND != SCORE or any(lists[name].values())}   # a step with nothing to score reads nothing
    for name in reversed(config.steps):
        reasons = [steps[name] or (f"{reader}, which reads it, is imported" if reader in imported else unread.get(reader))
                   for reader, steps in could_read.items() if name in steps]
        if reasons and None not in reasons and BY_NAME[name].KIND != SCORE:
            unread[name] = reasons[0]
    return unread


def _could_read(config: Any, dataset: Dataset, lists: Mapping[str, Lists], reader: str) -> dict[str, str | None]:
    """The steps that `reader` could read, each with the reason why it does not, or None if it does."""
    found: dict[str, str | None] = {}
    maps = [name for name in config.steps[:config.steps.index(reader)] if BY_NAME[name].MAPS]
    unused = BY_NAME[reader].unused(setup_of(config, dataset, reader, lists=lists[reader]))
    for role, source in BY_NAME[reader].reads.items():
        read = sources(config, reader)[role]
        for name in maps if source == SEEDS else read:
            setting = _full(reader, unused[role]) if role in unused else \
                f"seed_maps={config.seed_maps}" if name not in read else None
            if found.get(name, "") is not None:   # no other role reads it
                found[name] = f"no step reads it with {setting}" if setting else None
    return found


def _full(step: str, setting: str) -> str:
    """A setting KEY=VALUE with its full key: of a family of methods, or of the step."""
    return setting if setting.partition("=")[0] in FAMILIES else f"{step}.{setting}"


def _check_labelled(name: str, dataset: Dataset, lists: Lists) -> None:
    """Raise ConfigError if a step that reads image labels would work on images whose labels are not known."""
    unknown = [] if BY_NAME[name].UNLABELLED else [i for ids in lists.values() for i in ids if i in dataset.unlabelled]
    if unknown:
        able = " or ".join(f"{row.name}.split" for row in STEPS if row.UNLABELLED and not row.like)
        raise ConfigError(f"{name}: {len(unknown)} images of its list have no labels in {dataset.root}, for example "
                          f"{unknown[0]!r}, but it reads labels. Choose another list by {name}.split; only {able} may have such "
                          "images")


def _check_cover(config: Any, name: str, ids: tuple[str, ...], readers: Mapping[str, tuple[str, ...]]) -> None:
    """Raise ConfigError if an explicit list does not cover the ids that a later step reads."""
    have = set(ids)
    for reader, wanted in reversed(readers.items()):
        missing = [image_id for image_id in wanted if image_id not in have]
        if missing:
            raise ConfigError(f"{name}.split={getattr(config, name).split!r} covers {len(wanted) - len(missing)} of the "
                              f"{len(wanted)} ids that {reader} reads (first missing: {missing[0]!r}). Set {name}.split"
                              f"=null to make the ids of all its readers, or choose a list for {reader} that it covers")
