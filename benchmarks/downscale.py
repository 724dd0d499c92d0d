"""What a coarse grid costs: the ground truth as a map, reduced by a factor and enlarged again, scored by PxAP and by its boxes.

    python -m benchmarks.downscale [--images N] [--factors 2,4,...] [data=shapes ...]

No map on a grid of that stride can be expected to score more (the simulation of F-CAM, Belharbi et al., WACV 2022). The words
after the options are those of a run: data=folder data.root=DIR, for example. The list is train.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.config import compose, typed
from steps.runtime.datasets import open_dataset
from wsss.data.dataset import Dataset
from wsss.metrics.boxes import boxes_above, component_boxes, score_map, thresholds_at
from wsss.metrics.localisation import BoxAccuracy, PixelPrecision
from wsss.palette import IGNORE

FACTORS = (1, 2, 4, 8, 16, 32)
GRID = thresholds_at(0.05)


def reduced(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask (H, W) bool as a map (H, W) float32 in [0, 1]: its mean in cells of `factor` pixels, enlarged (bilinear)."""
    small = F.interpolate(torch.from_numpy(mask).float()[None, None], [-(-side // factor) for side in mask.shape], mode="area")
    return score_map(F.interpolate(small, mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy())


def scores(dataset: Dataset, ids: Sequence[str], factor: int) -> tuple[float | None, float]:
    """PxAP and MaxBoxAcc, in [0, 1], of the masks reduced by a factor; boxes are those of the components of the masks."""
    pixels, boxes = PixelPrecision(len(dataset.classes)), BoxAccuracy(len(dataset.classes), len(GRID))
    for image_id in ids:
        mask = dataset.mask(image_id)
        for index in dataset.labels[image_id]:
            if (within := mask == index + 1).any():
                score = reduced(within, factor)
                pixels.update(index, score, within, mask != IGNORE)
                boxes.update(index, boxes_above(score, GRID, component_boxes, grey=False), component_boxes(within))
    return pixels.average_precision(), float(boxes.accuracy().max())


def main(words: list[str] | None = None) -> list[tuple[int, float | None, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, help="the first N of the list; all by default")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="separated by commas")
    options, overrides = parser.parse_known_args(words)
    dataset = open_dataset(typed(compose(overrides)).data)
    ids = dataset.lists["train"][:options.images]
    rows = [(factor, *scores(dataset, ids, factor)) for factor in map(int, options.factors.split(","))]
    print(f"{len(ids)} images of {dataset.name}\n\n| downscale factor | PxAP | MaxBoxAcc |\n|---|---|---|")
    for factor, precision, accuracy in rows:
        print(f"| {factor} | {'–' if precision is None else f'{100 * precision:.1f}'} | {100 * accuracy:.1f} |")
    return rows


if __name__ == "__main__":
    main()
