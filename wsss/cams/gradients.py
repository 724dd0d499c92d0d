"""The part that the gradient methods share: activations of stages, and gradients of the classes' logits with respect to them."""

from collections.abc import Callable, Sequence
from threading import get_ident

import torch
from torch import Tensor

from wsss.classifiers.classifier import Classifier
from wsss.errors import ConfigError


def stage_maps(net: Classifier, images: Tensor, classes: Sequence[int], stages: Sequence[int],
               map_of: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The maps of a method at some stages, with one forward pass for all classes.

    The graph starts at the finest of the stages, so that neither the layers before it nor any parameters are differentiated.
    Computed in float32, also within a caller's autocast, `no_grad` or inference mode. Frozen parameters save memory: others
    need the activations before the finest stage until it is reached.

    Args:
        net: in evaluation mode, in float32. Several threads may use it at the same time.
        images: (B, 3, H, W) normalised.
        classes: K class indices, from 0; K may be 0.
        stages: indices of `net.backbone.stage_modules`; negative ones count from the end. A stage named twice counts once.
        map_of: activation A (B, D, h, w) of a stage and gradient of a class's logit with respect to A -> map (B, h, w).

    Returns:
        per stage, fine to coarse: (B, K, h, w) float32, without a graph.

    Raises:
        ConfigError: there are no stages, or one that the backbone does not have.
    """
    numbers, size = stage_numbers(net, stages), (images.shape[2], images.shape[3])
    device = "cpu" if images.is_meta else images.device.type   # plans estimate memory on torch's meta device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        # Autograd cannot save a tensor that was made in inference mode; a copy made here is an ordinary one.
        outputs, logits = _forward(net, images.clone() if images.is_inference() else images, numbers)
        activations = [net.backbone.as_map(output.detach(), size) for output in outputs]
        maps = [a.new_zeros(len(images), len(classes), *a.shape[2:]) for a in activations]
        for k, index in enumerate(classes):
            gradients = torch.autograd.grad(logits[:, index].sum(), outputs, retain_graph=True)   # images are independent
            for out, activation, gradient in zip(maps, activations, gradients, strict=True):
                out[:, k] = map_of(activation, net.backbone.as_map(gradient, size))
    return maps


def stage_numbers(net: Classifier, stages: Sequence[int]) -> list[int]:
    """The stages counted from 0, fine to coarse. Raises ConfigError if there are none, or one that the backbone does not have."""
    count = len(net.backbone.stage_modules)
    for stage in stages:
        if not -count <= stage < count:
            raise ConfigError(f"stage {stage} does not exist: {net.backbone.name} has {count} stages, expected a number from "
                                f"{-count} to {count - 1}")
    if not stages:
        raise ConfigError(f"the list of stages is empty, expected numbers from {-count} to {count - 1}")
    return sorted({stage % count for stage in stages})


def _forward(net: Classifier, images: Tensor, numbers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The outputs of the stages' modules, and the logits (B, C) as a function of the finest one."""
    outputs: list[Tensor] = []
    thread = get_ident()

    def hook(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if get_ident() != thread:
            return None   # the forward pass of another image, in a thread that shares the network
        outputs.append(output if outputs else output.detach().requires_grad_())
        return outputs[-1]
    handles = [net.backbone.stage_modules[number].register_forward_hook(hook) for number in numbers]
    try:
        return outputs, net(images)
    finally:
        for handle in handles:
            handle.remove()
