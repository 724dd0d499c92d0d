"""Random draws that depend on what is drawn for, and on nothing else.

Every draw of the project comes from `generator(seed, *what)`, for example `generator(seed, "train_cam", epoch, image_id)`.
It therefore does not depend on the number of workers or ranks, on the order of work, or on where a run was interrupted.
"""

import hashlib

import numpy as np


def derived_seed(seed: int, *what: str | int) -> int:
    """A 63-bit seed for the purpose `what`, equal on every machine and Python version."""
    text = "\x1f".join([str(int(seed)), *map(str, what)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A NumPy generator for the purpose `what`."""
    return np.random.default_rng(derived_seed(seed, *what))

