"""Freed memory is kept; it is given back where the process grows by it, and only there."""

import pytest

from steps.runtime import memory
from steps.runtime.memory import SLACK


@pytest.fixture
def heap(monkeypatch):
    """A heap whose process holds `heap.held` bytes; giving back leaves two `SLACK` of them and is counted."""
    heap = memory._Heap()
    heap.held, heap.trims = 9 * SLACK, 0

    def trim(pad: int) -> None:
        heap.trims, heap.held = heap.trims + 1, 2 * SLACK
    heap.trim = trim
    monkeypatch.setattr(memory, "resident", lambda: heap.held)
    return heap


def test_what_is_free_is_given_back_when_the_process_has_grown(heap):
    for held, trims in ((9, 0), (10, 0), (10 + 1 / SLACK, 1), (8, 1), (9, 1), (9 + 1 / SLACK, 2)):
        heap.held = int(held * SLACK)
        heap.trim_heap()
        assert heap.trims == trims, held


def test_what_an_image_needs_is_not_asked_for_again_and_again(heap):
    for _ in range(5):
        heap.held = 9 * SLACK   # whatever was given back before
        heap.trim_heap()
    assert heap.trims == 0
    heap.release()              # after a step
    heap.held = 20 * SLACK
    heap.trim_heap()
    assert heap.trims == 1      # another step: what its first image needs


def test_other_systems_are_left_alone(heap, monkeypatch):
    heap.trim = None
    heap.trim_heap()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())   # a C library without malloc_trim
    assert memory._Heap().trim is None
    heap = memory._Heap()
    monkeypatch.setattr(memory, "resident", lambda: None)
    heap.trim_heap()


def test_this_process_holds_something():
    memory.trim_heap()
    assert 50 * 2**20 < memory.resident() < 64 * 2**30
