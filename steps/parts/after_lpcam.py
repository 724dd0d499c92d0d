"""What the method of the run's maps makes of those of LPCAM: that of MCTformer multiplies them by its attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsss.cams.method import CamMethod, image_pairs

if TYPE_CHECKING:
    import numpy as np
    import torch

    from steps.runtime.context import StepContext

Pairs = list[tuple["torch.Tensor", "torch.Tensor"]]   # at each scale the maps of LPCAM-F and of LPCAM, (K, h, w)


def after_lpcam(methods: Mapping[str, Any], amn: bool) -> CamMethod | None:
    """The method of the run's maps if it changes those of LPCAM; never with `amn`, whose maps it does not make."""
    method: CamMethod = methods["cam"]
    return method if method.after_lpcam and not amn else None


def refined(context: StepContext, method: CamMethod, network: Any, image: np.ndarray, facts: Mapping[str, Any],
            pairs: Pairs) -> Pairs:
    """The maps of an image (H, W, 3) at its scales after `method`. `facts`: of the CAMs."""
    import torch

    inputs = image_pairs(image, facts["scales"], context.runtime.device, network.backbone.normalisation)
    with torch.inference_mode(), context.runtime.autocast():
        both = [method.refined(network, pair, torch.cat(maps), 2 * facts["classes"]).chunk(2)
                for pair, maps in zip(inputs, pairs, strict=True)]
    return [(fg, full) for fg, full in both]


def as_forward(method: CamMethod, network: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """`method.refined` as a function of a pair (2, 3, H, W), for an estimate."""
    def grid(sides: Sequence[int]) -> list[int]:
        return [-(-side // network.backbone.feature_stride) for side in sides]
    return lambda pair: method.refined(network, pair, pair.new_empty(1, *grid(pair.shape[2:])), [0])
