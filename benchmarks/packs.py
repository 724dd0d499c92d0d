"""What many images cost in files and packed in tars: `python -m benchmarks.packs [--images 100000]`.

An artifact an image of the size that one class of make_cam has at 375x500, written by the loop of the steps, read by their store.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import machine
from benchmarks.status import FACTS, make_dataset
from steps.runtime.context import Runtime, StepContext
from steps.runtime.inference import for_each_image
from steps.runtime.journal import merge_journals
from steps.runtime.store import Layout, Store

CONTENT = os.urandom(11_600)   # bytes


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(n: int, layout: Layout) -> dict[str, float]:
    """Files, MiB as `du` counts them, and seconds and processor seconds of writing and of reading `n` artifacts."""
    with tempfile.TemporaryDirectory() as place:
        folder, dataset = Path(place), make_dataset(n)
        context = StepContext(name="packs", settings=None, dataset=dataset, lists={"ids": dataset.lists["train"]}, folder=folder,
                              runtime=Runtime(layout=layout))
        times = [clocks()]
        for_each_image(context, lambda image_id: ({f"{image_id}.npy": CONTENT}, FACTS))
        merge_journals(folder, context.ids)
        times.append(clocks())
        store = Store(folder)
        if any(store.file(image_id, f"{image_id}.npy").read_bytes() != CONTENT for image_id in context.ids):
            raise AssertionError("other bytes were read than were written")
        times.append(clocks())
        entries = [entry.stat() for path in (folder, *filter(Path.is_dir, folder.iterdir())) for entry in os.scandir(path)]
        (write, write_cpu), (read, read_cpu) = np.diff(times, axis=0)
        return {"files and folders": len(entries), "MiB on disk": sum(entry.st_blocks for entry in entries) / 2048,
                "writing, s": write, "writing, CPU s": write_cpu, "reading, s": read, "reading, CPU s": read_cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    n = parser.parse_args().images
    files, packed = (measure(n, layout) for layout in (Layout.files, Layout.packed))
    print(f"{machine()}; {n:,} images\n| | files | packed | ratio |\n|---|---|---|---|")
    for name, value in files.items():
        print(f"| {name} | {value:,.1f} | {packed[name]:,.1f} | {value / packed[name]:,.1f} |")


if __name__ == "__main__":
    main()
