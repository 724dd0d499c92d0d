"""Whether activation maps depend on what a network has learned: the randomisation of its layers (Adebayo et al., "Sanity Checks
for Saliency Maps", NeurIPS 2018).

Layer by layer, from the head down, the weights are drawn anew. A map that stays the same does not show what was learned.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from wsss.classifiers.classifier import Classifier

HEAD = "head"


def weight_layers(net: Classifier, images: Tensor) -> dict[str, list[nn.Module]]:
    """The layers with weights of a classifier, from the output to the input: "head", "stage N", ..., "stage 0".

    A layer belongs to the first of the backbone's stages that is complete after it, in the order of computation; what comes after
    the last one is the head. A weight is a parameter of two or more dimensions of a module without children.

    Args:
        images: (B, 3, H, W), normalised; they go through the network once.
    """
    stages = net.backbone.stage_modules
    found: dict[int, dict[nn.Module, None]] = {number: {} for number in reversed(range(len(stages) + 1))}
    complete, seen = 0, set[nn.Module]()

    def layer(module: nn.Module, *_: object) -> None:
        if module not in seen:
            seen.add(module)
            found[complete][module] = None

    def stage(module: nn.Module, *_: object) -> None:
        nonlocal complete
        complete = max(complete, stages.index(module) + 1)
    hooks = [module.register_forward_hook(layer) for module in net.modules() if not [*module.children()] and _weights(module)]
    hooks += [module.register_forward_hook(stage) for module in stages]   # after a layer that is a stage itself
    try:
        with torch.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {HEAD if number == len(stages) else f"stage {number}": [*layers] for number, layers in found.items() if layers}


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters(recurse=False) if parameter.ndim >= 2]


def cascading(layers: dict[str, list[nn.Module]], seed: int) -> Iterator[str]:
    """Randomise layers in place, part by part, and yield the name of each part when it and all before it are random.

    The weights are normal with mean 0 and the standard deviation of the trained ones. Differs from Adebayo et al. and Quantus,
    who draw weights, biases and norms as before a training: not every layer has such a draw, and beside the trained statistics of
    batch norm the activations would vanish or explode.
    """
    draws = torch.Generator().manual_seed(seed)   # its own: what happens between two parts draws too
    for name, modules in layers.items():
        for weight in (weight for module in modules for weight in _weights(module)):
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=draws) * weight.float().std(correction=0).cpu())
        yield name


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two maps of the same shape, in [-1, 1]; 0 if one of them is constant.

    Of the signed values; Adebayo et al. also show that of the absolute ones.
    """
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def ssim(first: np.ndarray, second: np.ndarray, sigma: float = 1.5) -> float:
    """The structural similarity (Wang et al., 2004) of two maps (H, W), each brought to [0, 1], a constant one to 0; in [-1, 1].

    Means and covariances in a Gaussian window of 11 x 11 pixels, constants 0.01 and 0.03 of the range, and the mean over the
    image without a border of 5 pixels, if it is larger: scikit-image's `structural_similarity` with gaussian_weights=True and
    use_sample_covariance=False.
    """
    from scipy.ndimage import gaussian_filter

    a, b = (_to_unit(each) for each in (first, second))

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, sigma, truncate=3.5)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a ** 2, mean(b * b) - mean_b ** 2, mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01 ** 2, 0.03 ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2))
    border = 5 if min(similar.shape) > 10 else 0
    return float(similar[border:similar.shape[0] - border, border:similar.shape[1] - border].mean())


def _to_unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    span = np.ptp(values)
    return (values - values.min()) / span if span else np.zeros_like(values)
