"""The plan: the state of every step, its action and the reason, and all checks that are possible before work starts."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.order import BY_NAME, Row
from pipeline.plan.fingerprint import IMPORTED, differences, fingerprint, identities
from pipeline.plan.lists import added_by, dataset_of, derive_lists, imported_file, reads_of, setup_of, unread_steps
from pipeline.plan.selection import selected
from pipeline.runfolder.folder import RunFolder
from pipeline.runfolder.reuse import Donor, find_donor, refuse_incompatible_runs
from steps.runtime.context import methods_of
from steps.runtime.inference import failures
from steps.runtime.journal import BROKEN, CHANGED, CORRECTED, LACKING, MISSING, unfinished
from steps.runtime.schedule import STATE, saved_step, total_steps
from steps.step import IMAGES, SCORE, TRAINING, Lists
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.families import FAMILIES

# states
DONE, STALE, PARTIAL, ABSENT, NOTHING = "done", "stale", "partial", "missing", "nothing to score"
# actions
SKIP, CONTINUE, RUN, RERUN, REUSE, LEFT_OUT = "skip", "continue", "run", "re-run", "reuse", "left out"
IMPORT = "imported"   # a training imported from a file of the configuration
REASONS = {BROKEN: "{n} artifact{s} broken", CHANGED: "{n} image{s} or their labels changed", MISSING: "{n} image{s} new",
           LACKING: "{n} image{s} without further kinds of maps",
           CORRECTED: "{n} corrected mask{s} changed"}
SHOWN = 4   # differences


@dataclass
class PlannedStep:
    """The state of one step and what a run does with it."""

    step: Row
    lists: Lists
    identity: dict
    sources: dict[str, tuple[str, ...]]   # the steps that it reads, by role
    state: str                       # one of the states above
    why: str = ""                    # what changed or is broken
    done: int = 0                    # finished images or training steps
    total: int = 0
    fresh: bool = False              # start from an empty folder instead of continuing
    damaged: list[str] = field(default_factory=list)   # broken or missing files that do not belong to one image
    failed: dict[str, str] = field(default_factory=dict)   # images that failed in the last run: id -> reason
    action: str = SKIP               # one of the actions above
    donor: Donor | None = None       # the run whose result is reused
    expected: Any = None             # pipeline.plan.expect.Expected; None if the step does not work
    usable: bool = True              # later steps can read its result, now or after it has run
    added: dict[str, Any] = field(default_factory=dict)   # the kinds of results that it adds to finished images
    import_from: Path | None = None  # the folder of official files that are converted instead of running the step

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the steps that it reads."""
        return tuple(dict.fromkeys(source for names in self.sources.values() for source in names))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def works(self) -> bool:
        return self.action in (RUN, RERUN, CONTINUE, REUSE, IMPORT)

    @property
    def imported(self) -> bool:
        """Whether the step is imported: a training by its setting `weights`, maps and labels by the action."""
        return IMPORTED in self.identity

    @property
    def to_do(self) -> int:
        return self.total - self.done if self.works else 0

    @property
    def unit(self) -> str:
        return "images" if self.step.KIND != TRAINING else "file" if self.imported else "steps"

    def __str__(self) -> str:
        count = f" {self.done} of {self.total} {self.unit}" if self.action in (CONTINUE, REUSE) else ""
        return f"{self.name}: {self.action}{count}" + (f" ({self.why})" if self.why else "")


def survey(config: Any, dataset: Dataset, folder: RunFolder, read_images: bool = True) -> list[PlannedStep]:
    """The state of every step of the experiment. Writes nothing and raises no error for any state.

    If `read_images` is False, no image or mask is read (see `pipeline.plan.fingerprint.identities`).
    """
    imported = {name: digest for name in config.steps if (digest := folder.imported(name))}
    lists = derive_lists(config, dataset, imported)
    known = identities(config, dataset, lists, None if read_images else folder.recorded, imported)
    result = []
    for name in config.steps:
        planned = PlannedStep(BY_NAME[name], lists[name], known[name], {}, ABSENT)
        if not planned.imported:
            planned.sources, planned.added = reads_of(config, dataset, lists, name), added_by(config, dataset, name)
        _find_state(config, seen_by_step(config, dataset, planned), folder, planned, read_images)
        result.append(planned)
    return result


def make_plan(config: Any, dataset: Dataset, folder: RunFolder, donors: list[Donor] | None = None,
              fetch: bool = True) -> list[PlannedStep]:
    """Plan every step of the experiment. Writes nothing except ImageNet weights, which `fetch` downloads.

    Raises
    ------
    ConfigError
        if a selected step reads a result that neither exists nor is made in this call, a finished training would be
        replaced, or no step can be reused from a run of `reuse_from`.
    """
    chosen = selected(config)
    plan = {planned.name: planned for planned in survey(config, dataset, folder)}
    imported = [name for name, planned in plan.items() if planned.imported]
    unread = unread_steps(config, dataset, {name: planned.lists for name, planned in plan.items()}, imported)
    refuse_incompatible_runs(donors or [], {name: planned.identity for name, planned in plan.items()})
    for name, planned in plan.items():
        wanted = config.steps.index(name) <= config.steps.index(chosen[-1])   # later steps are not reused
        _decide(config, seen_by_step(config, dataset, planned), folder, planned, name in chosen, donors or [] if wanted else [])
        if name in unread and planned.action != SKIP and not getattr(config, BY_NAME[name].flag):
            planned.action, planned.usable, planned.why = LEFT_OUT, False, unread[name]
        if planned.works:
            _check_replacing(config, folder, planned)
        if planned.works and planned.action != REUSE:
            _check_reads(config, planned, plan)
    for name, planned in plan.items():
        if planned.works and planned.action != REUSE:
            planned.step.check(setup_of(config, dataset, name, planned.sources, lists=planned.lists, fetch=fetch))
    return list(plan.values())


def remarks(config: Any, plan: list[PlannedStep]) -> list[str]:
    """What the methods that the steps to do use have to say."""
    found = [methods_of(config, planned.name)[family].remark() for planned in plan if planned.works
             for family in FAMILIES if family in planned.identity]
    return list(dict.fromkeys(filter(None, found)))


def check_share(config: Any, planned: PlannedStep, processes: int) -> None:
    """Raise ConfigError if there are more processes than images in a training batch, or than parts into which it is cut."""
    if planned.step.KIND != TRAINING or planned.imported:
        return
    key, ids = f"{planned.name}.batch_size", len(planned.lists["ids"])
    settings = getattr(config, planned.name)
    batch, parts = min(settings.batch_size, ids), settings.parts
    if processes > batch:
        raise ConfigError(f"{processes} processes cannot share the batches of {planned.name}, which have {batch} images ({key}="
                          f"{settings.batch_size}, {ids} images). Start at most {batch} processes"
                          + (f", or raise {key}" if batch < ids else ""))
    if parts is not None and processes > parts:
        raise ConfigError(f"{processes} processes cannot share the {parts} parts of a batch ({planned.name}.parts={parts}). "
                          f"Start at most {parts} processes, or set {planned.name}.parts={processes} (another training: it "
                          f"changes rounding) or {planned.name}.parts=null (one part for each process)")


def seen_by_step(config: Any, dataset: Dataset, planned: PlannedStep) -> Dataset:
    """The data set as the step sees it (`dataset_of`); what is imported depends on no corrected mask."""
    return dataset.uncorrected if planned.imported else dataset_of(config, dataset, planned.name)


def work_folder(folder: RunFolder, planned: PlannedStep) -> Path:
    """The folder a step works in: its result folder if only parts are missing, else its partial folder."""
    manifest = folder.manifest(planned.name)
    if manifest is not None and manifest["fingerprint"] == planned.fingerprint and not planned.fresh:
        return folder.result(planned.name)
    return folder.partial(planned.name, planned.fingerprint)


def _find_state(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep, read_images: bool) -> None:
    """Set the state of a step and the reason if it is not done."""
    kind, ids = planned.step.KIND, planned.lists.get("ids", ())
    if kind == SCORE and not any(planned.lists.values()):
        planned.state, planned.why = NOTHING, f"not all images of its list have {planned.step.TRUTH}"
        return
    planned.total = len(ids)
    if planned.imported and kind == TRAINING:
        planned.total = 1
    elif kind == TRAINING:
        planned.total = total_steps(getattr(config, planned.name), len(ids))
    elif kind == SCORE:
        planned.total = len(set().union(*planned.lists.values()))
    manifest, partial = folder.manifest(planned.name), folder.partial(planned.name, planned.fingerprint)
    current = manifest is not None and manifest["fingerprint"] == planned.fingerprint
    place = folder.result(planned.name) if current else partial
    planned.failed, problems = failures(place), []
    if not current:
        planned.done = finished_in(dataset, planned, place, read_images, problems)
        planned.state = STALE if manifest else PARTIAL if partial.exists() else ABSENT
        changes = differences(manifest["identity"], planned.identity) if manifest else []
        planned.why = "; ".join(_shortened(changes) + _shortened(problems))
        return
    missing = unfinished(place, ids, dataset, read_images, problems, planned.added) if kind == IMAGES else {}
    planned.done, planned.damaged = planned.total - len(missing), folder.damaged_files(planned.name)
    reasons = [REASONS[reason].format(n=n, s="s" * (n != 1)) for reason, n in sorted(Counter(missing.values()).items())]
    if planned.damaged:
        reasons.append(f"{', '.join(planned.damaged[:SHOWN])} missing or damaged")
    elif folder.has_open_journal(planned.name):
        reasons.append("its journal is not merged yet")
    reasons += _shortened(problems)
    planned.state, planned.why = PARTIAL if reasons else DONE, "; ".join(reasons)
    if planned.damaged and kind != IMAGES:
        planned.fresh = kind == SCORE or not (place / STATE).exists()   # a training continues from its last state
        planned.done = 0 if planned.fresh else saved_step(place)


def _decide(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep, chosen: bool, donors: list[Donor]) -> None:
    """Set the action of a step from its state."""
    if planned.state == NOTHING:
        return
    imported = planned.imported and planned.step.KIND == IMAGES
    if imported and (added := added_by(config, dataset, planned.name)):
        key = f"{planned.name}.{planned.step.further[0]}"
        raise ConfigError(f"{key}=[{','.join(added)}] is not possible: {planned.name} was imported from files, and nothing is "
                          f"made beside imported maps. Set {key}=[], or delete {folder.result(planned.name)} to make it here")
    if planned.state == DONE:
        planned.why = "imported" if imported else "up to date"
        if config.force and chosen and not imported:
            _again(dataset, folder, planned, "force=true")
            _import_network(config, planned)
        return
    if imported and chosen:
        raise ConfigError(f"{planned.name} was imported, but not completely ({planned.why}). Import the rest with "
                          f"action=import_official import_from=DIR, or delete {folder.result(planned.name)} to make it here")
    if donor := find_donor(donors, planned.name, planned.fingerprint, planned.lists.get("ids"), dataset, planned.added):
        planned.action, planned.donor = REUSE, donor
        planned.done = max(planned.done, donor.covers)
        planned.why = "; ".join(filter(None, [f"from {donor.folder.path}", planned.why]))
    elif not chosen or imported:
        planned.action, planned.usable = LEFT_OUT, False
    elif planned.fresh or config.force and planned.state == PARTIAL and planned.why:
        _again(dataset, folder, planned, planned.why if planned.fresh else "force=true")
    elif planned.done or planned.state == PARTIAL:
        planned.action = CONTINUE
    else:
        planned.action = RERUN if planned.state == STALE else RUN
    _import_network(config, planned)


def _import_network(config: Any, planned: PlannedStep) -> None:
    """Import a training whose weights file is configured instead of training it."""
    if planned.imported and planned.action in (RUN, RERUN, CONTINUE):
        planned.action, planned.done = IMPORT, 0
        planned.why = "; ".join(filter(None, [f"from {imported_file(config, planned.name)}", planned.why]))


def _again(dataset: Dataset, folder: RunFolder, planned: PlannedStep, why: str) -> None:
    """Make a step again in its partial folder, or continue there if that was interrupted."""
    partial = folder.partial(planned.name, planned.fingerprint)
    planned.fresh, planned.why, planned.damaged = True, why, []
    planned.done = finished_in(dataset, planned, partial)
    planned.action = CONTINUE if planned.done else RERUN


def finished_in(dataset: Dataset, planned: PlannedStep, place: Path, read_images: bool = True,
                problems: list[str] | None = None) -> int:
    """The number of images or training steps that are finished in a folder."""
    if planned.step.KIND == IMAGES:
        return planned.total - len(unfinished(place, planned.lists["ids"], dataset, read_images, problems, planned.added))
    return saved_step(place) if planned.step.KIND == TRAINING else 0


def _check_reads(config: Any, planned: PlannedStep, plan: dict[str, PlannedStep]) -> None:
    for role, names in planned.sources.items():
        for source in names:
            if source not in plan:
                instead = planned.step.INSTEAD.get(role)
                remedy = f"Add it, or set {' and '.join(f'{planned.name}.{key}' for key in instead)}" if instead else \
                    f"Add {source} to steps"
                raise ConfigError(f"{planned.name} reads {source}, which is not among the steps of this experiment "
                                  f"({', '.join(config.steps)}). {remedy}")
            if not plan[source].usable:
                state = f"is not up to date ({plan[source].why})" if plan[source].why else "has not been made"
                remedy = f"from_step={source}" if config.from_step else f"{BY_NAME[source].flag}=true, or set no flag at all"
                raise ConfigError(f"{planned.name} reads {source}, which {state}. Run it too: {remedy}")


def _check_replacing(config: Any, folder: RunFolder, planned: PlannedStep) -> None:
    manifest = folder.manifest(planned.name)
    if planned.step.KIND != TRAINING or config.replace or manifest is None or IMPORTED in manifest["identity"]:
        return   # an imported training can be imported again
    if work_folder(folder, planned) != folder.result(planned.name):
        raise ConfigError(f"{planned.name} is finished in {folder.result(planned.name)} and would be replaced ({planned.why}). "
                          "Set replace=true to allow it, name=NAME for another run, or undo the change")


def _shortened(lines: list[str]) -> list[str]:
    return lines[:SHOWN] + [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
