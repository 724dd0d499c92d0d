"""Random draws that depend only on the seed and on their purpose.

Every draw of the project comes from `generator(seed, *what)`, for example `generator(seed, "train_cam", epoch, image_id)`;
torch's own draws (initialisers, dropout) come from `seeded(derived_seed(seed, *what))`.
So a draw does not depend on the number of workers or ranks, on the order of work, or on interruptions of a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derived_seed(seed: int, *what: str | int) -> int:
    """A 63-bit seed for the purpose `what`, the same on every machine and Python version."""
    text = "\x1f".join([str(int(seed)), *map(str, what)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A NumPy generator for the purpose `what`."""
    return np.random.default_rng(derived_seed(seed, *what))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's generators of the CPU and of a CUDA `device` with `seed` inside the block, and restore them after it."""
    import torch

    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
