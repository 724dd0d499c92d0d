"""Find the instances: group pixels by IRN's displacements, run the walk in each group, and keep the strongest at each pixel.

Official file: `step/make_ins_seg_labels.py` of IRN (LPCAM keeps the flag but has no such step). Reads the seed maps and
IRN; writes `ID.npz` with `score` (n,) float32, `class` (n,) int64, 0-based, and `label` (H, W) in the size of the image:
i + 1 at the pixels of instance i. One label map is enough because instances do not overlap. Compressed it takes about 2 kB for
an image of VOC; the official masks (n, H, W) take n * H * W bytes. n is 0 for an image without a detection, on which the
official code crashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.parts.thresholds import THRESHOLD, Chosen
from steps.runtime.artifacts import encode_arrays, write_json
from steps.runtime.context import StepContext
from steps.runtime.inference import Made, for_each_image
from steps.step import IMAGES, Lists, Needs, Setup, StepSettings, facts
from wsss.data.ids import union
from wsss.refiners.walk import check_walk

if TYPE_CHECKING:
    from wsss.refinement.instances import Detections

VERSION = 1
KIND = IMAGES
INSTANCES = {"": "instances"}


@dataclass
class Settings(StepSettings):
    """`make_ins_seg_labels.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # null: train, and what eval_ins_seg scores
    beta: float                  # exponent of the affinity
    exp_times: int               # the walk has 2^exp_times steps
    radius: int                  # of one step, in cells of stride 4
    pad_to: int | None           # pad the input of IRN to sides of at least this many pixels
    centroid_iterations: int     # iterations that follow the displacements to the centroids
    group_threshold: float       # a displacement shorter than this, in cells of stride 4, belongs to a centre
    bg_threshold: float          # of the walked maps
    min_area: float              # an instance below this share of the image gets score 0

    def __post_init__(self) -> None:
        check_walk(self)
        for key, good, expected in (
                ("centroid_iterations", self.centroid_iterations >= 1, "at least 1"),
                ("group_threshold", self.group_threshold > 0, "above 0"),
                ("bg_threshold", 0 <= self.bg_threshold <= 1, "a number in [0, 1]"),
                ("min_area", 0 <= self.min_area <= 1, "a share in [0, 1]")):
            self.require(good, key, expected)


def lists(setup: Setup) -> Lists:
    return {"ids": setup.ids(union([setup.dataset.lists["train"], *setup.wanted.values()]))}


def identity(setup: Setup) -> dict[str, Any]:
    return facts(setup, "precision")


def needs(setup: Setup) -> Needs:
    import numpy as np

    from steps.runtime.needs import LABEL_LINE, Estimate, weights
    from wsss.refinement.instances import AT_ONCE

    estimate = Estimate(setup)
    network, images, originals = estimate.irn().eval(), estimate.images("ids"), estimate.images("ids", original=True)
    file = originals.total(900 + 3 * np.sqrt(originals.pixels))   # an .npz, and borders per pixel of a side, measured
    return estimate.finish(file + LABEL_LINE * originals.number, weights(network),
                           max(estimate.forwards(network, network.edge_and_displacement, images),
                               estimate.walk(images, maps=6 * AT_ONCE), originals.most(4 * AT_ONCE)), files=1)   # float32


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.instances import Instances

    find = Instances(context)
    chosen = Chosen(context.settings.bg_threshold, f"{context.name}.bg_threshold in the configuration").as_dict()
    if context.runtime.group.is_main and not (context.folder / THRESHOLD).exists():   # it depends on the fingerprint alone
        write_json(context.folder / THRESHOLD, chosen)

    def make(image_id: str) -> Made:
        found = find(image_id)
        arrays = {"score": found.score, "class": found.classes, "label": found.label}
        facts = {"height": found.label.shape[0], "width": found.label.shape[1], "instances": len(found.score)}
        return {f"{image_id}.npz": encode_arrays(**arrays)}, facts

    for_each_image(context, make)
    return chosen


def reader(folder: Path, n_classes: int) -> Callable[..., Detections]:
    from steps.parts.instances import instance_reader

    return instance_reader(folder, n_classes)
