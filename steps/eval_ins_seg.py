"""Score the instances by average precision.

Official file: `step/eval_ins_seg.py` of IRN, on VOC's SegmentationObject, split train. Reads the instances and the objects of the
ground truth; writes `scores.json`. All detections are ranked together, so counts cannot be summed over processes: the first
process scores the whole list.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.make_ins_seg_labels import reader as instance_reader
from steps.parts.thresholds import THRESHOLD, read_chosen
from steps.runtime.artifacts import check_keys, write_json
from steps.runtime.context import StepContext, require

VERSION = 1
SCORES = "scores.json"


@dataclass
class Settings:
    """`eval_ins_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    iou: float                   # a detection with at least this overlap is correct
    coco_style: bool             # also compute COCO's average precision; needs pycocotools

    def __post_init__(self) -> None:
        require(0 < self.iou <= 1, "eval_ins_seg.iou", self.iou, "above 0 and at most 1")


def check(settings: Settings) -> None:
    from wsss.metrics.instances import pycocotools

    if settings.coco_style:
        pycocotools()


def run(context: StepContext) -> dict[str, Any]:
    from wsss.metrics.instances import CocoPrecision, InstancePrecision

    if not context.group.is_main:
        return {}
    dataset, folder, settings = context.dataset, context.inputs["make_ins_seg_labels"], context.settings
    precision = InstancePrecision(len(dataset.classes), settings.iou)
    coco = CocoPrecision(len(dataset.classes)) if settings.coco_style else None
    scores: list[InstancePrecision | CocoPrecision] = [precision, *filter(None, [coco])]
    scored, read = context.lists["scored"], instance_reader(folder, len(dataset.classes))
    for number, image_id in enumerate(scored, start=1):
        context.check_stop()
        found = read(image_id, dataset.size(image_id))
        masks, classes = dataset.instances(image_id)
        for score in scores:
            score.update(found, masks, classes)
        context.progress(number, len(scored), "images with instances")
    each, mean = precision.average_precision()
    chosen = read_chosen(folder / THRESHOLD)
    write_json(context.folder / SCORES, {
        "ap": mean, "ap_of_class": each, "iou": settings.iou,
        "coco_style": coco.average_precision() if coco else None,
        "objects": int(precision.objects.sum()), "detections": precision.detections, "images": len(scored),
        "threshold": chosen["threshold"], "threshold_source": chosen["source"]})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, ("ap", "iou", "coco_style", "objects", "detections", "images", "threshold", "threshold_source"))
