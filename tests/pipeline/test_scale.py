"""A run of a million images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_status_of_a_million_images():
    """The time is printed by the same command; see docs/running.md."""
    measured = subprocess.run([sys.executable, "-m", "benchmarks.status", "--ids", "1000000"], cwd=ROOT, capture_output=True, text=True)
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout)
    print(found)
    assert (found["state"], found["done"], found["total"]) == ("partial", 999_997, 1_000_000)
    assert found["peak_mb"] < 1000
