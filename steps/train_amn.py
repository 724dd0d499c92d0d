"""Train AMN, the activation manipulation network, on confident labels of a first pass.

Paper: Lee, Kim & Shim, CVPR 2022; official files: `step/train_amn.py`, `net/resnet50_amn.py`. Reads images, image labels and
confident labels; writes `weights.safetensors`, `log.jsonl`, `log.csv` and the resumable `state.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.parts.official import OfficialNetwork
from steps.parts.shown import loss_curves, read_log
from steps.runtime.artifacts import Labels
from steps.runtime.context import StepContext
from steps.runtime.schedule import Schedule, TrainingSettings, epochs_of, total_steps
from steps.step import TRAINING, Curve, Lists, Needs, Setup, backbone_facts, facts
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

VERSION = 1
KIND = TRAINING
LOG_ONLY = frozenset({"checkpoint_steps"})
OFFICIAL = OfficialNetwork("res50_amn.pth", "AMN")


@dataclass
class Settings(TrainingSettings):
    """`train_amn.`: the values and their sources are in `conf/recipe/`."""

    scale: list[float]           # range of the random scale of the image
    rates: list[int]             # dilation of each convolution of the pyramid
    dropout: float               # of the features before it
    smoothing: float             # of the labels: the target of a pixel's label is 1 minus it
    head_lr_mult: float          # learning rate of the label embedding and the pyramid, as a multiple of `lr`, the backbone's
    warmup: float                # share of the steps over which the learning rate rises from 0
    freeze_early: bool           # as in the settings of the classifier

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "scale",
                     "two factors [lowest, highest] with 0 < lowest <= highest")
        self.require(len(self.rates) > 0 and all(rate >= 1 for rate in self.rates), "rates",
                     "at least one dilation, each at least 1")
        self.require(0 <= self.dropout < 1, "dropout", "a share in [0, 1)")
        self.require(0 <= self.smoothing < 1, "smoothing", "in [0, 1)")
        self.require_factor("head_lr_mult")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")


def lists(setup: Setup) -> Lists:
    return {"ids": setup.ids(setup.dataset.lists["train"])}


def unused(setup: Setup) -> dict[str, str]:
    return {"labels": f"weights={setup.settings.weights}"} if setup.settings.weights else {}


def identity(setup: Setup) -> dict[str, Any]:
    return {**facts(setup, "seed", "precision"), **backbone_facts(setup, setup.methods["backbone"].starts_from_weights)}


def check(setup: Setup) -> None:
    from steps.runtime.amn import imported_amn
    from steps.runtime.imported_networks import check_training

    check_training(setup, imported_amn(setup.settings), setup.methods["backbone"].starts_from_weights)


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate

    estimate = Estimate(setup)
    network = estimate.amn(setup.settings.freeze_early and setup.methods["backbone"].starts_from_weights)
    return estimate.finish(*estimate.training(network, log_line=120))


def run(context: StepContext) -> dict[str, Any]:
    import torch

    from steps.runtime.amn import imported_amn, new_amn
    from steps.runtime.imported_networks import import_network
    from steps.runtime.learning_rate import poly_lr
    from steps.runtime.networks import save_network
    from steps.runtime.training import fit, make_optimizer
    from wsss.data.augment import Augmentation, segmenter_sample
    from wsss.networks.amn import balanced_loss, pixel_counts

    if context.settings.weights:
        return import_network(context, imported_amn(context.settings))
    settings, dataset = context.settings, context.dataset
    network, read = new_amn(context), Labels(context.input("labels"), len(dataset.classes))
    augmentation = Augmentation(tuple(settings.scale))

    def sample(epoch: int, image_id: str, batch: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
        image = dataset.image(image_id)
        draws = generator(context.seed, context.name, epoch, image_id)
        pixels, label = segmenter_sample(image, read(image_id, image.shape[:2]), draws, settings.crop_size, augmentation,
                                         network.backbone.normalisation)
        return pixels, torch.from_numpy(dataset.label_vector(image_id)), label_on(label, grid)

    grid = -(-settings.crop_size // network.backbone.feature_stride)

    def counts(images: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Count the pixels: the loss has means over the pixels of the whole batch."""
        return pixel_counts(labels)

    def loss(images: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor,
             total: torch.Tensor | None) -> dict[str, torch.Tensor]:
        logits = network(images, classes).float()
        return {"loss": balanced_loss(logits, labels, settings.smoothing, pixel_counts(labels) if total is None else total)}

    backbone, head = network.parameter_groups()
    optimizer = make_optimizer(settings, (backbone, 1.0), (head, settings.head_lr_mult))
    schedule = Schedule(context.name, total_steps(settings, len(context.ids)), settings.batch_size,
                        poly_lr(settings.power, settings.warmup), settings.checkpoint_steps, settings.parts)
    log = fit(context, schedule, network, optimizer, sample, loss, counts=counts)
    if context.runtime.group.is_main:
        save_network(context, network)
    return {"steps": log[-1]["step"], "epochs": epochs_of(settings, len(context.ids))}


def label_on(label: torch.Tensor, side: int) -> torch.Tensor:
    """A label (S, S) on the grid (side, side) of the logits, by Pillow's nearest neighbour (official `resize_labels`)."""
    import torch

    from wsss.data.images import resize_mask

    return torch.from_numpy(resize_mask(label.numpy(), (side, side)))


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def shown(context: StepContext) -> Iterator[Curve]:
    """The loss."""
    return loss_curves(context, read_log(context.folder), {"loss": "loss"})
