"""The steps of the pipeline in order, each with its flag, inputs and outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from steps import (
    cam_to_ir_label,
    eval_cam,
    eval_ins_seg,
    eval_sem_seg,
    make_cam,
    make_ins_seg_labels,
    make_lpcam,
    make_sem_seg_labels,
    train_cam,
    train_irn,
)


@dataclass(frozen=True)
class Step:
    """One row of the pipeline.

    `reads` maps the configuration to the steps whose folders the step reads. `depends` lists what its results depend on in
    addition to its settings: "seed", "precision", "model" (the network's settings and weights file), "instances" (the objects
    of the ground truth, instead of masks). `kind`: "training" (one result, resumable by training step), "images" (one artifact
    per image) or "score".
    """

    name: str                # of the step, of its folder, of its settings
    flag: str                # official name
    module: ModuleType
    kind: str
    reads: Callable[[Any], tuple[str, ...]]
    writes: str
    depends: tuple[str, ...] = ()


def seed_step(config: Any) -> str:
    """The step whose maps are the seeds of the later steps."""
    return "make_lpcam" if config.seed_maps.value == "lpcam" else "make_cam"


def irn_backbone(config: Any) -> str:
    """The source of the weights of IRN's frozen backbone: "imagenet" or "classifier"."""
    chosen = config.train_irn.backbone
    return chosen.value if chosen else ("imagenet" if config.model.starts_from_weights else "classifier")


def _eval_cam_reads(config: Any) -> tuple[str, ...]:
    return tuple(name for name in ("make_cam", "make_lpcam") if name in config.steps)


def _ir_label_reads(config: Any) -> tuple[str, ...]:
    return (seed_step(config),) if config.cam_to_ir_label.conf_fg is not None else (seed_step(config), "eval_cam")


def _train_irn_reads(config: Any) -> tuple[str, ...]:
    return ("cam_to_ir_label", "train_cam") if irn_backbone(config) == "classifier" else ("cam_to_ir_label",)


STEPS: tuple[Step, ...] = (
    Step("train_cam", "train_cam_pass", train_cam, "training",
         reads=lambda config: (), writes="the image classifier", depends=("seed", "precision", "model")),
    Step("make_cam", "make_cam_pass", make_cam, "images",
         reads=lambda config: ("train_cam",), writes="CAMs at every scale", depends=("precision",)),
    Step("make_lpcam", "make_lpcam_pass", make_lpcam, "images",
         reads=lambda config: ("train_cam", "make_cam"), writes="prototypes and LPCAMs at every scale",
         depends=("seed", "precision")),
    Step("eval_cam", "eval_cam_pass", eval_cam, "score",
         reads=_eval_cam_reads, writes="scores of the maps at every threshold; the thresholds chosen on val"),
    Step("cam_to_ir_label", "cam_to_ir_label_pass", cam_to_ir_label, "images",
         reads=_ir_label_reads, writes="confident labels, 255 (ignore) elsewhere"),
    Step("train_irn", "train_irn_pass", train_irn, "training",
         reads=_train_irn_reads, writes="the edge and displacement network", depends=("seed", "precision", "model")),
    Step("make_sem_seg_labels", "make_sem_seg_pass", make_sem_seg_labels, "images",
         reads=lambda config: (seed_step(config), "train_irn"), writes="pseudo masks", depends=("precision",)),
    Step("eval_sem_seg", "eval_sem_seg_pass", eval_sem_seg, "score",
         reads=lambda config: ("make_sem_seg_labels",), writes="scores of the pseudo masks"),
    Step("make_ins_seg_labels", "make_ins_seg_pass", make_ins_seg_labels, "images",
         reads=lambda config: (seed_step(config), "train_irn"), writes="instances", depends=("precision",)),
    Step("eval_ins_seg", "eval_ins_seg_pass", eval_ins_seg, "score",
         reads=lambda config: ("make_ins_seg_labels",), writes="average precision of the instances", depends=("instances",)),
)
BY_NAME = {step.name: step for step in STEPS}
