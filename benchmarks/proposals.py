"""Class-agnostic masks of a data set, to measure `refiner=proposals`: `python -m benchmarks.proposals KIND DIR [KEY=VALUE ...]`.

`drawn`: the objects of the ground truth with an uneven outline, each in two to four parts besides, and six pieces of the
background: what a good generator of masks finds, as ID.json in the form of Segment Anything. `slic`, `felzenszwalb`: superpixels
of scikit-image (`pip install scikit-image`), as ID.png. The keys choose the data set, as for run_pipeline.py.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from pipeline import Pipeline
from wsss.data.dataset import Dataset
from wsss.palette import IGNORE

ROUGH = 2.0    # pixels: standard deviation of the outline of a drawn mask
SMOOTH = 6.0   # pixels: length of its waves
PIECES = 6     # of the background
LEAST = 30     # pixels of an object
SUPERPIXELS = {"slic": {"n_segments": 250, "compactness": 10, "start_label": 1},
               "felzenszwalb": {"scale": 100, "sigma": 0.8, "min_size": 50}}


def drawn(dataset: Dataset, image_id: str) -> list[np.ndarray]:
    """Masks (H, W) bool of an image."""
    rng, truth = np.random.default_rng(zlib.crc32(image_id.encode())), dataset.mask(image_id)
    masks = []
    for inside in objects(dataset, image_id, truth):
        whole = rough(inside, rng)
        masks += [whole, *parts(whole, int(rng.integers(2, 5)), rng)]
    background = [rough(part, rng) for part in parts((truth == 0) | (truth == IGNORE), PIECES, rng)]
    return [mask for mask in masks + background if mask.any()]


def objects(dataset: Dataset, image_id: str, truth: np.ndarray) -> Iterator[np.ndarray]:
    """The objects of the ground truth, or the connected regions of its mask."""
    if dataset.has_instances(image_id):
        yield from dataset.instances(image_id)[0]
        return
    for value in set(np.unique(truth)) - {0, IGNORE}:
        labels, count = ndimage.label(truth == value)
        yield from (labels == number for number in range(1, count + 1) if (labels == number).sum() >= LEAST)


def rough(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask with an uneven outline."""
    waves = ndimage.gaussian_filter(rng.standard_normal(mask.shape), SMOOTH)
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return distance + ROUGH * waves / waves.std() > 0


def parts(mask: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The mask cut into `count` parts, by the nearest of as many points in it; nothing if it is tiny."""
    inside = np.argwhere(mask)
    if len(inside) < count * LEAST:
        return []
    points = inside[rng.choice(len(inside), count, replace=False)]
    places = np.indices(mask.shape).transpose(1, 2, 0)[:, :, None]   # (H, W, 1, 2)
    nearest = ((places - points) ** 2).sum(3).argmin(2)
    return [mask & (nearest == number) for number in range(count)]


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's run lengths, uncompressed."""
    flat = np.pad(mask.T.ravel().astype(np.int8), 1)
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def write(kind: str, dataset: Dataset, folder: Path) -> int:
    """Write the proposals of all images with a mask; returns their number."""
    ids = [image_id for image_id in dataset.lists["all"] if kind != "drawn" or dataset.has_masks([image_id])]
    for image_id in ids:
        path = folder / f"{image_id}.{'json' if kind == 'drawn' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "drawn":
            path.write_text(json.dumps([{"segmentation": run_lengths(mask), "area": int(mask.sum())}
                                        for mask in drawn(dataset, image_id)]))
        else:
            import skimage.segmentation

            labels = getattr(skimage.segmentation, kind)(dataset.full_image(image_id), **SUPERPIXELS[kind])
            Image.fromarray((labels + (labels.min() == 0)).astype(np.uint16)).save(path)
    return len(ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("drawn", *SUPERPIXELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    pipeline = Pipeline.compose(*options.words)
    pipeline.plan()   # draws the embedded set
    print(f"{write(options.kind, pipeline.dataset, options.folder)} images in {options.folder}")
