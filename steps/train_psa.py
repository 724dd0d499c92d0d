"""Train AffinityNet, which tells whether two near pixels belong to one class, on the confident labels.

Paper: Ahn & Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018; official files: `train_aff.py`, `network/resnet38_aff.py`. Reads the labels of affinity_label (and the
classifier, if its backbone is used); writes `weights.safetensors`, `log.jsonl`, `log.csv` and the resumable `state.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.parts.official import RESNET38, OfficialNetwork
from steps.parts.pieces import Curve
from steps.parts.shown import loss_curves, read_log
from steps.runtime.artifacts import Labels
from steps.runtime.context import OWN_METHOD, StepContext
from steps.runtime.schedule import Schedule, TrainingSettings, epochs_of, total_steps
from steps.step import TRAINING, Lists, Needs, Setup, backbone_facts, facts
from wsss.errors import ConfigError
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

VERSION = 1
KIND = TRAINING
LOG_ONLY = frozenset({"checkpoint_steps"})
OFFICIAL = OfficialNetwork("resnet38_aff.pth", "PSA", RESNET38)
STRIDE = 8   # of the labels, as of the features (`wsss.networks.affinitynet`)


class Init(Enum):
    imagenet = "imagenet"        # the weights of `backbone.`, or none
    classifier = "classifier"    # those of the trained classifier


@dataclass
class Settings(TrainingSettings):
    """`train_psa.`: the values and their sources are in `conf/recipe/`."""

    backbone: Any = field(metadata=OWN_METHOD)   # null: as for the classifier
    init: Init | None                # whose weights the backbone starts with; null: imagenet if it has such, else classifier
    scale: list[float]               # range of the random scale of the image
    color_jitter: float              # strength of random brightness, contrast and saturation; 0: none
    head_lr_mult: float              # learning rate of the convolutions on the backbone, as a multiple of `lr`
    warmup: float                    # share of the steps over which the learning rate rises from 0
    freeze_early: bool               # as in the settings of the classifier
    radius: int                      # of the pixel pairs, in cells of stride 8
    all_pairs: bool                  # include the pairs near the border of a crop, which the official code omits

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "scale",
                     "two factors [lowest, highest] with 0 < lowest <= highest")
        self.require(0 <= self.color_jitter < 1, "color_jitter", "a strength in [0, 1)")
        self.require_factor("head_lr_mult")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.radius >= 2, "radius", "at least 2")

    def require_crop(self) -> None:
        """Check the crop, which is by default that of the data set, so that runs without this step need not fit."""
        self.require(self.crop_size % STRIDE == 0, "crop_size", f"a multiple of {STRIDE}, the stride of the labels")
        self.require(self.all_pairs or self.radius <= self.crop_size // (2 * STRIDE), "radius",
                     f"at most a {2 * STRIDE}th of {self.step}.crop_size={self.crop_size}, or {self.step}.all_pairs=true")


def lists(setup: Setup) -> Lists:
    return {"ids": setup.ids(setup.dataset.lists["train"])}


def init_of(setup: Setup) -> Init:
    """Whose weights the backbone starts with: never the classifier's by default if the step has a backbone of its own."""
    own = setup.settings.backbone is not None or setup.methods["backbone"].starts_from_weights
    return setup.settings.init or (Init.imagenet if own else Init.classifier)


def unused(setup: Setup) -> dict[str, str]:
    if setup.settings.weights:
        return dict.fromkeys(("labels", "classifier"), f"weights={setup.settings.weights}")
    return {"classifier": "init=imagenet"} if init_of(setup) is Init.imagenet else {}


def identity(setup: Setup) -> dict[str, Any]:
    found = facts(setup, "seed", "precision")
    found[setup.name]["init"] = init_of(setup).value
    from_weights = init_of(setup) is Init.imagenet and setup.methods["backbone"].starts_from_weights
    return {**found, **backbone_facts(setup, from_weights)}


def corrected(settings: Settings) -> bool:
    return settings.weights is None


def check(setup: Setup) -> None:
    from steps.runtime.affinity import imported_affinitynet
    from steps.runtime.imported_networks import check_training

    if not setup.settings.weights:
        setup.settings.require_crop()
    from_classifier = init_of(setup) is Init.classifier
    if from_classifier and setup.settings.backbone is not None:
        raise ConfigError(f"{setup.name}.init=classifier, but it has a backbone of its own, {setup.settings.backbone.name}. Set "
                          f"{setup.name}.init=imagenet, or leave out backbone@{setup.name}.backbone")
    check_training(setup, imported_affinitynet, not from_classifier and setup.methods["backbone"].starts_from_weights)


def needs(setup: Setup) -> Needs:
    from steps.runtime.affinity import planned_affinitynet
    from steps.runtime.needs import Estimate, directions
    from steps.runtime.networks import freeze_early

    estimate, settings, network = Estimate(setup), setup.settings, planned_affinitynet(setup)
    if settings.freeze_early and (init_of(setup) is Init.classifier or setup.methods["backbone"].starts_from_weights):
        freeze_early(network.backbone)
    disk, held, passing = estimate.training(network, log_line=200)
    cells = estimate.part(settings.batch_size) * (settings.crop_size / STRIDE) ** 2
    pairs = 4 * cells * directions(settings.radius)   # the distances; their affinity, its likelihood and logarithm; gradients
    return estimate.finish(disk, held, passing + 6 * pairs)


def run(context: StepContext) -> dict[str, Any]:
    from steps.runtime.affinity import imported_affinitynet, new_affinitynet
    from steps.runtime.imported_networks import import_network
    from steps.runtime.learning_rate import poly_lr
    from steps.runtime.networks import save_network
    from steps.runtime.training import fit, make_optimizer
    from wsss.data.augment import Augmentation, segmenter_sample
    from wsss.refinement.affinity import pair_counts
    from wsss.refinement.feature_affinity import feature_affinity_losses
    from wsss.refinement.psa_label import pooled_label

    if context.settings.weights:
        return import_network(context, imported_affinitynet)
    settings, dataset = context.settings, context.dataset
    network, read = new_affinitynet(context), Labels(context.input("labels"), len(dataset.classes))
    augmentation = Augmentation(tuple(settings.scale), color_jitter=settings.color_jitter)

    def sample(epoch: int, image_id: str, batch: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        image = dataset.image(image_id)
        draws = generator(context.seed, context.name, epoch, image_id)
        pixels, label = segmenter_sample(image, read(image_id, image.shape[:2]), draws, settings.crop_size, augmentation,
                                         network.backbone.normalisation)
        return pixels, pooled_label(label, STRIDE)

    pairs = {"radius": settings.radius, "all_pairs": settings.all_pairs}

    def counts(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Count the pairs: the losses are means over the pairs of the whole batch."""
        return pair_counts(labels, **pairs)

    def loss(images: torch.Tensor, labels: torch.Tensor, total: torch.Tensor | None) -> dict[str, torch.Tensor]:
        losses = feature_affinity_losses(network(images).float(), labels, counts=total, **pairs)
        return {"loss": losses.total, "pos_aff": losses.pos_aff, "neg_aff": losses.neg_aff}

    backbone, head = network.parameter_groups()
    optimizer = make_optimizer(settings, (backbone, 1.0), (head, settings.head_lr_mult))
    schedule = Schedule(context.name, total_steps(settings, len(context.ids)), settings.batch_size,
                        poly_lr(settings.power, settings.warmup), settings.checkpoint_steps, settings.parts)
    log = fit(context, schedule, network, optimizer, sample, loss, counts=counts)
    if context.runtime.group.is_main:
        save_network(context, network)
    return {"steps": log[-1]["step"], "epochs": epochs_of(settings, len(context.ids))}


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def shown(context: StepContext) -> Iterator[Curve]:
    """The two losses."""
    return loss_curves(context, read_log(context.folder), {"pos_aff": "affinity, same class", "neg_aff": "affinity, other class"})
