"""A run of a million images."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "ids", "files"), [("files", 100_000, 100_002), ("packed", 1_000_000, 5)])
def test_a_million_images(layout, ids, files):
    """Status, plan and the call that ends an interrupted step; the times are printed, see docs/scaling.md. Files: a tenth of it."""
    measured = subprocess.run([sys.executable, "-m", "benchmarks.status", "--ids", str(ids), "--layout", layout], cwd=ROOT,
                              capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout)
    print(found)
    assert (found["state"], found["done"], found["total"]) == ("partial", ids - 3, ids)
    assert abs(found["files"] - files) < 9 and (found["made"], found["images"]) == (3, ids)
    assert found["peak_mb"] < 1000 and found["plan"]["peak_mb"] < 1000 and found["run"]["peak_mb"] < 1200
