"""Train the image classifier, the source of the class activation maps.

Official files: `step/train_cam.py`, `net/resnet50_cam.py` (IRN, LPCAM). Reads images and image labels; writes
`weights.safetensors`, `log.jsonl` and `log.csv` (loss of every step, validation mAP of every epoch) and the resumable
`state.safetensors`. A row with the role "init" goes on from a finished classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.official import OfficialNetwork
from steps.parts.outcome import Advice, Outcome, Remark
from steps.parts.pieces import Curve
from steps.parts.shown import loss_curves, read_log, val_curve
from steps.runtime.concurrency import memory_for
from steps.runtime.context import OWN_METHOD, StepContext
from steps.runtime.memory import trim_heap
from steps.runtime.schedule import Schedule, TrainingSettings, epochs_of, total_steps
from steps.step import TRAINING, Lists, Needs, Setup, backbone_facts, facts
from wsss.metrics.semantic import average_precision
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

    from wsss.classifiers.classifier import Classifier
    from wsss.classifiers.method import ClassifierMethod

VERSION = 2
KIND = TRAINING
LOG_ONLY = frozenset({"checkpoint_steps", "max_val_images", "val_epochs"})
OFFICIAL = OfficialNetwork("res50_cam.pth", "CAM")
# Trainings from before there were these settings are the same as with these values
_NEWER = {"schedule": "poly", "hue_jitter": 0.0, "warmup_start": None, "min_lr": 0.0, "random_area": None, "rand_augment": 0.0,
          "erase": 0.0}


class ScheduleName(Enum):
    poly = "poly"                # with `power`
    cosine = "cosine"            # half a wave, down to `min_lr`


@dataclass
class Settings(TrainingSettings):
    """`train_cam.`: the values and their sources are in `conf/recipe/`."""

    resize_long: list[float]     # range of the resized long side, in crop sizes
    color_jitter: float          # strength of random brightness, contrast and saturation; 0: none
    hue_jitter: float            # greatest turn of the hue, in turns; 0: none
    head_lr_mult: float          # learning rate of the classifier, as a multiple of `lr`, that of the backbone
    random_area: list[float] | None   # instead of `resize_long`: range of the area of a random part, which becomes the crop
    rand_augment: float          # magnitude of timm's RandAugment of the crop, at most 10; 0: none
    erase: float                 # probability that a rectangle of the crop becomes noise; 0: never
    schedule: ScheduleName
    min_lr: float                # at which the cosine schedule ends
    warmup: float                # share of the steps over which the learning rate rises from 0
    warmup_start: float | None   # it rises from this share of it; then poly begins after it. null: from 0, and poly at the start
    freeze_early: bool           # do not train the layers up to stride 8 (layer2 of a ResNet, a quarter of the blocks of a ViT),
                                 # as IRN; LPCAM trains them. Layers from random weights are always trained
    val_epochs: int              # epochs between two computations of mAP on val; also after the last epoch
    max_val_images: int | None   # of val; null: all
    classifier: Any = field(metadata=OWN_METHOD)   # the method; null: that of the run

    def __post_init__(self) -> None:
        super().__post_init__()
        low_high = self.resize_long
        self.require(len(low_high) == 2 and 0 < low_high[0] <= low_high[1], "resize_long",
                     "two factors [lowest, highest] with 0 < lowest <= highest")
        self.require(0 <= self.color_jitter < 1, "color_jitter", "a strength in [0, 1)")
        self.require(0 <= self.hue_jitter <= 0.5, "hue_jitter", "turns in [0, 0.5]")
        self.require_factor("head_lr_mult")
        self.require(self.max_val_images is None or self.max_val_images >= 1, "max_val_images", "null or at least 1")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.warmup_start is None or 0 <= self.warmup_start <= 1, "warmup_start", "null or a share in [0, 1]")
        area = self.random_area
        self.require(area is None or len(area) == 2 and 0 < area[0] <= area[1] <= 1, "random_area",
                     "null or two shares [least, greatest] with 0 < least <= greatest <= 1")
        self.require(0 <= self.rand_augment <= 10, "rand_augment", "a magnitude in [0, 10]")
        self.require(0 <= self.erase <= 1, "erase", "a probability")
        cosine = self.schedule is ScheduleName.cosine
        self.require(0 <= self.min_lr <= self.lr * cosine, "min_lr",
                     f"from 0 to {self.step}.lr={self.lr}" if cosine else f"0, or {self.step}.schedule=cosine")
        self.require(self.val_epochs >= 1, "val_epochs", "at least 1")


def lists(setup: Setup) -> Lists:
    return {"ids": setup.ids(setup.dataset.lists["train"]), "log": setup.dataset.lists["val"]}


def identity(setup: Setup) -> dict[str, Any]:
    found = {**facts(setup, "seed", "precision", "classifier"), **backbone_facts(setup, _from_imagenet(setup))}
    own = found[setup.name]
    return {**found, setup.name: {key: value for key, value in own.items() if key not in _NEWER or value != _NEWER[key]}}


def _from_imagenet(setup: Setup) -> bool:
    """Whether the training starts from ImageNet weights, not from random ones or a finished classifier (role "init")."""
    return setup.methods["backbone"].starts_from_weights and not setup.sources.get("init")


def check(setup: Setup) -> None:
    from steps.runtime.imported_networks import check_training, imported_classifier
    from steps.runtime.networks import check_init

    if not setup.settings.weights:
        setup.methods["classifier"].check({image_id: setup.dataset.labels[image_id] for image_id in setup.lists["ids"]})
        check_init(setup)
    check_training(setup, imported_classifier, _from_imagenet(setup))


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate = Estimate(setup)
    network = estimate.classifier(setup.settings.freeze_early and setup.methods["backbone"].starts_from_weights)
    disk, held, passing = estimate.training(network, log_line=120, images=setup.methods["classifier"].images_per_sample)
    validation = estimate.forwards(network, network.features, estimate.images("log"), batch=1)
    return estimate.finish(disk, held, max(passing, validation))


def run(context: StepContext) -> dict[str, Any]:
    import torch

    from steps.parts.training_pictures import cam_pictures
    from steps.runtime.imported_networks import import_network, imported_classifier
    from steps.runtime.networks import new_classifier, save_network
    from steps.runtime.training import fit, make_optimizer
    from wsss.data.augment import classifier_sample
    from wsss.data.strong import Strong

    if context.settings.weights:
        return import_network(context, imported_classifier)
    settings, dataset = context.settings, context.dataset
    backbone, method = context.methods["backbone"], context.methods["classifier"]
    if not backbone.starts_from_weights and not context.reads("init") and context.runtime.group.is_main:
        context.runtime.warn(f"the network {backbone.name} starts from random weights: on a few hundred images the maps of every "
                             "later step are poor. Use backbone=tf_efficientnet_lite0, whose ImageNet weights are installed, or "
                             f"backbone.pretrained=true; or raise {context.name}.epochs")
    classifier = new_classifier(context)
    resize_long = tuple(round(factor * settings.crop_size) for factor in settings.resize_long)
    area = settings.random_area
    strong = Strong(area and (area[0], area[1]), settings.rand_augment, settings.erase)

    def view(image_id: str, draws: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        image = classifier_sample(dataset.image(image_id), draws, settings.crop_size, resize_long,
                                  color_jitter=settings.color_jitter, hue_jitter=settings.hue_jitter, strong=strong,
                                  normalisation=classifier.backbone.normalisation)
        return image, torch.from_numpy(dataset.label_vector(image_id))

    sample = _sample(context, method, view)

    def loss(*part: Any) -> dict[str, torch.Tensor]:
        *tensors, _ = part   # without the total of `counts`
        share = len(tensors[0]) / min(settings.batch_size, len(context.ids))   # of the batch
        return {name: value * share for name, value in method.losses(classifier, *tensors).items()}

    optimizer = make_optimizer(settings, *method.groups(classifier, settings.head_lr_mult))
    schedule = Schedule(context.name, total_steps(settings, len(context.ids)), settings.batch_size,
                        _lr_factor(settings), settings.checkpoint_steps, settings.parts, settings.val_epochs)
    log = fit(context, schedule, classifier, optimizer, sample, loss, lambda: validate(context, classifier),
              lambda: cam_pictures(context, classifier))
    if context.runtime.group.is_main:
        save_network(context, classifier)
    return {"steps": log[-1]["step"], "epochs": epochs_of(settings, len(context.ids)), "val_map": log[-1].get("val_map")}


def _lr_factor(settings: Settings) -> Callable[[int, int], float]:
    from steps.runtime.learning_rate import cosine_lr, poly_lr

    if settings.schedule is ScheduleName.cosine:
        return cosine_lr(settings.warmup, settings.warmup_start, settings.min_lr / settings.lr)
    return poly_lr(settings.power, settings.warmup, start=settings.warmup_start)


def _sample(context: StepContext, method: ClassifierMethod,
            view: Callable[[str, np.random.Generator], tuple[torch.Tensor, torch.Tensor]],
            ) -> Callable[[int, str, tuple[str, ...]], tuple[torch.Tensor, ...]]:
    """The function that makes the samples (see `fit`): the `view` of each member, mixed, all from the draws of the sample."""
    labels = {image_id: context.dataset.labels[image_id] for image_id in context.ids}

    def sample(epoch: int, image_id: str, batch: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        draws = generator(context.seed, context.name, epoch, image_id)
        members = method.members(image_id, batch, labels, draws)
        return method.mix(tuple(view(member, draws) for member in members), draws)
    return sample


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def validate(context: StepContext, classifier: Classifier) -> dict[str, Any]:
    """Mean average precision on val, or on every n-th image of it if `max_val_images` is set; {} without val.

    Uses whole images. Differs from the official 512 px top-left crops because only VOC's images always fit into such a crop.
    """
    import torch

    from steps.runtime.networks import network_input, require_finite_output

    ids = context.lists["log"]
    if not ids:
        return {}
    ids = ids[::math.ceil(len(ids) / (context.settings.max_val_images or len(ids)))]
    classifier.eval()
    scores = np.zeros((len(ids), len(context.dataset.classes)), np.float32)
    with torch.inference_mode(), context.runtime.autocast():
        for row in context.runtime.part(range(len(ids))):
            with memory_for(ids[row]):
                logits = classifier(network_input(context, classifier, ids[row])).float()
                scores[row] = require_finite_output(context, logits, ids[row]).cpu().numpy()[0]
            trim_heap()
    labels = np.stack([context.dataset.label_vector(image_id) for image_id in ids])
    return {"val_map": average_precision(context.runtime.reduce(scores), labels)[1]}


def classify(context: StepContext, image_id: str) -> np.ndarray:
    """The probabilities (C,) of the classes in a whole image, by the finished classifier (role "classifier")."""
    import torch

    from steps.runtime.networks import load_classifier, network_input, require_finite_output

    classifier = load_classifier(context)
    with torch.inference_mode(), context.runtime.autocast():
        logits = require_finite_output(context, classifier(network_input(context, classifier, image_id)).float(), image_id)
    return context.methods["classifier"].probabilities(logits)[0].cpu().numpy()


WEAK_MAP = 0.7   # with a lower mean average precision on val, the classifier is named as a cause of bad maps


def remarks(name: str, outcome: Outcome) -> list[Remark]:
    """A remark about a weak classifier, if some result is worse than what it was made from."""
    val_map = outcome.results.get(name, {}).get("val_map")
    if val_map is None or not val_map < WEAK_MAP or not outcome.lowered:
        return []
    wanted: list[Advice] = [(*outcome.longer(name, 4), "a longer training")]
    if not outcome.setting("backbone.starts_from_weights", True):
        wanted.insert(0, ("backbone", "tf_efficientnet_lite0", "start from ImageNet weights, which are installed"))
    text = f"The classifier has a mean average precision of {100 * val_map:.1f} on val: all maps come from it."
    return [Remark(name, "classifier", text, advice=wanted)]


def shown(context: StepContext) -> Iterator[Curve]:
    """The loss and, from the images of val that were measured, the mean average precision."""
    log = read_log(context.folder)
    yield from loss_curves(context, log, {"loss": "loss"})
    yield from val_curve(context, log, "val_map", "mean average precision", "mAP")
