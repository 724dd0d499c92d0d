"""The part that the gradient methods share: activations of stages, and gradients of the classes' logits with respect to them or
to the image."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        map_of: activation A (B, D, h, w) of a stage and gradient of a class's logit with respect to A -> (B, ..., h, w), a map.

    Returns:
        per stage, fine to coarse: the maps of all classes, (B, K, ..., h, w) float32, without a graph; (B, 0, h, w) if K is 0.

    Raises:
        ConfigError: there are no stages, or one that the backbone does not have.
    """
    numbers, size = stage_numbers(net, stages), (images.shape[2], images.shape[3])
    with differentiable(images) as x:
        outputs, logits = _forward(net, x, numbers)
        activations = [net.backbone.as_map(output.detach(), size) for output in outputs]
        maps: list[list[Tensor]] = [[] for _ in activations]
        for index in classes:
            gradients = torch.autograd.grad(logits[:, index].sum(), outputs, retain_graph=True)   # images are independent
            for of_stage, activation, gradient in zip(maps, activations, gradients, strict=True):
                of_stage.append(map_of(activation, net.backbone.as_map(gradient, size)))
        return [torch.stack(of_stage, dim=1) if of_stage else a.new_zeros(len(images), 0, *a.shape[2:])
                for of_stage, a in zip(maps, activations, strict=True)]


def copy_in_layout(gradient: Tensor, activation: Tensor) -> Tensor:
    """A copy of a gradient, to be changed in place, in the memory layout of the activation, which has its shape. The gradient
    of an average over the cells may not have the layout of features that are channels last, and an operation on two layouts
    takes several times longer than this copy."""
    return torch.empty_like(activation).copy_(gradient)


def stage_activations(net: Classifier, images: Tensor, stage: int) -> Tensor:
    """The activations (B, D, h, w) of a stage, as `stage_maps` gives them to `map_of`; arguments and errors as there."""
    with differentiable(images) as x, torch.no_grad():
        outputs, _ = _forward(net, x, stage_numbers(net, [stage]))
        return net.backbone.as_map(outputs[0].detach(), (images.shape[2], images.shape[3]))


def image_gradients(net: Classifier, images: Tensor, classes: Sequence[int]) -> Tensor:
    """The gradients of the classes' logits with respect to the images, (B, K, 3, H, W) float32, without a graph.

    Arguments as `stage_maps`; one forward pass for all classes, whose graph is that of the whole network.
    """
    with differentiable(images) as x:
        x = x.detach().requires_grad_()
        logits = net(x)
        gradients = [torch.autograd.grad(logits[:, index].sum(), x, retain_graph=True)[0] for index in classes]
        return torch.stack(gradients, dim=1) if gradients else x.new_zeros(len(x), 0, *x.shape[1:])


@contextmanager
def differentiable(images: Tensor) -> Iterator[Tensor]:
    """Enable gradients in float32 in the block, which gets the images as a tensor that autograd can save."""
    device = "cpu" if images.is_meta else images.device.type   # plans estimate memory on torch's meta device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        # Autograd cannot save a tensor that was made in inference mode; a copy made here is an ordinary one.
        yield images.clone() if images.is_inference() else images


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
