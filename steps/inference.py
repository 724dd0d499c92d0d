"""The loop of every step that makes one artifact an image: what is done is skipped, what is new is recorded."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from steps.artifacts import damaged_name, read_json, set_aside, write_json
from steps.context import StepContext, Stopped
from steps.journal import JOURNALS, Journal, unfinished
from steps.memory import give_back
from wsss.errors import ArtifactError, StorageError, WsssError

FAILED = "failed.json"
SHOWN = 3


class ImagesFailed(WsssError):
    """Some images of a step failed; all others are done."""


def for_each_image(context: StepContext, make: Callable[[str], tuple[Iterable[Path], dict[str, Any]]]) -> None:
    """Call `make(id)` for every id of this shard that has no complete artifact yet.

    `make` writes the files of one image and returns them with the facts that go into the index. The result for an
    image must depend on that image alone: then it does not matter who makes it, when, and after what interruption.

    Raises
    ------
    ImagesFailed
        at the end, when images failed: their ids and reasons stand in `failed.json`; the others are done.
    StorageError
        when nothing can be written. What was finished before stays.
    """
    ids, dataset = context.my_ids, context.dataset
    pending = list(unfinished(context.folder, ids, dataset))
    failed: dict[str, str] = {}
    journal = Journal(context.folder, context.shard)
    try:
        for number, image_id in enumerate(pending, start=len(ids) - len(pending) + 1):
            context.check_stop()
            start = time.perf_counter()
            try:
                source = dataset.digest_of_image(image_id)
                files, facts = make(image_id)
            except StorageError:
                raise
            except (WsssError, MemoryError, torch.OutOfMemoryError) as error:
                failed[image_id] = _reason(error)
                context.warn(f"{image_id}: {failed[image_id]}")
                set_aside(error)
            else:
                journal.add(image_id, files, time.perf_counter() - start, source=source,
                            **{**facts, "classes": list(dataset.labels[image_id])})
                for path in files:
                    damaged_name(path).unlink(missing_ok=True)
            context.progress(number, len(ids), "images")
            give_back()
    except Stopped:
        _record(context, failed)
        raise
    finally:
        journal.close()
    path = _record(context, failed)
    if failed:
        some = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failed.items())[:SHOWN])
        raise ImagesFailed(f"{len(failed)} of {len(ids)} images failed, the others are done. {some}"
                           f"{'; ...' if len(failed) > SHOWN else ''}. All reasons stand in {path}. Mend or remove these images, "
                           "then the same command tries only them")


def failures(folder: Path) -> dict[str, str]:
    """The images that failed when the step last worked in `folder`: id -> reason."""
    paths = [folder / FAILED, *sorted(folder.glob(f"{JOURNALS}/*-{FAILED}"))]
    found: dict[str, str] = {}
    for path in paths:
        with suppress(ArtifactError, AttributeError, ValueError, TypeError):   # it only informs: a damaged one says nothing
            found.update({str(image_id): str(reason) for image_id, reason in read_json(path).items()})
    return found


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, WsssError) else f"not enough memory ({type(error).__name__}: {error})"


def _record(context: StepContext, failed: dict[str, str]) -> Path:
    """Write the failures of this shard, or remove the file of an earlier call."""
    index, count = context.shard
    path = context.folder / (FAILED if count == 1 else f"{JOURNALS}/{index}-of-{count}-{FAILED}")
    if failed:
        write_json(path, failed)
    else:
        path.unlink(missing_ok=True)
    return path
