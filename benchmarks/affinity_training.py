"""train_irn: the official loop, gathering all pixels of all paths (`net/resnet50_irn.py`, `misc/indexing.py`), against ours."""

import copy
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import CPU, Case, greatest_difference
from benchmarks.random_walk import search_directions, straight_path
from benchmarks.setting import Run, backbone, drawn
from benchmarks.training import RATE, STEPS, our_step
from steps.runtime.networks import new_irn
from wsss.networks.irn import IRN
from wsss.refinement.affinity import affinity_losses


class PathIndex:
    """Flat indices of all pixels of all paths, by the length of the paths: (directions, length, sources) each."""

    def __init__(self, radius: int, size: tuple[int, int], device: torch.device = CPU):
        height, width = size
        self.reach, self.rows, self.columns = radius - 1, height - radius + 1, width - 2 * (radius - 1)
        directions = sorted(search_directions(radius), key=lambda d: len(straight_path(*d)))
        self.directions, self.paths = directions, []
        full = torch.arange(height * width, device=device).view(size)
        for _, group in groupby(directions, key=lambda d: len(straight_path(*d))):
            self.paths.append(torch.stack([self._pixels(full, straight_path(*direction)) for direction in group]))
        self.source = self._window(full, 0, 0).flatten()
        self.destination = torch.stack([self._window(full, *direction).flatten() for direction in directions])

    def _pixels(self, full: Tensor, path: list[tuple[int, int]]) -> Tensor:
        return torch.stack([self._window(full, *pixel).flatten() for pixel in path])   # (length, sources)

    def _window(self, maps: Tensor, dy: int, dx: int) -> Tensor:
        return maps[..., dy:dy + self.rows, self.reach + dx:self.reach + dx + self.columns]

    def labels(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, directions, sources) float32: both background, both of one foreground class, of two classes."""
        flat = labels.flatten(1).long()
        one, other = flat[:, self.source][:, None], flat[:, self.destination]
        valid, equal = (one < 255) & (other < 255), one == other
        return (valid & equal & (one == 0)).float(), (valid & equal & (one > 0)).float(), (valid & ~equal).float()

    def affinity(self, edge: Tensor) -> Tensor:
        """(B, directions, sources) from (B, 1, h, w) in [0, 1]."""
        flat = edge.flatten(1)
        parts = []
        for index in self.paths:
            values = flat.index_select(-1, index.flatten()).view(len(flat), *index.shape)
            parts.append((1 - F.max_pool2d(values, (values.shape[2], 1))).squeeze(2))
        return torch.cat(parts, 1)

    def displacements(self, displacement: Tensor) -> Tensor:
        """(B, 2, directions, sources)."""
        there = torch.stack([self._window(displacement, *direction) for direction in self.directions], 2)
        return (self._window(displacement, 0, 0)[:, :, None] - there).flatten(3)


def official_losses(index: PathIndex, edge_logits: Tensor, displacement: Tensor, labels: tuple[Tensor, ...]) -> list[Tensor]:
    """pos_aff, neg_aff, dp_fg, dp_bg (`step/train_irn.py`)."""
    bg, fg, negative = labels
    affinity, moved = index.affinity(torch.sigmoid(edge_logits)), index.displacements(displacement)
    target = torch.tensor(index.directions, dtype=moved.dtype, device=moved.device).T[None, :, :, None]
    positive = -torch.log(affinity + 1e-5)
    pos = (bg * positive).sum() / (bg.sum() + 1e-5) / 2 + (fg * positive).sum() / (fg.sum() + 1e-5) / 2
    neg = (negative * -torch.log(1 + 1e-5 - affinity)).sum() / (negative.sum() + 1e-5)
    dp_fg = ((moved - target).abs() * fg[:, None]).sum() / (2 * fg.sum() + 1e-5)
    dp_bg = (moved.abs() * bg[:, None]).sum() / (2 * bg.sum() + 1e-5)
    return [pos, neg, dp_fg, dp_bg]


def official_stages(irn: IRN, x: Tensor) -> tuple[Tensor, ...]:
    """The backbone's stages, computed with a graph that a detach then discards (official `Net.forward`)."""
    net = irn.backbone
    stages = [lambda x: net.maxpool(net.relu(net.bn1(net.conv1(x)))), net.layer1, net.layer2, net.layer3, net.layer4]
    outputs = []
    for stage in stages:
        x = stage(x).detach()
        outputs.append(x)
    return tuple(outputs)


def irn_case(quick: bool, precision: str = "float32", sizes: tuple[int, int] | None = None, device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop."""
    (batch, crop), radius = sizes or ((2, 256) if quick else (4, 512)), 10
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(batch, 3, 32, 32, generator=draw), crop, mode="bicubic")
    regions = F.interpolate(torch.randn(batch, 4, 6, 6, generator=draw), crop // 4, mode="bicubic").argmax(1)
    images, labels = images.to(device), torch.tensor([0, 3, 7, 255])[regions].byte().to(device)
    theirs = IRN(copy.deepcopy(backbone())).to(device).train()
    mine = new_irn(Run(drawn(1, (64, 64)), device=device).context("train_irn")).train()
    theirs.load_state_dict(mine.state_dict())
    for parameter in theirs.backbone.parameters():
        parameter.requires_grad_(True)      # official: gradients of the backbone are not disabled
    index = PathIndex(radius, (crop // 4, crop // 4), device)
    pairs = index.labels(labels)            # official: made by the loader
    groups = [{"params": params, "lr": RATE * factor} for params, factor in zip(theirs.parameter_groups(), (1, 10))]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=1e-4, weight_decay=1e-4)

    def official() -> Tensor:
        losses = []
        for _ in range(STEPS):
            stages = official_stages(theirs, images)
            edges, displacements = theirs._edge(stages, images), theirs._displacement(stages, images)
            pos, neg, dp_fg, dp_bg = official_losses(index, edges, displacements, pairs)
            total = (pos + neg) / 2 + (dp_fg + dp_bg) / 2
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.detach())
        return torch.stack(losses)

    def loss(images: Tensor, labels: Tensor, total: None) -> dict[str, Tensor]:
        return {"loss": affinity_losses(*mine(images), labels, radius=radius).total}
    edge, displacement = mine.parameter_groups()
    ours = our_step(mine, ((edge, 1.0), (displacement, 10.0)), loss, (images, labels), precision)
    return Case(f"{crop}x{crop}, batch {batch}, radius {radius}", ours, official, greatest_difference,
                "the official loop; difference: of the loss", f"float32, NCHW -> {precision}", batch * STEPS)


BENCHMARKS = {"train_irn": irn_case, "train_irn_bf16": lambda quick: irn_case(quick, "bf16")}
