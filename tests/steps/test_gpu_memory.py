"""A GPU with too little memory: batches are halved, and with gpu_fallback=cpu single images are made on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import Pipeline
from pipeline.contexts import make_runtime
from steps.runtime.context import Group, Runtime, StepContext
from steps.runtime.inference import ImagesFailed, for_each_image, with_fallback
from steps.runtime.journal import Lines, merge_journals
from wsss.data.dataset import Dataset
from wsss.errors import DataError

IDS = tuple("abcdefg")
CUDA = torch.device("cuda")   # nothing is computed on it


@pytest.fixture
def context(tmp_path):
    """Seven images, of which g is larger than the others."""
    for image_id in IDS:
        Image.fromarray(np.full((8, 16 if image_id == "g" else 8, 3), ord(image_id), np.uint8)).save(tmp_path / f"{image_id}.png")
    dataset = Dataset(name="few", root=tmp_path, classes=("cat",), lists={"train": IDS, "val": (), "all": IDS}, labels=dict.fromkeys(IDS, (0,)),
                      image_files={image_id: f"{image_id}.png" for image_id in IDS})
    (tmp_path / "step").mkdir()
    return StepContext("step", None, dataset, {"ids": IDS}, tmp_path / "step", runtime=Runtime(device=CUDA))


def work_with(most: int, calls: list):
    """A step whose GPU has memory for `most` images of 8 x 8 pixels at once."""
    def work(context):
        on_gpu = context.runtime.device.type == "cuda"

        def make_group(ids):
            calls.append((context.runtime.device.type, "".join(ids)))
            if on_gpu and sum(context.dataset.image(image_id)[..., 0].size for image_id in ids) > 64 * most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return [({f"{image_id}.txt": image_id.encode()}, {}) for image_id in ids]
        for_each_image(context, lambda image_id: make_group([image_id])[0], make_group=make_group)
        return "result"
    return work


def lines(context) -> dict[str, tuple]:
    merge_journals(context.folder, IDS)
    return {image_id: (line.get("batch"), line.get("device")) for image_id, line in Lines(context.folder).items()}


@pytest.mark.parametrize(("most", "batches", "size"), [(8, ["abcdef", "g"], None), (4, ["abcdef", "abc", "def", "g"], 3),
                                                       (2, ["abcdef", "abc", "a", "bc", "def", "d", "ef", "g"], None)])
def test_a_batch_is_halved(context, most, batches, size):
    calls: list = []
    assert with_fallback(work_with(most, calls), context) == "result"
    assert sorted(calls) == sorted(("cuda", batch) for batch in batches)
    found = lines(context)
    if most != 2:
        assert found == {**dict.fromkeys("abcdef", (size, None)), "g": (None, None)}
    else:
        assert found == {"a": (1, None), "b": (2, None), "c": (2, None), "d": (1, None), "e": (2, None), "f": (2, None), "g": (None, None)}
    assert all((context.folder / f"{image_id}.txt").read_text() == image_id for image_id in IDS)


def test_what_is_too_large_alone_is_an_error_that_names_the_key(context):
    with pytest.raises(ImagesFailed, match="1 of 7 images failed.*g: not enough memory for g .*CUDA out of memory.*or set gpu_fallback=cpu"):
        with_fallback(work_with(1, []), context)
    assert set(lines(context)) == set("abcdef")


def test_or_it_is_made_on_the_cpu_and_its_line_says_so(context):
    calls, warned = [], []
    runtime = replace(context.runtime, gpu_fallback=True, warn=warned.append)
    assert with_fallback(work_with(1, calls), replace(context, runtime=runtime)) == "result"
    assert [ids for device, ids in calls if device == "cpu"] == ["g"]
    assert lines(context) == {**dict.fromkeys("abcdef", (1, None)), "g": (None, "cpu")}
    assert warned[-1].startswith("the GPU has too little memory for 1 of 7 images: ") and not (context.folder / "failed.json").exists()


@pytest.mark.cuda
def test_the_error_of_the_gpu_itself(context):
    """The allocator of a GPU with 160 MiB, for images of 64 MiB, and one of 256 MiB."""
    def work(context):
        def make_group(ids):
            if context.runtime.device.type == "cuda":
                torch.ones(sum(2**26 if image_id != "g" else 2**28 for image_id in ids), dtype=torch.uint8, device=context.runtime.device).sum()
            return [({f"{image_id}.txt": image_id.encode()}, {}) for image_id in ids]
        for_each_image(context, lambda image_id: make_group([image_id])[0], make_group=make_group)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 160 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with_fallback(work, replace(context, runtime=replace(context.runtime, gpu_fallback=True)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    found = lines(context)
    assert found.pop("g") == (None, "cpu") and all(size in (1, 2) and device is None for size, device in found.values()) and len(found) == 6


def test_another_error_is_no_reason_for_the_cpu(context):
    def work(context):
        assert context.runtime.device == CUDA

        def make(image_id):
            if image_id == "c":
                raise DataError("it is damaged")
            return {f"{image_id}.txt": b""}, {}
        for_each_image(context, make)
    with pytest.raises(ImagesFailed, match="c: it is damaged. All reasons are in .*Repair or remove these images; the same"):
        with_fallback(work, replace(context, runtime=replace(context.runtime, gpu_fallback=True)))


def test_the_key_is_that_of_the_runtime():
    for word, expected in (("error", False), ("cpu", True)):
        config = Pipeline.compose("experiment=smoke", f"gpu_fallback={word}").config
        assert make_runtime(config, torch.device("cpu"), Group()).gpu_fallback is expected
