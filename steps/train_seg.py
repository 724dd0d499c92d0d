"""Train the segmentation network that `segmenter=NAME` chooses, on the pseudo masks or on the ground truth.

Reads images and the pseudo masks, or the masks corrected by hand where there are any; writes `weights.safetensors`, `log.jsonl`
and `log.csv` (loss of every step, mIoU on val) and the resumable `state.safetensors`. With `labels=gt` it is the fully
supervised bound of the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.pieces import Curve
from steps.parts.shown import loss_curves, read_log, val_curve
from steps.runtime.artifacts import Labels
from steps.runtime.concurrency import memory_for
from steps.runtime.context import OWN_METHOD, StepContext
from steps.runtime.journal import INDEX
from steps.runtime.memory import trim_heap
from steps.runtime.schedule import GROUND_TRUTH, PSEUDO_MASKS, TRAINED_ON, Schedule, TrainingSettings, epochs_of, total_steps
from steps.runtime.setup import Setup, val_with_masks
from steps.step import TRAINING, Lists, Needs, backbone_facts, facts
from wsss.data.images import resize_mask
from wsss.errors import ConfigError
from wsss.metrics.semantic import Confusion
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

    from wsss.segmenters.segmenter import Segmenter

VERSION = 1
KIND = TRAINING
LOG_ONLY = frozenset({"absent_classes", "checkpoint_steps", "max_val_images", "val_epochs"})


class Source(Enum):
    pseudo = "pseudo"            # the pseudo masks
    gt = "gt"                    # the ground truth: the fully supervised bound


@dataclass
class Settings(TrainingSettings):
    """`train_seg.`: the values and their sources are in `conf/recipe/`."""

    labels: Source               # what it is trained on
    backbone: Any = field(metadata=OWN_METHOD)   # of the segmentation network; null: as for the classifier
    resize: list[int] | None     # [longer, shorter]: images are resized to the largest size within, before the scale
    scale: list[float]           # range of the random scale of the image
    scale_step: float | None     # only these scales of the range: the lowest, and multiples of the step above it; null: all
    max_class_share: float | None   # of a class in the labelled pixels of a crop, if one of ten random crops has less; null: 1
    color_jitter: float          # strength of random brightness, contrast and saturation; 0: none
    distortion: bool             # mmsegmentation's photometric distortion: brightness, contrast, saturation and hue
    head_lr_mult: float          # learning rate of the decoder, as a multiple of `lr`, that of the backbone
    warmup: float                # share of the steps over which the learning rate rises from 0
    lr_interval: int             # steps between two changes of the learning rate
    absent_classes: bool         # whether classes may occur in no label; false: an error
    val_epochs: int              # epochs between two computations of mIoU on val; also after the last epoch
    max_val_images: int | None   # of val; null: all

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "scale",
                     "two factors [lowest, highest] with 0 < lowest <= highest")
        self.require(0 <= self.color_jitter < 1, "color_jitter", "a strength in [0, 1)")
        self.require_factor("head_lr_mult")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.lr_interval >= 1, "lr_interval", "at least 1")
        self.require(self.resize is None or len(self.resize) == 2 and 0 < self.resize[1] <= self.resize[0], "resize",
                     "null, or two sides [longer, shorter] in pixels")
        self.require(self.scale_step is None or self.scale_step > 0, "scale_step", "null or above 0")
        self.require(self.max_class_share is None or 0 < self.max_class_share < 1, "max_class_share",
                     "null or a share between 0 and 1")
        self.require(self.val_epochs >= 1, "val_epochs", "at least 1")
        self.require(self.max_val_images is None or self.max_val_images >= 1, "max_val_images", "null or at least 1")


def lists(setup: Setup) -> Lists:
    ids = setup.ids(setup.dataset.lists["train"])
    return {"ids": ids, "truth": ids if setup.settings.labels is Source.gt else (), "log": val_with_masks(setup.dataset)}


def unused(setup: Setup) -> dict[str, str]:
    if setup.settings.weights:
        return {"labels": f"weights={setup.settings.weights}"}
    return {"labels": "labels=gt"} if setup.settings.labels is Source.gt else {}


def identity(setup: Setup) -> dict[str, Any]:
    return {**facts(setup, "seed", "precision", "segmenter"),
            **backbone_facts(setup, setup.methods["backbone"].starts_from_weights)}


def corrected(settings: Settings) -> bool:
    return settings.labels is Source.pseudo and settings.weights is None


def check(setup: Setup) -> None:
    from steps.runtime.imported_networks import check_training, imported_segmenter
    from steps.runtime.networks import planned_segmenter

    ids, settings = setup.lists.get("ids", ()), setup.settings   # none if a network is taken from a file
    if settings.labels is Source.gt and ids and not setup.dataset.has_masks(ids):
        raise ConfigError(f"{setup.name}.labels=gt needs masks of all {len(ids)} training images in {setup.dataset.root}. Add "
                          f"the masks, choose another list by {setup.name}.split, or use {setup.name}.labels=pseudo")
    log = setup.lists.get("log", ())
    if made := next(filter(None, map(_made_by_a_run, [setup.dataset.mask_path(image_id) for image_id in log[:1]])), None):
        raise ConfigError(f"the masks of val in {setup.dataset.root} are pseudo masks: {made} is in the folder of a run. They do "
                          "not show how good a network is that was trained on such masks. Use masks that were drawn, or none")
    if both := set(ids) & set(log):
        raise ConfigError(f"{setup.name}.split contains {len(both)} images of the list val, on which it is validated. Choose a "
                          "list without them")
    if ids and not settings.absent_classes:
        occur = {index for image_id in ids for index in setup.dataset.labels[image_id]}
        _refuse_absent(setup.name, [name for i, name in enumerate(setup.dataset.classes) if i not in occur],
                       f"in no image of the list {settings.split or 'train'}")
    if ids:
        require_part_size(setup.name, settings, len(ids), 1, setup.methods["segmenter"])
    planned_segmenter(setup.methods, setup.dataset)
    check_training(setup, imported_segmenter, setup.methods["backbone"].starts_from_weights)


def require_part_size(step: str, settings: Settings, n_ids: int, processes: int, method: Any) -> None:
    """Raise ConfigError if a part of a batch has fewer images than the segmenter's `smallest_part`."""
    parts, batch = min(settings.parts or processes, settings.batch_size, n_ids), min(settings.batch_size, n_ids)
    if batch // parts < method.smallest_part:
        raise ConfigError(f"{step}.parts={settings.parts} splits a batch of {batch} images into {parts} parts, some with "
                          f"{batch // parts}; segmenter={method.method} needs {method.smallest_part} or more in each, for the "
                          f"statistics of its batch norm. Lower {step}.parts or raise {step}.batch_size")


def _made_by_a_run(mask: Path | None) -> Path | None:
    """The mask file, without links, if it is in the folder of a step."""
    if mask is None:
        return None
    path = mask.resolve()
    return path if (path.parent / INDEX).is_file() else None


def _refuse_absent(step: str, absent: Sequence[str], where: str) -> None:
    if absent:
        raise ConfigError(f"{'the class' if len(absent) == 1 else 'the classes'} {', '.join(absent)} "
                          f"{'occurs' if len(absent) == 1 else 'occur'} {where}: a network cannot learn what it never sees. Add "
                          f"images, leave the class out of the data set, or set {step}.absent_classes=true")


def require_all_classes(context: StepContext, label_of: Callable[[str], np.ndarray]) -> None:
    """Raise ConfigError if a class is in no label of the training list. Reads only labels of images that have a class not seen
    yet, so few unless one is missing."""
    dataset = context.dataset

    def absent() -> list[str]:
        missing = set(range(len(dataset.classes)))
        for image_id in context.ids:
            if missing & set(dataset.labels[image_id]):
                missing -= set((np.unique(label_of(image_id)).astype(int) - 1).tolist())
        return [dataset.classes[index] for index in sorted(missing)]
    _refuse_absent(context.name, context.runtime.group.broadcast(absent),
                   "in no mask" if context.settings.labels is Source.gt else "in no pseudo mask")


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate = Estimate(setup)
    network = estimate.segmenter()
    disk, held, passing = estimate.training(network, log_line=120)
    return estimate.finish(disk, held, max(passing, estimate.forwards(network.eval(), network, estimate.images("log"), batch=1)))


def run(context: StepContext) -> dict[str, Any]:
    from steps.runtime.imported_networks import import_network, imported_segmenter
    from steps.runtime.learning_rate import poly_lr
    from steps.runtime.networks import new_segmenter, save_network
    from steps.runtime.training import fit, make_optimizer
    from wsss.data.augment import Augmentation, segmenter_sample

    if context.settings.weights:
        return import_network(context, imported_segmenter)
    settings, dataset, method = context.settings, context.dataset, context.methods["segmenter"]
    require_part_size(context.name, settings, len(context.ids), context.runtime.group.size, method)
    network = new_segmenter(context)
    augmentation = Augmentation(tuple(settings.scale), settings.scale_step, settings.resize and tuple(settings.resize),
                                settings.max_class_share, settings.color_jitter, settings.distortion)
    pseudo = Labels(context.input("labels"), len(dataset.classes)) if settings.labels is Source.pseudo else None

    def label_of(image_id: str) -> np.ndarray:
        if image_id in dataset.corrections:
            return dataset.correction(image_id)
        return dataset.mask(image_id) if pseudo is None else pseudo(image_id, dataset.size(image_id))

    if not settings.absent_classes:
        require_all_classes(context, label_of)

    def sample(epoch: int, image_id: str, batch: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = dataset.image(image_id), label_of(image_id)
        draws = generator(context.seed, context.name, epoch, image_id)
        return segmenter_sample(image, resize_mask(label, image.shape[:2]), draws, settings.crop_size, augmentation,
                                network.backbone.normalisation)

    def counts(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return method.counts(labels)

    def loss(images: torch.Tensor, labels: torch.Tensor, total: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return method.losses(network, images, labels, method.counts(labels) if total is None else total)

    optimizer = make_optimizer(settings, *method.groups(network, settings.head_lr_mult))
    schedule = Schedule(context.name, total_steps(settings, len(context.ids)), settings.batch_size,
                        poly_lr(settings.power, settings.warmup, settings.lr_interval), settings.checkpoint_steps, settings.parts,
                        settings.val_epochs)
    log = fit(context, schedule, network, optimizer, sample, loss, lambda: validate(context, network), counts=counts)
    if context.runtime.group.is_main:
        save_network(context, network, **{TRAINED_ON: GROUND_TRUTH if pseudo is None else _labels_used(context)})
    return {"steps": log[-1]["step"], "epochs": epochs_of(settings, len(context.ids)), "val_miou": log[-1].get("val_miou")}


def _labels_used(context: StepContext) -> str:
    corrected = sum(image_id in context.dataset.corrections for image_id in context.ids)
    return PSEUDO_MASKS + (f", {corrected} of {len(context.ids)} corrected" if corrected else "")


def validate(context: StepContext, network: Segmenter) -> dict[str, Any]:
    """Mean IoU on the masks of val, or on every n-th image of it if `max_val_images` is set; {} without masks of val. Whole
    images at one scale."""
    import torch

    from steps.runtime.networks import network_input, require_finite_output
    from wsss.refinement.masks import mask_of
    from wsss.resize import resize

    ids = context.lists["log"]
    if not ids:
        return {}
    ids = ids[::math.ceil(len(ids) / (context.settings.max_val_images or len(ids)))]
    network.eval()
    confusion = Confusion(len(context.dataset.classes))
    with torch.inference_mode(), context.runtime.autocast():
        for image_id in context.runtime.part(ids):
            with memory_for(image_id):
                truth = context.dataset.mask(image_id)
                logits = require_finite_output(context, network(network_input(context, network, image_id)).float(), image_id)
                confusion.update(mask_of(resize(logits, truth.shape)[0], range(len(context.dataset.classes))), truth)
            trim_heap()
    confusion.counts = context.runtime.reduce(confusion.counts)
    return {"val_miou": confusion.scores(only_present=True).miou}


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def shown(context: StepContext) -> Iterator[Curve]:
    """The loss and, from the images of val that were measured, the mean IoU."""
    log = read_log(context.folder)
    yield from loss_curves(context, log, {"loss": "loss"})
    yield from val_curve(context, log, "val_miou", "mean IoU", "mIoU")
