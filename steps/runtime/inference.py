"""The loop of every step that makes one artifact per image: finished images are skipped, new ones recorded."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from steps.runtime.artifacts import quarantine, read_json, write_json
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext, Stopped
from steps.runtime.journal import BROKEN, JOURNALS, Journal, unfinished
from steps.runtime.memory import trim_heap
from steps.runtime.packs import remove_damaged
from steps.runtime.store import writer
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, StorageError, WsssError

FAILED = "failed.json"
SHOWN = 3
Made = tuple[Mapping[str, bytes], dict[str, Any]]   # the files of an image by name, and the facts for the index
SAMPLE = 100   # images whose sizes are read


class ImagesFailed(WsssError):
    """Some images of a step failed; all others are done."""


def for_each_image(context: StepContext, make: Callable[[str], Made], cpu_parallel: bool = False) -> None:
    """Call `make(id)` for every id of this shard that has no complete artifact yet.

    `make` returns the files of one image, by their names in the step's folder, and the facts for the index. They must depend on
    that image alone, so that process, order and interruptions do not matter. Several threads may call it at once
    (`steps.runtime.concurrency`); on the CPU only with `cpu_parallel`, for steps without a network.

    Raises
    ------
    ImagesFailed
        at the end, if images failed: their ids and reasons are in `failed.json`; the others are done.
    StorageError
        if nothing can be written. Finished images are kept.
    """
    ids, dataset = context.my_ids, context.dataset
    pending = unfinished(context.folder, ids, dataset)
    failed: dict[str, str] = {}
    journal = Journal(context.folder, context.runtime.worker)
    store = writer(context.runtime.layout, context.folder, journal.path)
    # from the whole list, not the pending images, so that an image always has the same bits
    at_once = max_concurrent(context.runtime.device, _largest(dataset, context.ids) if cpu_parallel else None)
    made = ordered_map(context, lambda image_id: (dataset.digest_of_image(image_id), *make(image_id)), pending, at_once)
    try:
        start = time.perf_counter()
        for number, (image_id, result) in enumerate(made, start=len(ids) - len(pending) + 1):
            try:
                source, contents, facts = result()
                placed = store.write(contents)
            except StorageError:
                raise
            except WsssError as error:
                failed[image_id] = str(error)
                context.runtime.warn(f"{image_id}: {failed[image_id]}")
                quarantine(error)
            else:
                journal.add(image_id, placed, time.perf_counter() - start, source=source,
                            **{**facts, "classes": list(dataset.labels[image_id])})
                if pending[image_id] == BROKEN:
                    for name in contents:
                        remove_damaged(context.folder, name)
            context.runtime.progress(number, len(ids), "images")
            trim_heap()
            start = time.perf_counter()
    except Stopped:
        _record(context, failed)
        raise
    finally:
        made.close()
        journal.close()
        store.close()
    failed = {image_id: reason for part in context.runtime.group.all_gather(failed) for image_id, reason in part.items()}
    path = _record(context, failed)
    if failed:
        some = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failed.items())[:SHOWN])
        raise ImagesFailed(f"{len(failed)} of {len(context.shard_ids)} images failed, the others are done. {some}"
                           f"{'; ...' if len(failed) > SHOWN else ''}. All reasons are in {path}. Repair or remove these images; "
                           "the same command then tries only them")


def failures(folder: Path) -> dict[str, str]:
    """The images that failed in the last run of the step in `folder`: id -> reason."""
    paths = [folder / FAILED, *sorted(folder.glob(f"{JOURNALS}/*-{FAILED}"))]
    found: dict[str, str] = {}
    for path in paths:
        with suppress(ArtifactError, AttributeError, ValueError, TypeError):   # for information only: skip a damaged file
            found.update({str(image_id): str(reason) for image_id, reason in read_json(path).items()})
    return found


def _largest(dataset: Dataset, ids: Sequence[str]) -> int:
    """Pixels of the largest image in a sample of a list, from the image headers."""
    pixels = [0]
    for image_id in ids[::max(1, -(-len(ids) // SAMPLE))]:
        with suppress(WsssError):     # it fails later, when it is made
            pixels.append(math.prod(dataset.working_size(image_id)))
    return max(pixels)


def _record(context: StepContext, failed: dict[str, str]) -> Path:
    """Write the failures of this shard, or remove the file of an earlier call if there are none."""
    index, count = context.runtime.shard
    path = context.folder / (FAILED if count == 1 else f"{JOURNALS}/{index}-of-{count}-{FAILED}")
    if not context.runtime.group.is_main:
        return path
    if failed:
        write_json(path, failed)
    else:
        path.unlink(missing_ok=True)
    return path
