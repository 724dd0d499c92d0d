"""Freed memory goes back to the system.

glibc keeps what tensors have freed for those to come. Where every image has another size little fits what was kept, and the
process grows from image to image, to several times what it needs. Giving back what is free makes an image take a tenth longer,
so it is done only where the process has grown by `SLACK` since.
"""

import ctypes
import os
from pathlib import Path

SLACK = 256 * 2**20   # bytes


def resident() -> int | None:
    """Bytes that this process holds in memory; None where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class _Heap:
    """The memory of the process, as it was after it last gave something back."""

    def __init__(self):
        self.floor = 0
        try:
            self.trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError, TypeError):   # another C library, which needs no help or takes none
            self.trim = None

    def give_back(self) -> None:
        held = resident() if self.trim else None
        if held is None:
            return
        if held > self.floor + SLACK:
            self.trim(0)
            held = resident() or held
            self.floor = held
        self.floor = min(self.floor, held)


give_back = _Heap().give_back   # to be called after each image; does nothing where the process has not grown
