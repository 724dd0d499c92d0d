"""Train IRN's boundary (edge) and displacement branches on the confident labels.

Paper: Ahn, Cho & Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019;
official files: `step/train_irn.py`, `net/resnet50_irn.py`. Reads the labels of cam_to_ir_label (and the classifier, if
its backbone is used); writes `weights.safetensors`, `log.jsonl`, `log.csv` and the resumable `state.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steps.parts.official import OfficialNetwork
from steps.parts.pieces import Curve
from steps.parts.shown import loss_curves, read_log
from steps.runtime.artifacts import Labels
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext
from steps.runtime.schedule import Schedule, TrainingSettings, epochs_of, total_steps
from steps.step import TRAINING, Lists, Needs, Setup, backbone_facts, facts
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

    from wsss.networks.irn import IRN

VERSION = 3
KIND = TRAINING
LOG_ONLY = frozenset({"checkpoint_steps"})
OFFICIAL = OfficialNetwork("res50_irn.pth", "IRN")


class Init(Enum):
    imagenet = "imagenet"        # official: not the trained classifier's
    classifier = "classifier"


@dataclass
class Settings(TrainingSettings):
    """`train_irn.`: the values and their sources are in `conf/recipe/`."""

    init: Init | None                # whose weights the frozen backbone has; null: imagenet if the classifier started from them,
                                     # else classifier
    scale: list[float]               # range of the random scale of the image
    displacement_lr_mult: float      # learning rate of the displacement branch, as a multiple of `lr`, that of the edge branch
    radius: int                      # of the pixel pairs, in cells of stride 4
    all_pairs: bool                  # include the pairs near the border of a crop, which the official code omits

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.crop_size % 4 == 0, "crop_size", "a multiple of 4, the stride of the labels")
        self.require(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "scale",
                     "two factors [lowest, highest] with 0 < lowest <= highest")
        self.require_factor("displacement_lr_mult")
        self.require(self.radius >= 2, "radius", "at least 2")
        self.require(self.all_pairs or self.radius <= self.crop_size // 8, "radius",
                     f"at most an eighth of {self.step}.crop_size={self.crop_size}, or {self.step}.all_pairs=true")


def lists(setup: Setup) -> Lists:
    return {"ids": setup.ids(setup.dataset.lists["train"])}


def init_of(setup: Setup) -> Init:
    """Whose weights the frozen backbone has."""
    return setup.settings.init or (Init.imagenet if setup.methods["backbone"].starts_from_weights else Init.classifier)


def unused(setup: Setup) -> dict[str, str]:
    if setup.settings.weights:
        return dict.fromkeys(("labels", "classifier"), f"weights={setup.settings.weights}")
    return {"classifier": "init=imagenet"} if init_of(setup) is Init.imagenet else {}


def identity(setup: Setup) -> dict[str, Any]:
    found = facts(setup, "seed", "precision")
    found[setup.name]["init"] = init_of(setup).value
    return {**found, **backbone_facts(setup, init_of(setup) is Init.imagenet)}


def corrected(settings: Settings) -> bool:
    return settings.weights is None


def check(setup: Setup) -> None:
    from steps.runtime.imported_networks import check_training, imported_irn
    from steps.runtime.needs import Estimate

    Estimate(setup).irn()   # refuses a backbone without suitable stages
    check_training(setup, imported_irn, init_of(setup) is Init.imagenet)


def needs(setup: Setup) -> Needs:
    from steps.runtime.needs import Estimate, directions

    estimate, settings = Estimate(setup), setup.settings
    disk, held, passing = estimate.training(estimate.irn(), log_line=330)
    affinities = 4 * estimate.part(settings.batch_size) * (settings.crop_size / 4) ** 2 * directions(settings.radius)
    return estimate.finish(disk, held, passing + 2 * affinities)   # and their gradients


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.training_pictures import edge_pictures
    from steps.runtime.imported_networks import import_network, imported_irn
    from steps.runtime.learning_rate import poly_lr
    from steps.runtime.networks import new_irn, save_network
    from steps.runtime.training import fit, make_optimizer
    from wsss.data.augment import irn_sample
    from wsss.refinement.affinity import affinity_losses, pair_counts

    if context.settings.weights:
        return import_network(context, imported_irn)
    settings, dataset = context.settings, context.dataset
    irn, read = new_irn(context), Labels(context.input("labels"), len(dataset.classes))

    def sample(epoch: int, image_id: str, batch: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        image = dataset.image(image_id)
        label = read(image_id, image.shape[:2])
        return irn_sample(image, label, generator(context.seed, context.name, epoch, image_id), settings.crop_size,
                          tuple(settings.scale), irn.backbone.normalisation)

    pairs = {"radius": settings.radius, "all_pairs": settings.all_pairs}

    def counts(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Count the pairs: the losses are means over the pairs of the whole batch."""
        return pair_counts(labels, **pairs)

    def loss(images: torch.Tensor, labels: torch.Tensor, total: torch.Tensor | None) -> dict[str, torch.Tensor]:
        edges, displacements = irn(images)
        losses = affinity_losses(edges, displacements, labels, counts=total, **pairs)
        return {"loss": losses.total, "pos_aff": losses.pos_aff, "neg_aff": losses.neg_aff,
                "dp_fg": losses.dp_fg, "dp_bg": losses.dp_bg}

    edge, displacement = irn.parameter_groups()
    optimizer = make_optimizer(settings, (edge, 1.0), (displacement, settings.displacement_lr_mult))
    schedule = Schedule(context.name, total_steps(settings, len(context.ids)), settings.batch_size, poly_lr(settings.power),
                settings.checkpoint_steps, settings.parts)
    log = fit(context, schedule, irn, optimizer, sample, loss, pictures=lambda: edge_pictures(context, irn), counts=counts)
    irn.set_displacement_mean(displacement_mean(context, irn))
    if context.runtime.group.is_main:
        save_network(context, irn)
    return {"steps": log[-1]["step"], "epochs": epochs_of(settings, len(context.ids)),
            "displacement_mean": irn.mean_shift.running_mean.tolist()}


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def displacement_mean(context: StepContext, irn: IRN) -> torch.Tensor:
    """Mean displacement (2,) over the top-left crops of all images.

    Differs from the official code because that drops the last incomplete batch, so it fails with fewer images than a batch.
    """
    import torch

    from steps.runtime.networks import require_finite_output
    from wsss.data.augment import top_left_crop

    irn.eval()
    irn.set_displacement_mean(torch.zeros(2))
    means = np.zeros((len(context.ids), 2))

    def mean(image_id: str) -> np.ndarray:
        image = top_left_crop(context.dataset.image(image_id), context.settings.crop_size, irn.backbone.normalisation)
        with torch.inference_mode(), context.runtime.autocast():
            _, displacement = irn(image[None].to(context.runtime.device))
        return require_finite_output(context, displacement, image_id).double().mean(dim=(0, 2, 3)).cpu().numpy()
    rows = context.runtime.part(range(len(context.ids)))
    at_once = max_concurrent(context.runtime.device)
    with closing(ordered_map(context, mean, context.runtime.part(context.ids), at_once)) as results:
        for row, (_, result) in zip(rows, results, strict=True):
            means[row] = result()
    in_order = context.runtime.reduce(means).cumsum(axis=0)   # added one by one: the same bits for any number of processes
    return torch.from_numpy(in_order[-1] / len(context.ids)).float()


def shown(context: StepContext) -> Iterator[Curve]:
    """The four losses."""
    return loss_curves(context, read_log(context.folder), {
        "pos_aff": "affinity, same class", "neg_aff": "affinity, other class", "dp_fg": "displacement, foreground",
        "dp_bg": "displacement, background"})
