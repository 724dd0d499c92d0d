"""Freed memory is kept; it is given back where the process grows by it, and only there."""

import sys

import pytest

from steps.runtime import memory
from steps.runtime.memory import SLACK


@pytest.fixture
def heap(monkeypatch):
    """A heap whose process holds `heap.held` bytes; giving back leaves `heap.live` of them and is counted."""
    heap = memory._Heap()
    heap.grows = True
    heap.held, heap.live, heap.trims = 10 * SLACK, 2 * SLACK, 0

    def trim(pad: int) -> None:
        heap.trims, heap.held = heap.trims + 1, heap.live
    heap.trim = trim
    monkeypatch.setattr(memory, "resident", lambda: heap.held)
    return heap


def test_nothing_is_done_until_the_process_has_grown(heap):
    heap.give_back()
    assert (heap.trims, heap.floor) == (1, 2 * SLACK)
    heap.held = 3 * SLACK
    heap.give_back()
    assert heap.trims == 1
    heap.held = 3 * SLACK + 1
    heap.give_back()
    assert (heap.trims, heap.held) == (2, 2 * SLACK)


def test_what_is_in_use_is_not_asked_for_again_and_again(heap):
    heap.live = heap.held = 9 * SLACK
    for _ in range(5):
        heap.give_back()
    assert heap.trims == 1


def test_growth_counts_from_the_least_that_was_held(heap):
    heap.give_back()
    heap.held = SLACK // 2      # large blocks go back by themselves
    heap.give_back()
    heap.held = 2 * SLACK
    heap.give_back()
    assert heap.trims == 2


def test_without_the_cache_of_small_blocks_nothing_grows(heap, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.check=0:{memory.TUNABLE}")
    heap.grows = memory._Heap().grows
    heap.give_back()
    assert heap.trims == 0
    heap.release()
    assert (heap.trims, heap.floor) == (1, heap.live)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the option is glibc's")
def test_the_command_line_starts_again_without_that_cache(monkeypatch):
    started = []
    monkeypatch.setattr(memory.os, "execv", lambda *call: started.append(call))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "run_pipeline.py", "seed=1"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    before = sys.gettrace()
    sys.settrace(lambda *event: None)   # a debugger
    memory.start_again()
    sys.settrace(before)
    assert not started
    memory.start_again()
    assert started == [(sys.executable, [sys.executable, "-X", "dev", "run_pipeline.py", "seed=1"])]
    assert memory.os.environ["GLIBC_TUNABLES"] == f"glibc.malloc.check=0:{memory.TUNABLE}"
    memory.start_again()
    assert len(started) == 1


def test_other_systems_are_left_alone(heap, monkeypatch):
    heap.trim = None
    heap.give_back()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())   # a C library without malloc_trim
    assert memory._Heap().trim is None
    heap = memory._Heap()
    monkeypatch.setattr(memory, "resident", lambda: None)
    heap.give_back()


def test_this_process_holds_something():
    memory.give_back()
    assert 50 * 2**20 < memory.resident() < 64 * 2**30
