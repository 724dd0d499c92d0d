"""Time and memory of status, plan and run with many images: `python -m benchmarks.status [--ids 1000000] [--layout packed]`.

Makes the folder of an interrupted make_cam with that many small artifacts and a journal line for each, breaks three, and measures
`action=status`, `action=plan` and the run that repairs the three and finishes the step. The data set has no image files: checking
them takes the same time in both layouts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import Pipeline, runner
from pipeline.actions import status
from pipeline.cluster.machine import peak_memory, reset_peak_memory
from pipeline.plan.plan import survey
from pipeline.runfolder.folder import MANIFEST_KEYS
from steps import make_cam
from steps.runtime import needs  # noqa: F401  needs: imported by a plan with work to do, with torch, which is not to be timed
from steps.runtime.inference import for_each_image
from steps.runtime.journal import JOURNALS
from steps.runtime.packs import PACKS, Pack
from wsss.data.dataset import Dataset
from wsss.files import file_sizes

CONTENT, SCALES = b"x" * 16, [1.0, 0.5, 1.5, 2.0]
FACTS = {"height": 375, "width": 500, "classes": [0], "scales": SCALES, "maxima": [1.2345678]}


class Many(Dataset):
    """A data set without files."""

    def digest_of_image(self, image_id: str) -> str:
        return "0" * 32

    def size(self, image_id: str) -> tuple[int, int]:
        return 375, 500


def make_dataset(n: int) -> Dataset:
    """A data set of `n` ids without files."""
    ids, present = tuple(f"{i:08d}" for i in range(n)), (0,)
    names = dict(zip(ids, ids, strict=True))
    return Many(name="many", root=Path("nowhere"), classes=("cat",), lists={"train": ids, "val": (), "all": ids},
                labels=dict.fromkeys(ids, present), image_files=names)


def make_artifacts(pipeline: Pipeline, dataset: Dataset, packed: bool = False) -> None:
    """Make a finished train_cam and the folder of an interrupted make_cam: an artifact and a journal line for every id, three of
    them broken; in a pack one is truncated and the lines of two are missing."""
    trained, planned = survey(pipeline.config, dataset, pipeline.folder)
    pipeline.folder.result("train_cam").mkdir(parents=True)
    pipeline.folder.finish("train_cam", pipeline.folder.result("train_cam"), dict.fromkeys(MANIFEST_KEYS, 0) | {
        "fingerprint": trained.fingerprint, "identity": trained.identity, "device": "cpu", "made": {"units": 0, "total": 0}})
    folder, ids = pipeline.folder.partial(planned.name, planned.fingerprint), dataset.lists["train"]
    (folder / JOURNALS).mkdir(parents=True)
    (folder / "work.json").write_text(json.dumps({"step": planned.name, "identity": planned.identity}))
    pack = Pack(folder, f"{PACKS}/0-of-1.tar") if packed else None
    with open(folder / JOURNALS / "0-of-1.jsonl", "w") as journal:
        for image_id in ids[:-2] if pack else ids:
            name, place = f"{image_id}.npy", [16, 123456789]
            if pack:
                place.append(pack.add(name, CONTENT))
            else:
                (folder / name).write_bytes(CONTENT)
            journal.write(json.dumps({"id": image_id, "source": "0" * 32, **FACTS, "seconds": 0.1, "files": {name: place}}
                                     | ({"pack": pack.name} if pack else {})) + "\n")
    if pack:
        with open(folder / pack.name, "r+b") as file:
            file.truncate(pack.end - 512)
        return
    (folder / f"{ids[0]}.npy").unlink()
    (folder / f"{ids[1]}.npy").write_bytes(b"")
    (folder / f"{ids[2]}.npy").write_bytes(b"x" * 8)


def make_again(context: Any) -> dict:
    """Replaces make_cam, without a network."""
    begun: list[float] = []

    def make(image_id: str) -> tuple[dict[str, bytes], dict]:
        begun.append(time.perf_counter())
        return {f"{image_id}.npy": CONTENT}, FACTS
    for_each_image(context, make)
    return {"begun": begun[0]}


def timed(pipeline: Pipeline, act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    reset_peak_memory(pipeline.device)
    start = time.perf_counter()
    result = act()
    return result, {"seconds": round(time.perf_counter() - start, 2), "peak_mb": peak_memory(pipeline.device)["host"]}


def measure(n: int, layout: str = "files") -> dict:
    """The result of `status` for `n` ids, files and bytes of the step's folder, seconds and memory of status, plan and run."""
    with tempfile.TemporaryDirectory() as outputs:
        pipeline = Pipeline.compose(f"outputs={outputs}", "name=many", "steps=[train_cam,make_cam]", "device=cpu",
                                    "log_level=error", "report.write=false", f"artifacts.layout={layout}")
        dataset = make_dataset(n)
        runner.open_dataset = status.open_dataset = lambda *args, **options: dataset
        make_cam.run = make_again
        pipeline.dataset = dataset
        pipeline.folder.path.mkdir()
        pipeline.folder.open(pipeline.data_identity)
        make_artifacts(pipeline, dataset, layout == "packed")
        files = file_sizes(pipeline.folder.path)
        found, times = {"layout": layout, "files": len(files), "mb": round(sum(files.values()) / 2**20)}, {}
        del files
        steps, times["status"] = timed(pipeline, pipeline.status)
        _, times["plan"] = timed(pipeline, pipeline.plan)
        start = time.perf_counter()
        _, times["run"] = timed(pipeline, pipeline.run)
        manifest = pipeline.folder.manifest("make_cam")
        times["run"]["first_image"] = round(manifest["result"]["begun"] - start, 2)
        return {**found, "done": steps[1].done, "total": steps[1].total, "state": steps[1].state, **times["status"],
                "plan": times["plan"], "run": times["run"], "made": manifest["made"]["units"], "images": manifest["images"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=("files", "packed"), default="files")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.ids, arguments.layout)))
