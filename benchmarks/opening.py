"""Time to open a data set when its files are checked and when a marker skips the check: `python -m benchmarks.opening`."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from wsss.data import open_folder
from wsss.data.images import write_mask


def make_folder(root: Path, n: int) -> None:
    """`n` small images with the bytes of one file, each with its mask."""
    for name in ("images", "masks"):
        (root / name).mkdir()
    write_mask(root / "one.png", np.ones((24, 32), np.uint8))
    content = (root / "one.png").read_bytes()
    for number in range(n):
        for name in ("images", "masks"):
            (root / name / f"{number:06d}.png").write_bytes(content)
    (root / "classes.txt").write_text("cat\n")
    (root / "labels.csv").write_text("name,classes\n" + "".join(f"{number:06d},cat\n" for number in range(n)))


def measure(n: int) -> dict[str, float]:
    """Seconds by kind of check; the files are in the page cache in all cases."""
    with tempfile.TemporaryDirectory() as folder:
        root, marker, seconds = Path(folder, "set"), Path(folder, "marker"), {}
        os.mkdir(root)
        make_folder(root, n)
        for what, check in (("every file read", True), ("read and remembered", marker), ("known", marker), ("no check", False)):
            start = time.perf_counter()
            open_folder(root, check=check)
            seconds[what] = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    for what, seconds in measure(parser.parse_args().images).items():
        print(f"{what:<20} {seconds:.2f} s")
