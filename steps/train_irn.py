"""Train IRN's boundary (edge) and displacement branches on the confident labels.

Paper: Ahn, Cho & Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019;
official files: `step/train_irn.py`, `net/resnet50_irn.py`. Reads the labels of cam_to_ir_label (and the classifier, if
its backbone is used); writes `weights.safetensors`, `log.jsonl`, `log.csv` and the resumable `state.safetensors`.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.runtime.artifacts import Labels
from steps.runtime.concurrency import max_concurrent, ordered_map
from steps.runtime.context import StepContext, require
from steps.runtime.schedule import OptimizerName, Schedule, epochs_of, require_schedule
from wsss.seeding import generator

if TYPE_CHECKING:
    import torch

    from wsss.networks.irn import IRN

VERSION = 2


class IRNBackbone(Enum):
    imagenet = "imagenet"        # official: torchvision's weights, not the trained classifier's
    classifier = "classifier"    # the classifier's, frozen


@dataclass
class Settings:
    """`train_irn.`: the values and their sources are in `conf/recipe/`."""

    split: str | None                # the list to train on; null: train
    backbone: IRNBackbone | None     # null: imagenet if the classifier started from ImageNet weights, else classifier
    epochs: int | None               # null: from the next two, as in train_cam
    min_epochs: int
    min_steps: int
    batch_size: int
    crop_size: int                   # pixels
    scale: list[float]               # range of the random scale of the image
    optimizer: OptimizerName
    lr: float                        # of the edge branch
    displacement_lr_mult: float      # learning rate of the displacement branch, as a multiple of `lr`
    momentum: float
    weight_decay: float
    power: float                     # of the poly schedule
    radius: int                      # of the pixel pairs, in cells of stride 4
    all_pairs: bool                  # include the pairs near the border of a crop, which the official code omits
    checkpoint_steps: int
    accumulate: int                  # parts of a batch, as in train_cam

    def __post_init__(self) -> None:
        require_schedule("train_irn", self)
        require(len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1], "train_irn.scale", self.scale,
                "two factors [lowest, highest] with 0 < lowest <= highest")
        require(self.displacement_lr_mult > 0, "train_irn.displacement_lr_mult", self.displacement_lr_mult, "above 0")
        require(self.radius >= 2, "train_irn.radius", self.radius, "at least 2")
        require(self.all_pairs or self.radius <= self.crop_size // 8, "train_irn.radius", self.radius,
                f"at most an eighth of train_irn.crop_size={self.crop_size}, or train_irn.all_pairs=true")


def run(context: StepContext) -> dict[str, Any]:
    from steps.parts.training_pictures import edge_pictures
    from steps.runtime.networks import import_network, new_irn, save_network
    from steps.runtime.training import fit, make_optimizer, poly_lr
    from wsss.data.augment import irn_sample
    from wsss.refinement.affinity import affinity_losses, pair_counts

    if context.model.imported("train_irn"):
        return import_network(context, "train_irn")
    settings, dataset = context.settings, context.dataset
    irn, read = new_irn(context), Labels(context.inputs["cam_to_ir_label"], len(dataset.classes))

    def sample(epoch: int, image_id: str) -> tuple[torch.Tensor, torch.Tensor]:
        image = dataset.image(image_id)
        label = read(image_id, image.shape[:2])
        return irn_sample(image, label, generator(context.seed, "train_irn", epoch, image_id), settings.crop_size,
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
    schedule = Schedule("train_irn", epochs_of(settings, len(context.ids)), settings.batch_size, poly_lr(settings.power),
                settings.checkpoint_steps, settings.accumulate)
    log = fit(context, schedule, irn, optimizer, sample, loss, pictures=lambda: edge_pictures(context, irn), counts=counts)
    irn.set_displacement_mean(displacement_mean(context, irn))
    if context.group.is_main:
        save_network(context, irn)
    return {"steps": log[-1]["step"], "epochs": schedule.epochs, "displacement_mean": irn.mean_shift.running_mean.tolist()}


def reader(folder: Path, n_classes: int) -> None:
    from steps.runtime.networks import network_reader

    network_reader(folder, n_classes)


def displacement_mean(context: StepContext, irn: IRN) -> torch.Tensor:
    """Mean displacement (2,) over the top-left crops of all images.

    Differs from the official code because that drops the last incomplete batch, so it fails with fewer images than a batch.
    """
    import torch

    from wsss.data.augment import top_left_crop

    irn.eval()
    irn.set_displacement_mean(torch.zeros(2))
    total = torch.zeros(2, dtype=torch.float64)

    def mean(image_id: str) -> torch.Tensor:
        image = top_left_crop(context.dataset.image(image_id), context.settings.crop_size, irn.backbone.normalisation)
        with torch.inference_mode(), context.autocast():
            _, displacement = irn(image[None].to(context.device))
        return displacement.double().mean(dim=(0, 2, 3)).cpu()
    with closing(ordered_map(context, mean, context.part(context.ids), max_concurrent(context.device))) as means:
        for _, result in means:
            total += result()
    return (context.group.sum(total) / len(context.ids)).float()
