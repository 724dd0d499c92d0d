"""The reference case: what the official LPCAM code (39cdd8d) computes on four images (tests/reference_case/README.md)."""

import json
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "reference_case"
IDS = tuple((REFERENCE / "list.txt").read_text().split())
EXPECTED = json.loads((REFERENCE / "expected.json").read_text())


def load(folder: str, image_id: str) -> dict[str, np.ndarray]:
    """The arrays of one `.npz` of the reference case, for example `load("cam", "2007_000700")`."""
    with np.load(REFERENCE / folder / f"{image_id}.npz") as file:
        return dict(file)
