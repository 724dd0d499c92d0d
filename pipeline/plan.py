"""The plan: for each step what will be done and why, and everything that can be refused before work starts."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config import selected
from pipeline.fingerprint import differences, fingerprint, identities, is_read
from pipeline.lists import Lists, derive_lists
from pipeline.order import BY_NAME, Step
from pipeline.runfolder import MANIFEST, RunFolder
from steps.networks import check_weights
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError

DONE, CONTINUE, RUN, NOTHING, LEFT_OUT = "up to date", "continue", "run", "nothing to score", "left out"


@dataclass
class PlannedStep:
    """One step of the plan."""

    step: Step
    lists: Lists
    identity: dict
    action: str                      # one of the words above
    why: str = ""
    to_do: int = 0                   # images still to make, for an "images" step
    fresh: bool = False              # work from an empty folder, not where an earlier run stopped
    damaged: list[str] = field(default_factory=list)   # files besides those of single images that must be made again
    usable: bool = True              # its result can be read by later steps, now or once it has run
    reads: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def works(self) -> bool:
        return self.action in (RUN, CONTINUE)


def make_plan(config: Any, dataset: Dataset, folder: RunFolder) -> list[PlannedStep]:
    """Plan every step of the experiment. Writes nothing.

    Raises
    ------
    ConfigError
        when a selected step reads what neither exists nor is made in this call, or a finished training would be replaced.
    """
    chosen, lists = selected(config), derive_lists(config, dataset)
    known = identities(config, dataset, lists)
    plan: dict[str, PlannedStep] = {}
    for name in config.steps:
        step = BY_NAME[name]
        reads = tuple(source for source in step.reads(config) if is_read(config, dataset, name, source))
        planned = PlannedStep(step, lists[name], known[name], RUN, reads=reads)
        _decide(config, dataset, folder, planned)
        if name not in chosen and planned.works:
            planned.usable = False
            planned.action = LEFT_OUT
        if planned.works:
            _check_reads(config, planned, plan)
            _check_replacing(config, folder, planned)
            if hasattr(step.module, "check"):
                step.module.check(getattr(config, name))
        plan[name] = planned
    if any(planned.works and "weights" in planned.identity.get("model", {}) for planned in plan.values()):
        check_weights(config.model)
    return list(plan.values())


def _decide(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep) -> None:
    """Set what is to be done with a step and why."""
    if planned.step.kind == "score" and not any(planned.lists.values()):
        planned.action, planned.why = NOTHING, "not all images of its list have masks"
        return
    manifest, partial = folder.manifest(planned.name), folder.partial(planned.name, planned.fingerprint)
    ids = planned.lists.get("ids", ())
    images = planned.step.kind == "images"
    if manifest is None or manifest["fingerprint"] != planned.fingerprint:
        planned.to_do = len(folder.unfinished(partial, ids, dataset)) if images else 0
        planned.action = CONTINUE if partial.exists() else RUN
        planned.why = "; ".join(differences(manifest["identity"], planned.identity)[:4]) if manifest else ""
        return
    missing = folder.unfinished(folder.result(planned.name), ids, dataset) if images else []
    planned.to_do, planned.damaged = len(missing), folder.damaged_files(planned.name)
    if config.force and planned.name in selected(config):
        planned.action, planned.why, planned.to_do, planned.fresh = RUN, "force=true", len(ids), True
    elif missing:
        planned.action, planned.why = CONTINUE, f"{len(missing)} of {len(ids)} images are missing or changed"
    elif planned.damaged:
        planned.action, planned.why, planned.fresh = RUN, f"{', '.join(planned.damaged[:3])} missing or damaged", not images
    elif folder.has_open_journal(planned.name):
        planned.action, planned.why = CONTINUE, "its journal is not merged yet"
    else:
        planned.action = DONE


def _check_reads(config: Any, planned: PlannedStep, plan: dict[str, PlannedStep]) -> None:
    for source in planned.reads:
        if source not in plan:
            raise ConfigError(f"{planned.name} reads {source}, which is not among the steps of this experiment "
                              f"({', '.join(config.steps)}). {_without(planned.name, source)}")
        if not plan[source].usable:
            state = f"is not up to date ({plan[source].why})" if plan[source].why else "has not been made"
            raise ConfigError(f"{planned.name} reads {source}, which {state}. Run it too: {BY_NAME[source].flag}=true, or "
                              "set no flag at all")


def _without(name: str, source: str) -> str:
    if (name, source) == ("cam_to_ir_label", "eval_cam"):
        return "Add it, or set cam_to_ir_label.conf_fg and cam_to_ir_label.conf_bg"
    return f"Add {source} to steps"


def _check_replacing(config: Any, folder: RunFolder, planned: PlannedStep) -> None:
    if planned.step.kind == "training" and folder.result(planned.name).joinpath(MANIFEST).exists() and not config.replace:
        raise ConfigError(f"{planned.name} is finished in {folder.result(planned.name)} and would be replaced ({planned.why}). "
                          "Set replace=true to allow it, name=NAME for another run, or undo the change")
