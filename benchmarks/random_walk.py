"""The random walk: a dense transition matrix squared eight times (official `misc/indexing.py`) against ours."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import CPU, Case, greatest_difference
from wsss.refinement.walk import random_walk


def dense_walk(x: Tensor, edge: Tensor, beta: float = 10, exp_times: int = 8, radius: int = 5) -> Tensor:
    """(x * (1 - edge)) T^(2^exp_times) for x (K, h, w) and edge (h, w), with dense T (h*w, h*w) in the dtype of x."""
    height, width = edge.shape
    padded = F.pad(edge, (radius, radius, 0, radius), value=1.0)          # affinity 0 to pixels outside
    rows, columns = padded.shape
    y, x0 = np.mgrid[:height, radius:radius + width]
    source = torch.from_numpy((y * columns + x0).ravel()).to(x.device)
    matrix = x.new_zeros(height * width, height * width)
    inside = torch.full((rows * columns,), -1, device=x.device)
    inside[source] = torch.arange(height * width, device=x.device)
    for dy, dx in search_directions(radius):
        path = torch.tensor([py * columns + px for py, px in straight_path(dy, dx)], device=x.device)
        affinity = 1 - padded.flatten()[source[:, None] + path].amax(1)   # (h * w,)
        target = inside[source + dy * columns + dx]
        here = (target >= 0).nonzero()[:, 0]
        matrix[here, target[here]] = matrix[target[here], here] = affinity[here]
    matrix.fill_diagonal_(1)
    matrix = matrix.pow_(beta)
    matrix /= matrix.sum(0, keepdim=True)
    for _ in range(exp_times):
        matrix = matrix @ matrix
    return ((x * (1 - edge)).flatten(1) @ matrix).view_as(x)


def search_directions(radius: int) -> list[tuple[int, int]]:
    """(dy, dx) to the pixels nearer than `radius`, to the right and down: 34 for radius 5, 152 for radius 10."""
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy * dy + dx * dx < radius ** 2]
    return [(0, dx) for dx in range(1, radius)] + below


def straight_path(dy: int, dx: int) -> list[tuple[int, int]]:
    """The pixels nearer than 1 to the line from (0, 0) to (dy, dx), both ends included."""
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def maps_and_edge(height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Smooth activation maps (K, h, w) and a boundary map (h, w) with thin ridges, both in [0, 1], at stride 4 of an image."""
    size, draw = (-(-height // 4), -(-width // 4)), torch.Generator().manual_seed(0)
    noise = F.interpolate(torch.randn(1, classes + 1, 9, 12, generator=draw), size, mode="bicubic")[0]
    return noise[:-1].sigmoid(), torch.exp(-(noise[-1] / 0.08) ** 2)


def walk_case(height: int, width: int, classes: int, dtype: torch.dtype = torch.float32, dense: bool = True,
              device: torch.device = CPU) -> Case:
    x, edge = (tensor.to(device, dtype) for tensor in maps_and_edge(height, width, classes))
    official = (lambda: dense_walk(x, edge)) if dense else None
    return Case(f"{height}x{width}, {classes} classes", lambda: random_walk(x, edge), official, greatest_difference,
                "dense matrix squared 8 times", f"{dtype} -> float64".replace("torch.", ""))


def bare_passes(height: int, width: int, classes: int) -> Case:
    """The walk against only its multiply-adds of whole maps, which shows how near it is to the memory bandwidth."""
    x, edge = maps_and_edge(height, width, classes)
    pixels, products, bands = edge.numel(), 96, 69
    moved, total, result = (torch.rand(classes, pixels, dtype=torch.float64) for _ in range(3))
    weights = torch.rand(35, pixels, dtype=torch.float64)

    def passes() -> None:
        for _ in range(products):
            for band in range(bands):
                torch.addcmul(total, weights[band // 2], moved, out=result)
    return Case(f"{height}x{width}, {classes} classes", lambda: random_walk(x, edge), passes, None,
                f"{products} x {bands} multiply-adds of whole maps, nothing else", "float64")


BENCHMARKS = {
    "random_walk": lambda quick: walk_case(*((128, 170) if quick else (375, 500)), 2),
    "random_walk_float64": lambda quick: walk_case(96, 128, 2, torch.float64),
    "random_walk_passes": lambda quick: bare_passes(375, 500, 2),
    "random_walk_large": lambda quick: walk_case(*((500, 500) if quick else (1000, 1000)), 20, dense=False),
}
