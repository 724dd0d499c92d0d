"""The expected cost of a planned step: disk and memory, and time if an earlier run gives a rate."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.plan.fingerprint import IMPORTED
from pipeline.plan.lists import imported_file, setup_of
from pipeline.plan.plan import PlannedStep, work_folder
from pipeline.runfolder.folder import RunFolder
from steps.runtime.journal import INDEX, complete_lines, journal_files
from wsss.data.dataset import Dataset
from wsss.files import user_path

LINES = 10_000   # of a journal, enough for a mean


@dataclass(frozen=True)
class Expected:
    """`seconds` for the remaining work (None without an earlier run); MiB of the step's folder and of the process's peak (None if
    unknown), and of the peak on the GPU (None if unknown, or without a GPU)."""

    seconds: float | None
    disk_mb: float | None
    memory_mb: float | None
    gpu_mb: float | None = None


def expect(config: Any, dataset: Dataset, folder: RunFolder, planned: PlannedStep, device: str) -> Expected:
    """Return the expected cost of a step, with its rate in this run or in its donor on the same kind of device.

    Disk and memory are the measured ones if the step was made with the same fingerprint, else computed (`steps.runtime.needs`).
    """
    from steps.runtime.needs import needs_of_file  # imported here because it imports torch

    runs = [folder] + ([planned.donor.folder] if planned.donor else [])
    former = [manifest for run in runs if (manifest := run.manifest(planned.name))
              and manifest["device"].split(":")[0] == device and (IMPORTED in manifest["identity"]) == planned.imported]
    rate = next((manifest["made"]["seconds"] / manifest["made"]["units"] for manifest in former
                 if manifest["made"]["units"] and manifest.get("added", {}) == planned.added), _journal_rate(folder, planned))
    file = imported_file(config, planned.name)
    setup = setup_of(config, dataset, planned.name, lists=planned.lists, device=device)
    needs = needs_of_file(user_path(file)) if file else planned.step.needs(setup)
    disk, memory, gpu = (needs.disk_mb, needs.memory_mb, needs.gpu_mb) if needs else (None, None, None)
    gpu = gpu if device == "cuda" else None
    for manifest in former:
        same = manifest["fingerprint"] == planned.fingerprint and manifest.get("added", {}) == planned.added
        if same and manifest["made"]["total"]:
            disk = manifest["disk_mb"] * planned.total / manifest["made"]["total"]
            memory, gpu = (manifest["peak_memory_mb"].get(name, known) for name, known in (("host", memory), ("cuda", gpu)))
    return Expected(None if rate is None else rate * planned.to_do, disk, memory, gpu)


def _journal_rate(folder: RunFolder, planned: PlannedStep) -> float | None:
    """Seconds per image, from the first journal lines of interrupted work."""
    times = [line["seconds"] for path in journal_files(work_folder(folder, planned)) if path.name != INDEX
             for line in islice(complete_lines(path), LINES) if "seconds" in line]
    return sum(times) / len(times) if times else None
