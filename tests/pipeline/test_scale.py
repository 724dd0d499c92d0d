"""Runs of many images."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "numbers", "files"), [("files", (10_000,), 10_002), ("packed", (50_000, 200_000), 5)])
def test_a_million_images(layout, numbers, files):
    """Status, plan and the call that ends an interrupted step; the numbers are printed, see docs/scaling.md. From the growth of the
    memory follows that of a million images: 0.4, 0.3 and 0.5 GB more than without any."""
    rows = []
    for ids in numbers:
        measured = subprocess.run([sys.executable, "-m", "benchmarks.status", "--ids", str(ids), "--layout", layout], cwd=ROOT,
                                  capture_output=True, text=True)
        assert measured.returncode == 0, measured.stderr
        rows.append(found := json.loads(measured.stdout))
        print(found)
        assert (found["state"], found["done"], found["total"]) == ("partial", ids - 3, ids)
        assert abs(found["files"] - files) < 9 and (found["made"], found["images"]) == (3, ids)
    for peaks, limit in (([row["peak_mb"] for row in rows], 400), ([row["plan"]["peak_mb"] for row in rows], 300),
                         ([row["run"]["peak_mb"] for row in rows], 500)):
        assert peaks[-1] - peaks[0] <= limit * (numbers[-1] - numbers[0]) / 1e6, rows
        assert peaks[0] < 850
