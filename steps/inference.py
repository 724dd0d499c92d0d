"""The loop of every step that makes one artifact an image: what is done is skipped, what is new is recorded."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steps.context import StepContext
from steps.journal import Journal, is_whole, read_journals
from wsss.errors import WsssError


def for_each_image(context: StepContext, make: Callable[[str], tuple[Iterable[Path], dict[str, Any]]]) -> None:
    """Call `make(id)` for every id of this shard that has no complete artifact yet.

    `make` writes the files of one image and returns them with the facts that go into the index. The result for an
    image must depend on that image alone: then it does not matter who makes it, when, and after what interruption.

    Raises
    ------
    WsssError
        when an image fails: the message starts with its id. What was finished before stays.
    """
    done = read_journals(context.folder)
    pending = [image_id for image_id in context.my_ids
               if not is_whole(context.folder, done.get(image_id), context.dataset.digest_of_image(image_id))]
    total = len(context.my_ids)
    journal = Journal(context.folder, context.shard)
    try:
        for number, image_id in enumerate(pending, start=total - len(pending) + 1):
            context.check_stop()
            start, source = time.perf_counter(), context.dataset.digest_of_image(image_id)
            try:
                files, facts = make(image_id)
                journal.add(image_id, files, time.perf_counter() - start, source=source, **facts)
            except WsssError as error:
                raise type(error)(f"{image_id}: {error}") from error
            context.progress(number, total, "images")
    finally:
        journal.close()

