"""Time and size of the report of a run with many images: `python -m benchmarks.report [--ids 10582]`.

Makes a run folder like that of PASCAL VOC's train_aug: 20 classes, images of 375x500 with noise that compresses no better than
images, pseudo masks, prototypes. The same few files are used for all images, under different names.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import Pipeline
from pipeline.report.page import write_report
from steps.parts.prototypes import FILE, NEAREST
from steps.runtime.artifacts import write_arrays
from steps.runtime.journal import JOURNALS, file_sum
from wsss.data.dataset import Dataset
from wsss.data.images import write_mask

N_CLASSES, N_FILES, SIZE = 20, 40, (375, 500)


def make_dataset(root: Path, n: int) -> Dataset:
    """A data set of `n` ids that share a few image and mask files; image i has the classes i and i + 7 (modulo 20)."""
    draws = np.random.default_rng(0)
    for i in range(N_FILES):
        rough = draws.integers(0, 256, (24, 32, 3), np.uint8)
        image = np.asarray(Image.fromarray(rough).resize(SIZE[::-1], Image.Resampling.BICUBIC), np.int16)
        image = np.clip(image + draws.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"{i}.jpg", quality=90)
        for kind, shift in (("truth", 0), ("made", i)):
            rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
            mask = np.zeros(SIZE, np.uint8)
            mask[(rows - 150) ** 2 + (columns - 200 - shift) ** 2 < 120 ** 2] = i % N_CLASSES + 1
            mask[(rows - 260) ** 2 + (columns - 360 + 2 * shift) ** 2 < 70 ** 2] = (i + 7) % N_CLASSES + 1
            write_mask(root / f"{kind}_{i}.png", mask)
    ids = tuple(f"{i:06d}" for i in range(n))
    return Dataset(name="many", root=root, classes=tuple(f"class {i}" for i in range(N_CLASSES)),
                   lists={"train": ids, "val": (), "all": ids},
                   labels={image_id: tuple(sorted((i % N_CLASSES, (i + 7) % N_CLASSES))) for i, image_id in enumerate(ids)},
                   image_files={image_id: f"{i % N_FILES}.jpg" for i, image_id in enumerate(ids)},
                   mask_files={image_id: f"truth_{i % N_FILES}.png" for i, image_id in enumerate(ids)})


def make_artifacts(pipeline: Pipeline, dataset: Dataset) -> None:
    """Make the folders of make_sem_seg_labels, with a pseudo mask of every id, and of make_lpcam, with prototypes."""
    for planned in pipeline._as_recorded({}).plan:
        folder = pipeline.folder.partial(planned.name, planned.fingerprint)
        if planned.name == "make_lpcam":
            n = 24 * N_CLASSES
            near = np.random.default_rng(1).choice(dataset.lists["train"], (n, NEAREST))
            write_arrays(folder / FILE, class_index=np.arange(n) // 24, is_background=np.arange(n) % 24 >= 12, near_id=near,
                         kept=np.arange(n) % 3 == 0, probability=np.linspace(0, 1, n, dtype=np.float32),
                         near_place=np.random.default_rng(2).random((n, NEAREST, 2), np.float32))
        if planned.name != "make_sem_seg_labels":
            continue
        (folder / JOURNALS).mkdir(parents=True)
        with open(folder / JOURNALS / "0-of-1.jsonl", "w") as journal:
            for i, image_id in enumerate(dataset.lists["train"]):
                made = dataset.root / f"made_{i % N_FILES}.png"
                os.link(made, folder / f"{image_id}.png")
                line = {"id": image_id, "source": dataset.digest_of_image(image_id), "height": SIZE[0], "width": SIZE[1],
                        "classes": list(dataset.labels[image_id]), "files": {f"{image_id}.png": file_sum(made)}}
                journal.write(json.dumps(line) + "\n")


def measure(n: int, outputs: Path) -> dict:
    """{"seconds", "again", "mb", "path"}: time of the first report, time of one with stored image scores, size, path."""
    (outputs / "data").mkdir(parents=True)
    pipeline = Pipeline.compose(f"outputs={outputs}", "name=many", "device=cpu")
    pipeline.dataset = make_dataset(outputs / "data", n)
    make_artifacts(pipeline, pipeline.dataset)
    found = {}
    for name in ("seconds", "again"):
        pipeline.dataset._digests.clear()
        start = time.perf_counter()
        path = write_report(pipeline._as_recorded({}))
        found[name] = round(time.perf_counter() - start, 2)
    return {"images": n, **found, "mb": round(path.stat().st_size / 2**20, 2), "path": str(path)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ids", type=int, default=10_582)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args().ids, Path(folder))))
