"""`action=status`: the progress of every step, running processes and left-over folders. Reads names and sizes only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.plan.fingerprint import differences
from pipeline.plan.plan import ABSENT, DONE, NOTHING, STALE, PlannedStep, finished_in, seen_by_step, survey
from pipeline.runfolder.claims import Claim
from pipeline.runfolder.folder import RunFolder
from steps.runtime.journal import journal_lines
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError
from wsss.files import file_sizes

RUNNING, FAILED, DAMAGED, UNKNOWN = "running", "failed", "damaged", "unknown"


@dataclass(frozen=True)
class StepStatus:
    """The state of one step: "done", "stale", "partial", "missing", "failed", "running", "damaged" (its manifest), "unknown"
    (a manifest is damaged) or "nothing to score"."""

    name: str
    state: str
    done: int                        # images, or training steps
    total: int
    unit: str                        # "images" or "steps"
    why: str                         # what changed or is broken, or which process works on it
    failed: dict[str, str]           # image id -> reason
    finished: str | None             # time at which the result was finished
    left_over: tuple["LeftOver", ...] = ()

    def __str__(self) -> str:
        count = {DONE: f"{self.total} {self.unit}", NOTHING: "", ABSENT: "", DAMAGED: "", UNKNOWN: ""}.get(
            self.state, f"{self.done} of {self.total} {self.unit}")
        why = self.why or (f"finished {self.finished}" if self.state == DONE else "")
        return f"{self.name:<20} {self.state:<17} {count:<22} {why}".rstrip()


@dataclass(frozen=True)
class LeftOver:
    """A partial folder of other settings that was not finished."""

    path: Path
    images: int
    mb: float
    why: str

    def __str__(self) -> str:
        return (f"left over: {self.path} ({self.images} images, {self.mb:.1f} MB, begun with other settings: {self.why}). "
                "A run with those settings continues it; delete it if it is not needed")


def run_status(config: Any, dataset: Dataset, folder: RunFolder) -> list[StepStatus]:
    """The status of every step. A damaged manifest is reported and raises no error."""
    bad = {}
    for name in config.steps:
        try:
            folder.manifest(name)
        except ArtifactError as error:
            bad[name] = str(error)
    if bad:   # without all manifests the other steps cannot be compared
        return [StepStatus(name, DAMAGED if name in bad else UNKNOWN, 0, 0, "images", bad.get(name, ""), {}, None)
                for name in config.steps]
    claims = folder.claims.living()
    plan = survey(config, dataset, folder, read_images=False)
    return [_status(seen_by_step(config, dataset, planned), folder, planned, claims) for planned in plan]


def _left_overs(folder: RunFolder, planned: PlannedStep) -> Iterator[LeftOver]:
    for path in folder.partials(planned.name):
        identity = folder.begun(path)
        if path == folder.partial(planned.name, planned.fingerprint) or identity is None:
            continue
        why = differences(planned.identity, identity)
        yield LeftOver(path, sum(1 for _ in journal_lines(path)), sum(file_sizes(path).values()) / 2**20, "; ".join(why[:2]))


def _status(dataset: Dataset, folder: RunFolder, planned: PlannedStep, claims: list[Claim]) -> StepStatus:
    state, why = planned.state, planned.why
    if planned.failed and state != DONE:
        state, why = FAILED, (f"{len(planned.failed)} image{'s' * (len(planned.failed) != 1)} failed: "
                             f"{', '.join(list(planned.failed)[:3])}")
    for claim in claims:
        if planned.name == claim.now:
            state, why = RUNNING, f"by {claim.owner} since {claim.since}"
        elif state != DONE and planned.name in [step for step, _, _ in claim.makes]:
            why = "; ".join(filter(None, [why, f"will be made by {claim.owner}"]))
    if state == STALE and planned.done:
        why += "; its replacement is begun"
    done = planned.total if state == DONE else planned.done
    if state == RUNNING and (partial := folder.partial(planned.name, planned.fingerprint)).exists():   # a second folder
        done = finished_in(dataset, planned, partial, read_images=False)
    manifest = folder.manifest(planned.name)
    busy = any(planned.name == step for claim in claims for step, _, _ in claim.makes)
    return StepStatus(planned.name, state, done, planned.total, planned.unit, why, planned.failed,
                      manifest.get("finished") if manifest else None, () if busy else tuple(_left_overs(folder, planned)))
