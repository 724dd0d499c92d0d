"""Images in threads: in order, with their errors, each begun one finished, none begun after a stop."""

import time
import weakref
from contextlib import closing
from threading import Barrier, Event, Timer

import pytest
import torch

from steps.runtime.concurrency import MOST, ON_GPU, lacks_memory, max_concurrent, ordered_map
from steps.runtime.context import Runtime, StepContext, Stopped
from wsss.errors import WsssError


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def context(**more) -> StepContext:
    return StepContext("step", None, None, {}, None, runtime=Runtime(**more))


def results(make, ids, at_once, **more) -> list:
    with closing(ordered_map(context(**more), make, ids, at_once)) as made:
        return [(image_id, result()) for image_id, result in made]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_results_come_in_the_order_of_the_ids(at_once):
    assert results(str.upper, "abcdefghij", at_once) == [(i, i.upper()) for i in "abcdefghij"]
    assert results(str.upper, "", at_once) == []
    assert torch.get_num_threads() == 4


def test_they_are_at_work_together_and_share_the_threads():
    both = Barrier(2, timeout=20)   # breaks where one waits for the other

    def make(image_id):
        both.wait()
        return torch.get_num_threads()
    assert results(make, "abcd", 2) == [(i, 2) for i in "abcd"]
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_is_that_of_its_image(at_once):
    def make(image_id):
        if image_id == "b":
            raise ValueError(image_id)
        return image_id
    with closing(ordered_map(context(), make, "abc", at_once)) as made:
        assert next(made)[1]() == "a"
        with pytest.raises(ValueError, match="^b$"):
            next(made)[1]()
        assert next(made)[1]() == "c"


ERRORS = [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]


@pytest.mark.parametrize("error", ERRORS)
def test_what_lacks_memory_is_made_again_by_itself_without_what_the_first_attempt_took(error):
    class Array:
        """Something large."""
    at_work, tries, alone, held = set(), [], [], []

    def make(image_id):
        at_work.add(image_id)
        try:
            assert torch.get_num_threads() == 1   # of four, with three images at once
            tries.append(image_id)
            if image_id in "bc":
                if tries.count(image_id) == 1:
                    array = Array()
                    held.append(weakref.ref(array))
                    raise type(error)(*error.args)
                alone.append(at_work == {image_id})
                assert not any(array() for array in held)
            return image_id
        finally:
            at_work.remove(image_id)
    assert results(make, "abcdef", 3) == [(i, i) for i in "abcdef"]
    assert tries.count("b") == tries.count("c") == 2 and alone == [True, True]


@pytest.mark.parametrize("at_once", [1, 2])
def test_memory_that_is_not_enough_for_one_is_told_as_such(at_once):
    def make(image_id):
        raise ERRORS[-1]
    with pytest.raises(WsssError, match=r"^not enough memory for a \(RuntimeError: .*can't allocate memory"):
        results(make, "ab", at_once)
    with pytest.raises(RuntimeError, match="^another$") as told:
        results(lambda image_id: exec("raise RuntimeError('another')"), "ab", at_once)
    assert not lacks_memory(told.value)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_stop_lets_what_is_begun_end_and_begins_no_more(at_once):
    begun, done, asked = [], [], Event()

    def make(image_id):
        assert not asked.is_set() or image_id in begun_before
        begun.append(image_id)
        time.sleep(0.02)
        return image_id
    begun_before: set = set()

    def stop():
        if len(done) == 2 and not asked.is_set():
            begun_before.update(begun)
            asked.set()
        return asked.is_set()
    with closing(ordered_map(context(stop=stop), make, "abcdefgh" * 5, at_once)) as made, pytest.raises(Stopped):
        for _, result in made:
            done.append(result())
    assert sorted(done) == sorted(begun) and 2 <= len(done) <= 2 + 2 * at_once


def test_a_stop_is_heard_after_the_last_is_in_line_and_not_when_all_is_begun():
    done = []

    def stop_after(number):
        done.clear()
        with closing(ordered_map(context(stop=lambda: len(done) >= number), lambda i: time.sleep(0.02) or i, "abcdefgh", 4)) as made:
            for _, result in made:
                done.append(result())
    with pytest.raises(Stopped):
        stop_after(1)
    assert 1 <= len(done) < 8
    stop_after(8)
    assert len(done) == 8


def test_nothing_in_line_is_begun_when_the_caller_leaves():
    begun, go = [], Event()

    def make(image_id):
        begun.append(image_id)
        assert image_id == "a" or go.wait(20)
        return image_id
    with closing(ordered_map(context(), make, "abcdefgh", 2)) as made:
        _, result = next(made)
        assert result() == "a"
        Timer(0.1, go.set).start()
    assert len(begun) <= 3 and torch.get_num_threads() == 4   # "a" and the two at work; "d" was in line


def test_how_many_images_are_at_work():
    cpu, image = torch.device("cpu"), 375 * 500
    assert max_concurrent(torch.device("cuda", 1)) == ON_GPU
    assert max_concurrent(cpu) == 1
    assert [max_concurrent(cpu, image), max_concurrent(cpu, image, threads=2)] == [4, 2]
    assert max_concurrent(cpu, image, threads=64) == MOST
    assert [max_concurrent(cpu, pixels, threads=64) for pixels in (2**20, 2**21, 2**24)] == [2, 1, 1]
