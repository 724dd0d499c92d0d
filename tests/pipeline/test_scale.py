"""A run of a million images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "files"), [("files", 1_000_002), ("packed", 5)])
def test_a_million_images(layout, files):
    """Status, plan and the call that ends an interrupted step; the times are printed, see docs/scaling.md."""
    measured = subprocess.run([sys.executable, "-m", "benchmarks.status", "--ids", "1000000", "--layout", layout], cwd=ROOT,
                              capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout)
    print(found)
    assert (found["state"], found["done"], found["total"]) == ("partial", 999_997, 1_000_000)
    assert abs(found["files"] - files) < 9 and (found["made"], found["images"]) == (3, 1_000_000)
    assert found["peak_mb"] < 1000 and found["plan"]["peak_mb"] < 1000 and found["run"]["peak_mb"] < 1200
