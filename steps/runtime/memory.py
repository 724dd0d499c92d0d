"""What happens to memory that tensors have freed.

glibc gives large blocks back to the system, and what comes from the system comes zeroed, page by page: two fifths of a training
step at 512 px. So a process of the pipeline keeps what it has freed for what is to come (`keep_freed`).

Where every image has another size the process would then grow from image to image, to several times what it needs, since small
blocks come to lie between the large ones. They come from the free ends that glibc's cache of each thread holds back. Without that
cache the heap stays what the largest image needs; it can only be switched off when a process starts, by `TUNABLE`, and
`run_pipeline.py` sees to it. In a process that has the cache everything free is given back whenever it has grown by `SLACK`.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

TUNABLE = "glibc.malloc.tcache_count=0"   # in the environment variable GLIBC_TUNABLES
SLACK = 256 * 2**20   # bytes
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4   # options of mallopt, <malloc.h>


def start_again() -> None:
    """Start this process again without the cache of small blocks. Not under a debugger, which would lose it, and not where
    GLIBC_TUNABLES already says something of that cache."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    glibc = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
    if glibc and "tcache_count" not in tunables and sys.gettrace() is None and "pydevd" not in sys.modules:
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, TUNABLE]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def resident() -> int | None:
    """Bytes that this process holds in memory; None where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def keep_freed() -> None:
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
    """The memory of the process, as it was after it last gave something back."""

    def __init__(self) -> None:
        self.floor = 0
        self.trim = _of_libc("malloc_trim")
        self.grows = TUNABLE not in os.environ.get("GLIBC_TUNABLES", "")

    def give_back(self) -> None:
        """After each image: gives back what is free where it has grown."""
        held = resident() if self.trim and self.grows else None
        if held is None:
            return
        if held > self.floor + SLACK:
            self.release()
        else:
            self.floor = min(self.floor, held)

    def release(self) -> None:
        """After a step: gives back all that is free."""
        if self.trim:
            self.trim(0)
            self.floor = resident() or 0


_heap = _Heap()
give_back, release = _heap.give_back, _heap.release
