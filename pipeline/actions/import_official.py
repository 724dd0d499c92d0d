"""Convert results of the official IRN and LPCAM code, `import_from=DIR`, into finished steps.

The files are `cam_mask/ID.npy`, `lpcam_mask/ID.npy`, `ir_label/ID.png` and `sem_seg/ID.png`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.actions._official import refuse_same_files
from pipeline.order import BY_NAME, STEPS
from pipeline.plan.fingerprint import IMPORTED, imported_identity
from pipeline.plan.plan import ABSENT, CONTINUE, DONE, PARTIAL, RERUN, RUN, SKIP, STALE, PlannedStep
from pipeline.plan.selection import selected
from pipeline.runfolder.folder import RunFolder
from steps.runtime.journal import unfinished
from steps.step import IMAGES
from wsss.data.dataset import Dataset
from wsss.errors import ConfigError
from wsss.files import user_path


@dataclass
class Settings:
    import_from: str | None      # folder of the official code's files


def do(pipeline: Any) -> dict[str, Any]:
    """Convert the files; return the summary, as `Pipeline.run` does. Raises WsssError."""
    return pipeline.carry_out(lambda: import_plan(pipeline.config, pipeline.dataset, pipeline.folder))


def run(pipeline: Any) -> int:
    do(pipeline)
    for step in pipeline.status():
        pipeline.console.result(f"  {step}")
    return 0


def import_plan(config: Any, dataset: Dataset, folder: RunFolder) -> list[PlannedStep]:
    """Plan the import of the chosen steps for which `import_from` has files. Writes nothing.

    Raises ConfigError if there is nothing to import, two steps would have the same files, or the import would replace a computed
    result without `replace=true`.
    """
    if not config.import_from:
        raise ConfigError("action=import_official needs the folder of the official code: set import_from=DIR")
    source, plan = user_path(config.import_from), []
    rows = [row for name in selected(config) if (row := BY_NAME[name]).KIND == IMAGES and row.OFFICIAL]
    found = {row: ids for row in rows if (ids := row.OFFICIAL.ids(source, dataset))}
    refuse_same_files(found)
    for row, ids in found.items():
        identity = imported_identity(dataset, row.name, row.OFFICIAL.digest(source, ids))
        plan.append(PlannedStep(row, {"ids": ids}, identity, {}, ABSENT, total=len(ids), import_from=source))
        _find_state(config, dataset, folder, plan[-1])
    if not plan:
        files = [str(row.OFFICIAL.path(Path(), "ID")) for row in STEPS if row.KIND == IMAGES and row.OFFICIAL]
        raise ConfigError(f"import_from={source} has no files of {dataset.name} for the selected steps. Expected files: "
                          f"{', '.join(files)}; an id of this data set is {dataset.lists['all'][0]!r}")
    return plan


def _find_state(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep) -> None:
    """Set the state and action of an imported step."""
    manifest = folder.manifest(planned.name)
    current = manifest is not None and manifest["fingerprint"] == planned.fingerprint
    if manifest is not None and not current and IMPORTED not in manifest["identity"] and not config.replace:
        raise ConfigError(f"{planned.name} is finished in {folder.result(planned.name)} and would be replaced by the "
                          "import. Set replace=true to allow it, or name=NAME for another run")
    place = folder.result(planned.name) if current else folder.partial(planned.name, planned.fingerprint)
    planned.done = planned.total - len(unfinished(place, planned.lists["ids"], dataset.uncorrected))
    planned.damaged = folder.damaged_files(planned.name) if current else []
    planned.why = f"from {planned.import_from / planned.step.OFFICIAL.name}"
    if current and planned.done == planned.total and not planned.damaged and not folder.has_open_journal(planned.name):
        planned.state, planned.action = DONE, SKIP
    elif current or place.exists():
        planned.state, planned.action = PARTIAL, CONTINUE
    else:
        planned.state, planned.action = (STALE, RERUN) if manifest else (ABSENT, RUN)
