"""Random draws that depend on what is drawn for, and on nothing else.

Every draw of the project comes from `generator(seed, *what)`, for example `generator(seed, "train_cam", epoch, image_id)`, and
what torch draws by itself (initialisers, dropout) from `seeded(derived_seed(seed, *what))`.
It therefore does not depend on the number of workers or ranks, on the order of work, or on where a run was interrupted.
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
    """A 63-bit seed for the purpose `what`, equal on every machine and Python version."""
    text = "\x1f".join([str(int(seed)), *map(str, what)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *what: str | int) -> np.random.Generator:
    """A NumPy generator for the purpose `what`."""
    return np.random.default_rng(derived_seed(seed, *what))


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch draws from `seed`, on the CPU and on a CUDA `device`; afterwards its generators continue as before."""
    import torch

    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
