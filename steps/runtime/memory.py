"""What happens to memory that tensors have freed.

glibc gives large blocks back to the system, and what comes from the system comes zeroed, page by page: two fifths of a training
step at 512 px. So a process of the pipeline keeps what it has freed for what is to come (`keep_heap`).

Where every image has another size the process would then grow from image to image, to several times what it needs, since small
blocks come to lie between the large ones: everything free is given back when it has grown by `SLACK` over what one image left.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

SLACK = 256 * 2**20   # bytes
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4   # options of mallopt, <malloc.h>


def resident() -> int | None:
    """Bytes that this process holds in memory; None where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def keep_heap() -> None:
    """From now on this process keeps what it frees; does nothing where the C library is not glibc."""
    if set_option := _of_libc("mallopt"):
        set_option(_MMAP_MAX, 0)          # large blocks too come from the heap,
        set_option(_TRIM_THRESHOLD, -1)   # which does not shrink by itself


def _of_libc(name: str) -> Callable | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):   # another C library, which needs no help or takes none
        return None


class _Heap:
    """The memory of the process since it was last given back."""

    def __init__(self) -> None:
        self.trim = _of_libc("malloc_trim")
        self.base: int | None = None   # bytes held after the first image since then, which an image needs

    def trim_heap(self) -> None:
        """After each image: gives back what is free where the process has grown."""
        held = resident() if self.trim else None
        if held is None:
            return
        if self.base is None:
            self.base = held
        elif held > self.base + SLACK:
            self.release()

    def release(self) -> None:
        """After a step: gives back all that is free."""
        if self.trim:
            self.trim(0)
            self.base = None


_heap = _Heap()
trim_heap, release = _heap.trim_heap, _heap.release
