"""The loop of every step that makes one artifact per image: finished images are skipped, new ones recorded."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from steps.runtime.artifacts import quarantine, read_json, write_json
from steps.runtime.concurrency import lacks_memory, max_concurrent, max_together, ordered_map
from steps.runtime.context import StepContext, Stopped
from steps.runtime.journal import BROKEN, JOURNALS, LACKING, Journal, lacking, unfinished
from steps.runtime.memory import trim_heap
from steps.runtime.packs import remove_damaged
from steps.runtime.store import Store, writer
from wsss.data.dataset import Dataset
from wsss.errors import ArtifactError, StorageError, WsssError

FAILED = "failed.json"
SHOWN = 3
Made = tuple[Mapping[str, bytes], dict[str, Any]]   # the files of an image by name, and the facts for the index
Done = tuple[str, Mapping[str, bytes], dict[str, Any]]   # the same after the digest of the image
SAMPLE = 100   # images whose sizes are read
T = TypeVar("T")


class ImagesFailed(WsssError):
    """Some images of a step failed; all others are done. `lacking`: how many of them because memory was not enough."""

    def __init__(self, message: str, lacking: int = 0):
        super().__init__(message)
        self.lacking = lacking


def with_fallback(work: Callable[[StepContext], T], context: StepContext) -> T:
    """Return `work(context)`. If images fail because the GPU has too little memory, and `Runtime.gpu_fallback` allows it, call it
    again on the CPU: it finds the others done, and makes these alone. Their lines in the index have "device": "cpu"."""
    try:
        return work(context)
    except ImagesFailed as error:
        if not error.lacking or not context.runtime.gpu_fallback or context.runtime.device.type == "cpu":
            raise
        lacking = error.lacking
    # after the except clause, because the error keeps alive the networks on the GPU
    import torch

    if context.runtime.group.is_main:
        context.runtime.warn(f"the GPU has too little memory for {lacking} of {len(context.shard_ids)} images: they are made on "
                             "the CPU now (gpu_fallback=cpu)")
    return work(replace(context, runtime=replace(context.runtime, device=torch.device("cpu"), fell_back=True)))


def for_each_image(context: StepContext, make: Callable[[str], Made], cpu_parallel: bool = False,
                   make_group: Callable[[Sequence[str]], Sequence[Made]] | None = None, added: Mapping[str, Any] | None = None,
                   add: Callable[[str, Sequence[str]], Made] | None = None) -> None:
    """Call `make(id)` for every id of this shard that has no complete artifact yet.

    `make` returns the files of one image, by their names in the step's folder, and the facts for the index. They must depend on
    that image alone, so that process, order and interruptions do not matter. Several threads may call it at once
    (`steps.runtime.concurrency`); on the CPU only with `cpu_parallel`, for steps without a network.

    `make_group(ids)` makes images of the same size in one batch, on a GPU, where that is faster. A batch changes rounding. So the
    groups are those of all ids of this process, and a group is made as a whole even if only some of it is missing. A batch for
    which memory is not enough is halved, down to single images; the line of an image in the index then has its size as "batch".

    `added`: kinds of results that `make` makes too (`steps.step.added`). For an image that lacks only some of them,
    `add(id, kinds)` makes these: their files, and as facts "added".

    Raises ImagesFailed at the end, if images failed: their ids and reasons are in `failed.json`; the others are done. Raises
    StorageError if nothing can be written. Finished images are kept.
    """
    ids, dataset, device = context.my_ids, context.dataset, context.runtime.device
    pending = unfinished(context.folder, ids, dataset, added=added)
    if add and added and LACKING in pending.values():
        make = _completing(Store(context.folder), pending, added, make, add)
    failed: dict[str, str] = {}
    lacking = 0
    journal = Journal(context.folder, context.runtime.worker)
    store = writer(context.runtime.layout, context.folder, journal.path)
    # from the whole list, not the pending images, so that an image always has the same bits
    at_once = max_concurrent(device, _largest(dataset, context.ids) if cpu_parallel else None)
    groups = _groups(context, pending, make_group is not None)
    made = ordered_map(context, lambda first: _make(context, groups[first], pending, make, make_group), groups, at_once)
    try:
        start, number = time.perf_counter(), len(ids) - len(pending)
        for first, result in made:
            for image_id, done in _each([each for each in groups[first] if each in pending], result):
                try:
                    _keep(context, store, journal, image_id, done, time.perf_counter() - start, pending[image_id] == BROKEN)
                except StorageError:
                    raise
                except WsssError as error:
                    failed[image_id] = str(error)
                    lacking += error.__cause__ is not None and lacks_memory(error.__cause__)
                    context.runtime.warn(f"{image_id}: {failed[image_id]}")
                    quarantine(error)
                number += 1
                context.runtime.progress(number, len(ids), "images")
                start = time.perf_counter()
            trim_heap()
    except Stopped:
        _record(context, failed)
        raise
    finally:
        made.close()
        journal.close()
        store.close()
    failed = {image_id: reason for part in context.runtime.group.all_gather(failed) for image_id, reason in part.items()}
    lacking = sum(context.runtime.group.all_gather(lacking))
    path = _record(context, failed)
    if failed:
        raise _failure(context, failed, path, lacking)


def _failure(context: StepContext, failed: Mapping[str, str], path: Path, lacking: int) -> ImagesFailed:
    """The error at the end of a step: `failed`, id -> reason, of which `lacking` by too little memory."""
    some = "; ".join(f"{image_id}: {reason}" for image_id, reason in list(failed.items())[:SHOWN])
    on_cpu = ", or set gpu_fallback=cpu, which makes those on the CPU for which the GPU has too little memory"
    return ImagesFailed(f"{len(failed)} of {len(context.shard_ids)} images failed, the others are done. {some}"
                        f"{'; ...' if len(failed) > SHOWN else ''}. All reasons are in {path}. Repair or remove these images"
                        f"{on_cpu if lacking and context.runtime.device.type != 'cpu' else ''}; the same command then tries only "
                        "them", lacking)


def _completing(store: Store, pending: Mapping[str, str], added: Mapping[str, Any], make: Callable[[str], Made],
                add: Callable[[str, Sequence[str]], Made]) -> Callable[[str], Made]:
    """`make`, which of an image that lacks only some kinds of `added` keeps what is there, and leaves the rest to `add`."""
    def complete(image_id: str) -> Made:
        if pending[image_id] != LACKING:
            return make(image_id)
        line = store.index[image_id]
        contents, facts = add(image_id, lacking(line, added))
        kept = {name: store.checked(image_id, name) for name in line["files"] if name not in contents}
        old = {key: value for key, value in line.items() if key not in ("id", "source", "seconds", "files", "pack", "added")}
        both = {**line.get("added", {}), **facts["added"]}
        # in the order of an image that was made at once
        return (dict(sorted({**kept, **contents}.items(), key=lambda item: (item[0].count("/"), item[0]))),
                {**old, "added": dict(sorted(both.items()))})
    return complete


def _groups(context: StepContext, pending: Collection[str], together: bool) -> dict[str, tuple[str, ...]]:
    """The images that are made together, by the first of each group: one image each, or `together` those of the same size."""
    device, dataset = context.runtime.device, context.dataset
    if not together or max_together(device, 1) == 1:
        return {image_id: (image_id,) for image_id in pending}
    by_size: dict[Any, list[str]] = {}
    for image_id in context.my_ids:
        size: Any = image_id         # alone
        with suppress(WsssError):    # it fails later, when it is made
            size = dataset.working_size(image_id)
        by_size.setdefault(size, []).append(image_id)
    groups: dict[str, tuple[str, ...]] = {}
    for size, ids in by_size.items():
        most = max_together(device, math.prod(size)) if isinstance(size, tuple) else 1
        groups |= {ids[i]: tuple(ids[i:i + most]) for i in range(0, len(ids), most)}
    return {first: group for first, group in groups.items() if any(image_id in pending for image_id in group)}


def _make(context: StepContext, ids: Sequence[str], pending: Collection[str], make: Callable[[str], Made],
          make_group: Callable[[Sequence[str]], Sequence[Made]] | None) -> dict[str, Done | WsssError]:
    """What is made of the pending images of a group: in one batch, in halves of it if memory is not enough, or one by one if it
    fails otherwise."""
    def digest(image_id: str) -> str:
        return context.dataset.digest_of_image(image_id)

    def alone(image_id: str) -> Done | WsssError:
        try:
            return digest(image_id), *make(image_id)
        except WsssError as error:
            return error

    def together(part: Sequence[str]) -> dict[str, Done | WsssError]:
        if not any(image_id in pending for image_id in part):
            return {}
        halved = {"batch": len(part)} if len(part) < len(ids) else {}
        if make_group is None or len(part) == 1:
            return {image_id: _with(alone(image_id), halved) for image_id in part if image_id in pending}
        try:
            return {image_id: _with((digest(image_id), *made), halved)
                    for image_id, made in zip(part, make_group(part), strict=True) if image_id in pending}
        except WsssError:   # of any of the images
            return {image_id: alone(image_id) for image_id in part if image_id in pending}
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
        # after the except clause, because the error keeps alive the memory of the attempt
        half = len(part) // 2
        return {**together(part[:half]), **together(part[half:])}
    return together(ids)


def _with(done: Done | WsssError, more: Mapping[str, Any]) -> Done | WsssError:
    """What was made of an image, with `more` facts for the index."""
    return done if isinstance(done, WsssError) else (*done[:2], {**done[2], **more})


def _each(ids: Sequence[str], result: Callable[[], dict[str, Done | WsssError]]) -> Iterable[tuple[str, Done | WsssError]]:
    """What was made of each image, or why not."""
    try:
        return result().items()
    except StorageError:
        raise
    except WsssError as error:   # not enough memory
        return [(image_id, error) for image_id in ids]


def _keep(context: StepContext, store: Any, journal: Journal, image_id: str, done: Done | WsssError, seconds: float,
          was_broken: bool) -> None:
    """Write what was made of an image and record it; raise its error if it failed."""
    if isinstance(done, WsssError):
        raise done
    source, contents, facts = done
    journal.add(image_id, store.write(contents), seconds, source=source,
                **{**facts, **({"device": "cpu"} if context.runtime.fell_back else {}),
                   "classes": list(context.dataset.labels[image_id])})
    if was_broken:
        for name in contents:
            remove_damaged(context.folder, name)


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
