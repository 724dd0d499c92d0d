"""Process several images at the same time, in threads of one process, with the results in order.

With one image at a time a GPU is idle while images are read, resized and written. On the CPU the many small operations of a
dense CRF use several cores only in this way. A network does not gain: its large operations are faster with all threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from steps.runtime.context import StepContext, Stopped
from wsss.errors import WsssError

if TYPE_CHECKING:
    import torch

ON_GPU = 4                  # images: one is computed, the others are read and written
MOST = 8                    # images on the CPU
PIXELS_AT_ONCE = 2**21      # of all images on the CPU: a dense CRF needs about a kilobyte per pixel
TOGETHER = 8                # images in one batch on a GPU, and
PIXELS_TOGETHER = 2**20     # their pixels: five images of VOC. Not yet measured on a GPU
T = TypeVar("T")
_AGAIN: Any = object()


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lacks_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error; torch's allocator for the CPU raises a plain RuntimeError."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def memory_for(image_id: str) -> Iterator[None]:
    """Convert an out-of-memory error in the block to a WsssError with the id."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        raise WsssError(f"not enough memory for {image_id} ({type(error).__name__}: {error})") from error


def max_concurrent(device: torch.device, pixels: int | None = None, threads: int | None = None) -> int:
    """The number of images that a step processes at the same time.

    `pixels`: of the largest image; only for a step without a network, which gains on the CPU. `threads`: of the process; by
    default torch's number.
    """
    import torch

    if device.type == "cuda":
        return ON_GPU
    if pixels is None:
        return 1
    return max(1, min(threads or torch.get_num_threads(), MOST, PIXELS_AT_ONCE // max(1, pixels)))


def max_together(device: torch.device, pixels: int) -> int:
    """The number of images of `pixels` each that a network gets as one batch: on the CPU one, which is as fast."""
    return max(1, min(TOGETHER, PIXELS_TOGETHER // max(1, pixels))) if device.type == "cuda" else 1


def ordered_map(context: StepContext, make: Callable[[str], T], ids: Iterable[str],
                at_once: int) -> Generator[tuple[str, Callable[[], T]], None, None]:
    """Yield each id with a function that returns the result of `make(id)` or raises its error; in the order of `ids`.

    `make` must be thread-safe. Each call has an equal share of torch's threads, for any number of ids, so that an image made
    later or alone has the same bits. An image that runs out of memory is made again with no other image in progress, and
    raises WsssError if that fails too. Call each function before taking the next, and close the iterator.

    Raises Stopped after all images in progress are done, if the step is asked to stop before all images are started.
    """
    import torch

    if at_once == 1:
        for image_id in ids:
            context.runtime.check_stop()
            yield image_id, memory_for(image_id)(partial(make, image_id))
        return
    ids, threads, waiting = iter(ids), torch.get_num_threads(), deque[tuple[str, Future]]()
    pool = ThreadPoolExecutor(at_once, "image", _begin, (context.runtime.device, max(1, threads // at_once)))

    def result(image_id: str, future: Future) -> T:
        found = future.result()
        if found is _AGAIN:
            wait([other for _, other in waiting])
            with memory_for(image_id):
                found = pool.submit(make, image_id).result()
        return found

    def first() -> tuple[str, Callable[[], T]]:
        image_id, future = waiting.popleft()
        return image_id, partial(result, image_id, future)

    try:
        while not context.runtime.stop():
            for image_id in islice(ids, 2 * at_once - len(waiting)):
                waiting.append((image_id, pool.submit(_attempt, make, image_id)))
            if not waiting:
                return
            yield first()
        in_line = len(waiting)
        waiting = deque(each for each in waiting if not each[1].cancel())
        is_left = len(waiting) < in_line or next(ids, None) is not None
        while waiting:
            yield first()
        if is_left:
            raise Stopped
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _begin(device: torch.device, threads: int) -> None:
    """Initialise a thread: its share of torch's threads, and the GPU, because the current GPU is a setting of each thread."""
    import torch

    torch.set_num_threads(threads)
    if device.index is not None:
        torch.cuda.set_device(device)


def _attempt(make: Callable[[str], T], image_id: str) -> T:
    try:
        return make(image_id)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
    return _AGAIN       # not the error, which keeps the memory of the attempt alive
