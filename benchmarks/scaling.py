"""The resources of a run of many images, projected from a finished run: `python -m benchmarks.scaling RUN --images N ...`.

Seconds per image (of a training: per image and epoch) and bytes per image are taken from RUN's manifests and multiplied by N. So
RUN should have similar images, networks and machine; k-means and the number of classes are not scaled.
"""

import argparse
import json
from pathlib import Path

from pipeline.order import STEPS
from steps.step import IMAGES

SIZES = [82_783, 9_000_000, 100_000_000]   # COCO train2014, OpenImages, and larger


def needs(run: Path, images: int) -> list[tuple[str, float, float, int]]:
    """(step, process hours, GiB, files) of every finished step of `run`, for `images` images in each of its lists."""
    rows = []
    for step in STEPS:
        folder = run / step.name
        if not (folder / "manifest.json").exists():
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        made = manifest["made"]
        units = manifest["lists"].get("ids") or made["total"]
        if not made["units"] or not units:
            continue
        whole = manifest["seconds"] * made["total"] / made["units"] * manifest.get("processes", 1)
        files = sum(1 for _ in folder.rglob("*.npy")) + sum(1 for _ in folder.rglob("*.png"))
        size = manifest["disk_mb"] / 1024 * (images / units if step.KIND == IMAGES else 1)   # weights and scores do not grow
        rows.append((step.name, whole / units * images / 3600, size, round(files / units) * images))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    for images in arguments.images:
        rows = needs(arguments.run, images)
        print(f"{images:,} images: {sum(row[1] for row in rows):,.0f} process hours, {sum(row[2] for row in rows):,.1f} GiB, "
              f"{sum(row[3] for row in rows):,} files")
        for step, hours, size, files in rows:
            print(f"  {step:<20} {hours:>12,.1f} h  {size:>10,.1f} GiB  {files:>13,} files")
