"""How long `action=status` takes on a run of many images: `python -m benchmarks.status [--ids 1000000]`.

Makes a run folder with that many small artifacts and a journal line for each, breaks three, and asks for the status.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from pipeline import Pipeline, runner
from pipeline.machine import peak_memory, reset_peak_memory
from pipeline.plan import survey
from steps.journal import JOURNALS
from wsss.data.dataset import Dataset


def make_dataset(n: int) -> Dataset:
    """A data set of `n` ids that has no files."""
    ids, present = tuple(f"{i:08d}" for i in range(n)), (0,)
    names = dict(zip(ids, ids, strict=True))
    return Dataset(name="many", root=Path("nowhere"), classes=("cat",), lists={"train": ids, "val": (), "all": ids},
                   labels=dict.fromkeys(ids, present), image_files=names)


def make_artifacts(pipeline: Pipeline, dataset: Dataset) -> None:
    """The folder of an interrupted make_cam: an artifact and a journal line for every id, three of them damaged."""
    planned = survey(pipeline.config, dataset, pipeline.folder, photographs=False)[1]
    folder = pipeline.folder.partial(planned.name, planned.fingerprint)
    (folder / JOURNALS).mkdir(parents=True)
    (folder / "work.json").write_text(json.dumps({"step": planned.name, "identity": planned.identity}))
    scales, ids = [1.0, 0.5, 1.5, 2.0], dataset.lists["train"]
    with open(folder / JOURNALS / "0-of-1.jsonl", "w") as journal:
        for image_id in ids:
            (folder / f"{image_id}.npy").write_bytes(b"x" * 16)
            line = {"id": image_id, "source": "0" * 32, "height": 375, "width": 500, "classes": [0], "scales": scales,
                    "maxima": [1.2345678], "seconds": 0.1, "files": {f"{image_id}.npy": [16, 123456789]}}
            journal.write(json.dumps(line) + "\n")
    (folder / f"{ids[0]}.npy").unlink()
    (folder / f"{ids[1]}.npy").write_bytes(b"")
    (folder / f"{ids[2]}.npy").write_bytes(b"x" * 8)


def measure(n: int) -> dict:
    """{"done", "total", "seconds", "peak_mb"} of one `status` over `n` ids."""
    with tempfile.TemporaryDirectory() as outputs:
        pipeline = Pipeline.compose(f"outputs={outputs}", "name=many", "steps=[train_cam,make_cam]", "device=cpu")
        dataset = make_dataset(n)
        runner.open_dataset = lambda *args, **options: dataset
        make_artifacts(pipeline, dataset)
        pipeline.dataset = dataset
        pipeline.folder.open(pipeline._data)
        reset_peak_memory(pipeline.device)
        start = time.perf_counter()
        status = pipeline.status()[1]
        seconds = round(time.perf_counter() - start, 2)
        return {"done": status.done, "total": status.total, "state": status.state, "seconds": seconds,
                "peak_mb": peak_memory(pipeline.device)["host"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ids", type=int, default=1_000_000)
    print(json.dumps(measure(parser.parse_args().ids)))
