"""Reuse and release of freed memory.

glibc returns large freed blocks to the system and gets new ones zeroed, page by page, which takes two fifths of a training step
at 512 px. So a process of the pipeline keeps freed memory for reuse (`keep_heap`).

With images of many sizes the heap would then fragment and grow to several times what is needed. So all free memory is returned
when the process has grown by `SLACK` over what one image left.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

SLACK = 256 * 2**20   # bytes
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4   # options of mallopt, <malloc.h>


def resident() -> int | None:
    """Bytes that this process holds in memory; None without /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def keep_heap() -> None:
    """Keep freed memory from now on; without glibc do nothing."""
    if set_option := _of_libc("mallopt"):
        set_option(_MMAP_MAX, 0)          # large blocks too come from the heap,
        set_option(_TRIM_THRESHOLD, -1)   # which does not shrink by itself


def _of_libc(name: str) -> Callable | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):   # not glibc
        return None


class _Heap:
    """The memory of the process since the last release."""

    def __init__(self) -> None:
        self.trim = _of_libc("malloc_trim")
        self.base: int | None = None   # bytes held after the first image since then

    def trim_heap(self) -> None:
        """After each image: return free memory to the system if the process has grown by `SLACK`."""
        held = resident() if self.trim else None
        if held is None:
            return
        if self.base is None:
            self.base = held
        elif held > self.base + SLACK:
            self.release()

    def release(self) -> None:
        """After a step: return all free memory to the system."""
        if self.trim:
            self.trim(0)
            self.base = None


_heap = _Heap()
trim_heap, release = _heap.trim_heap, _heap.release
