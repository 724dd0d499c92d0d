"""Score the instances by average precision.

Official file: `step/eval_ins_seg.py` of IRN, on VOC's SegmentationObject, split train. Reads the instances and the objects of the
ground truth; writes `scores.json`. All detections are ranked together, so counts cannot be summed over processes: the first
process scores the whole list.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.parts.corrections import columns_of, told_apart
from steps.parts.thresholds import SCORES, THRESHOLD, read_chosen
from steps.runtime.artifacts import check_keys, read_json, write_json
from steps.runtime.context import StepContext
from steps.step import SCORE, Lists, Needs, Score, Setup, StepSettings
from wsss.errors import ConfigError

VERSION = 1
KIND = SCORE
TRUTH = "instances"
MEASURES = {"ap": "AP", "ap50": "COCO's AP50", "coco_ap": "COCO's AP"}


@dataclass
class Settings(StepSettings):
    """`eval_ins_seg.`: the values and their sources are in `conf/recipe/`."""

    split: str | None            # the list to score; null: train
    iou: float                   # a detection with at least this overlap is correct
    coco_style: bool             # also compute COCO's average precision; needs pycocotools

    def __post_init__(self) -> None:
        self.require(0 < self.iou <= 1, "iou", "above 0 and at most 1")


def lists(setup: Setup) -> Lists:
    """The list to score; () if it is the default list and has no instances. Raises ConfigError if some are missing."""
    ids, split, dataset = setup.ids(setup.dataset.lists["train"]), setup.settings.split, setup.dataset
    missing = [image_id for image_id in ids if not dataset.has_instances(image_id)]
    known = len(ids) - len(missing)
    if missing and (known or split is not None):
        raise ConfigError(f"{setup.name} scores {len(ids)} images, but only {known} have instances in {dataset.root} (first "
                          f"missing: {missing[0]!r}). Add the others, choose another {setup.name}.split, or take {setup.name} "
                          "out of steps")
    return {"scored": ids if known else ()}


def corrected(settings: Settings) -> bool:
    return True


def check(setup: Setup) -> None:
    from wsss.metrics.instances import pycocotools

    if setup.settings.coco_style:
        pycocotools()


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import CELL, Estimate, comparison

    estimate, objects = Estimate(setup), setup.dataset.objects
    read = objects.memory if objects and setup.lists["scored"] else 0
    return estimate.finish(CELL * len(setup.dataset.classes) + 400,
                           passing=estimate.on_host(comparison(estimate.images("scored", original=True)) + read))


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.instances import instance_reader
    from wsss.metrics.instances import CocoPrecision, InstancePrecision

    if not context.runtime.group.is_main:
        return {}
    dataset, source, settings = context.dataset, context.inputs["instances"][0], context.settings
    precision = InstancePrecision(len(dataset.classes), settings.iou)
    coco = CocoPrecision(len(dataset.classes)) if settings.coco_style else None
    everything = InstancePrecision(len(dataset.classes), settings.iou)   # with the images that have a mask corrected by hand
    scores: list[InstancePrecision | CocoPrecision] = [precision, *filter(None, [coco])]
    scored, read = context.lists["scored"], instance_reader(source.folder, len(dataset.classes))
    for number, image_id in enumerate(scored, start=1):
        context.runtime.check_stop()
        found = read(image_id, dataset.size(image_id))
        masks, classes = dataset.instances(image_id)
        for score in (everything,) if image_id in dataset.corrections else (everything, *scores):
            score.update(found, masks, classes)
        context.runtime.progress(number, len(scored), "images with instances")
    each, mean = precision.average_precision()
    chosen = read_chosen(source.folder / THRESHOLD)
    write_json(context.folder / SCORES, {
        "kind": source.step,
        "ap": mean, "ap_of_class": each, "iou": settings.iou,
        "coco_style": coco.average_precision() if coco else None,
        "objects": int(precision.objects.sum()), "detections": precision.detections,
        **told_apart(dataset, scored, everything.average_precision()[1]),
        "threshold": chosen["threshold"], "threshold_source": chosen["source"]})
    return {}


def reader(folder: Path, n_classes: int) -> None:
    check_keys(folder / SCORES, (
        "kind", "ap", "iou", "coco_style", "objects", "detections", "images", "threshold", "threshold_source"))


def scores(folder: Path) -> list[Score]:
    values = read_json(folder / SCORES)
    coco = values["coco_style"]
    measured = {"ap": values["ap"]} | ({"ap50": coco["ap50"], "coco_ap": coco["ap"]} if coco else {})
    values["min_iou"] = values.pop("iou")   # in a score "iou" is that of each class
    headings = {**MEASURES, "ap": f"AP{100 * values['min_iou']:.0f}"}
    return [Score(values["kind"], {name: headings[name] for name in measured}, {**values, **measured},
                  {"detections": "detections", "objects": "objects"} | columns_of(values, headings["ap"]))]
