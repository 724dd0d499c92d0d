"""Several images at work at the same time, in threads of one process, and their results in order.

On a GPU one image alone leaves it waiting while the image is read, resized and written. On the CPU the many small operations of a
dense CRF keep several cores busy only so; a network does not gain: its large operations are done faster by all threads together.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from steps.context import StepContext, Stopped

ON_GPU = 4       # images: one computes, the others are read and written
MOST = 8         # images on the CPU, for each of them takes memory
T = TypeVar("T")


def images_at_once(device: torch.device, small_operations: bool = False) -> int:
    """How many images a step works on at the same time; `small_operations`: it has no network, so on the CPU it gains by it."""
    if device.type == "cuda":
        return ON_GPU
    return min(torch.get_num_threads(), MOST) if small_operations else 1


def in_order(context: StepContext, make: Callable[[str], T], ids: Iterable[str],
             at_once: int) -> Iterator[tuple[str, Callable[[], T]]]:
    """Each id with a function that returns what `make(id)` has returned, or raises what it has raised; in the order of `ids`.

    `make` must allow several threads; they share the process's threads. What there was no memory for is made again by itself.
    The iterator is to be closed.

    Raises
    ------
    Stopped
        when the step is asked to stop, after all that was begun.
    """
    if at_once == 1:
        for image_id in ids:
            context.check_stop()
            yield image_id, lambda image_id=image_id: make(image_id)
        return
    threads, waiting, stopped = torch.get_num_threads(), deque[tuple[str, Future]](), False

    def begin() -> None:
        torch.set_num_threads(max(1, threads // at_once))
        if context.device.index is not None:
            torch.cuda.set_device(context.device)   # each thread has one of its own

    def first() -> tuple[str, Callable[[], T]]:
        image_id, future = waiting.popleft()

        def result() -> T:
            try:
                return future.result()
            except (MemoryError, torch.OutOfMemoryError):
                wait([other for _, other in waiting])
                return make(image_id)
        return image_id, result

    pool = ThreadPoolExecutor(at_once, "image", begin)
    try:
        for image_id in ids:
            stopped = context.stop()
            if stopped:
                break
            waiting.append((image_id, pool.submit(make, image_id)))
            if len(waiting) == 2 * at_once:
                yield first()
        while waiting:
            if stopped and waiting[0][1].cancel():
                waiting.popleft()
            else:
                yield first()
        if stopped:
            raise Stopped
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
