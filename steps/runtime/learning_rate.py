"""The learning rate over a training, as a factor of that in the settings: step, total -> factor."""

import math
from collections.abc import Callable

from wsss.classifiers.classifier import poly_factor


def poly_lr(power: float, warmup: float = 0.0, interval: int = 1, start: float | None = None) -> Callable[[int, int], float]:
    """The official poly schedule (1 - step / total)^power, with linear warm-up over the share `warmup` of the steps. It changes
    every `interval` steps only.

    start: the warm-up begins with this factor, and the poly schedule after it, over the other steps (EDAM's `PolyOptimizer`).
    """
    def rate(step: int, total: int) -> float:
        if start is not None:
            rising = round(warmup * total)
            if step < rising:
                return start + (1 - start) * step / rising
            return poly_factor(step - rising, total - rising, power)
        rise = min(1.0, (step + 1) / (warmup * total)) if warmup else 1.0
        return rise * poly_factor(step - step % interval, total, power)
    return rate


def cosine_lr(warmup: float = 0.0, start: float | None = None, least: float = 0.0) -> Callable[[int, int], float]:
    """timm's cosine schedule (`CosineLRScheduler`): half a wave over all steps, from 1 down to `least`. In the first share
    `warmup` of the steps the factor rises linearly to 1 instead, from `start`, or so that it would be 0 before the first step."""
    def rate(step: int, total: int) -> float:
        rising = round(warmup * total)
        if step < rising:
            return (step + 1) / rising if start is None else start + (1 - start) * step / rising
        return least + (1 - least) * (1 + math.cos(math.pi * step / total)) / 2
    return rate
