"""Images in threads: in order, with their errors, each begun one finished, none begun after a stop."""

from contextlib import closing
from threading import Barrier

import pytest
import torch

from steps.context import StepContext, Stopped
from steps.side_by_side import MOST, ON_GPU, images_at_once, in_order


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def context(**more) -> StepContext:
    return StepContext(None, None, {}, None, {}, **more)


def results(make, ids, at_once, **more) -> list:
    with closing(in_order(context(**more), make, ids, at_once)) as made:
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
    with closing(in_order(context(), make, "abc", at_once)) as made:
        (_, a), (_, b), (_, c) = made
    assert a() == "a" and c() == "c"
    with pytest.raises(ValueError, match="^b$"):
        b()


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_what_lacks_memory_is_made_again_by_itself(error):
    at_work, most, tries = set(), [], []

    def make(image_id):
        at_work.add(image_id)
        try:
            tries.append(image_id)
            if image_id == "b":
                if tries.count("b") == 1:
                    raise error
                most.append(len(at_work))
            return image_id
        finally:
            at_work.remove(image_id)
    assert results(make, "abcdef", 3) == [(i, i) for i in "abcdef"]
    assert tries.count("b") == 2 and most == [1]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_stop_lets_what_is_begun_end_and_begins_no_more(at_once):
    begun, done = [], []

    def make(image_id):
        begun.append(image_id)
        return image_id
    with closing(in_order(context(stop=lambda: "b" in begun), make, "abcdefgh" * 100, at_once)) as made, pytest.raises(Stopped):
        for _, result in made:
            done.append(result())
    assert done == begun and begun[:2] == ["a", "b"] and len(begun) <= 2 + 2 * at_once


def test_nothing_goes_on_when_the_caller_leaves():
    begun = []

    def make(image_id):
        begun.append(image_id)
        return image_id
    with closing(in_order(context(), make, "abcdefgh" * 100, 2)) as made:
        next(made)
    number = len(begun)
    assert number <= 6 and torch.get_num_threads() == 4
    assert len(begun) == number


def test_how_many_images_are_at_work():
    assert images_at_once(torch.device("cuda", 1)) == ON_GPU
    assert images_at_once(torch.device("cpu")) == 1
    assert images_at_once(torch.device("cpu"), small_operations=True) == 4
    torch.set_num_threads(64)
    assert images_at_once(torch.device("cpu"), small_operations=True) == MOST
