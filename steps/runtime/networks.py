"""The networks of the steps: built by the methods of the configuration for training, from the weights file of a finished step for
reading.

The header of a weights file names its network, so later steps do not need these settings.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import Conv2d, Linear, Module

from steps.runtime.context import StepContext
from steps.runtime.schedule import WEIGHTS
from steps.step import Setup
from wsss.classifiers.classifier import Classifier
from wsss.data.dataset import Dataset
from wsss.data.images import normalise
from wsss.errors import ArtifactError, ConfigError, WeightsError, WsssError
from wsss.families import from_facts
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.amn import AMN
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.method import rebuilt
from wsss.networks.facts import read_metadata
from wsss.networks.folding import fold_batch_norm
from wsss.networks.irn import IRN
from wsss.networks.weights import load_weights, read_tensors, save_weights
from wsss.seeding import derived_seed
from wsss.segmenters.segmenter import Segmenter

N = TypeVar("N", bound=Module)
Network = TypeVar("Network", Classifier, IRN, Segmenter, AMN, AffinityNet)


def new_classifier(context: StepContext) -> Classifier:
    """A classifier to train, on the step's device. What a finished one (role "init") has of it has these weights; without one its
    backbone has ImageNet weights if `backbone.` says so."""
    first = read_classifier(context, "init") if context.reads("init") else None
    backbone = first.backbone if first is not None else new_backbone(context)
    classifier = context.methods["classifier"].new(backbone, len(context.dataset.classes),
                                                   derived_seed(context.seed, context.name, "classifier"))
    if first is not None:
        classifier.load_state_dict(first.state_dict(), strict=False)
    if context.settings.freeze_early and context.methods["backbone"].starts_from_weights:   # random layers must learn
        freeze_early(backbone)
    return to_train(classifier, context.runtime.device)


def new_backbone(context: StepContext) -> Backbone:
    """A backbone to train; it has ImageNet weights if `backbone.` says so."""
    method = context.methods["backbone"]
    backbone = method.new(seed=derived_seed(context.seed, context.name, "backbone"))
    if method.starts_from_weights:
        method.load(backbone)
    return backbone


def freeze_early(backbone: Backbone) -> None:
    """Do not train the early layers (`Backbone.early_parameters`): no gradients are computed for them."""
    for parameter in backbone.early_parameters():
        parameter.requires_grad_(False)


def to_train(network: Network, device: torch.device) -> Network:
    """Move a network to the device for training. With frozen batch norm its weights are channels_last: on the CPU a step at
    512 px takes 10 % less time in float32 and 20 % less in bf16; a small network with group norm gains nothing."""
    last = torch.channels_last if network.backbone.norm == "frozen_batch" else torch.preserve_format
    return network.to(device).to(memory_format=last)


def load_classifier(context: StepContext, gradients: bool = False) -> Classifier:
    """The classifier (role "classifier"), in evaluation mode on the step's device; for inference only.

    With `gradients` of activations its weights are as trained, in float32. No parameter requires a gradient in either case.
    """
    network = read_classifier(context)
    return _frozen(network, context) if gradients else only_used(network, context)


def new_irn(context: StepContext) -> IRN:
    """IRN with untrained branches on a frozen backbone: the classifier's if the step reads it, else ImageNet's."""
    if context.reads("classifier"):
        backbone = read_classifier(context).backbone
    else:
        method = context.methods["backbone"]
        backbone = method.new("frozen_batch")
        method.load(backbone)
    return IRN(_frozen(backbone, context), seed=derived_seed(context.seed, context.name, "branches")).to(context.runtime.device)


def new_segmenter(context: StepContext) -> Segmenter:
    """An untrained segmentation network on the step's device; its backbone has ImageNet weights if `backbone.` says so."""
    network = context.methods["segmenter"].new(new_backbone(context), len(context.dataset.classes) + 1,
                                               derived_seed(context.seed, context.name, "segmenter"))
    return to_train(network, context.runtime.device)


def load_segmenter(context: StepContext) -> Segmenter:
    """The segmentation network (role "network"), in evaluation mode on the step's device; for inference only."""
    network = load_network(context.input("network") / WEIGHTS, lambda facts: from_facts("segmenter", facts["segmenter"]).new(
        rebuilt(facts["backbone"]), facts["n_classes"] + 1), len(context.dataset.classes))
    return only_used(network, context)


def load_irn(context: StepContext) -> IRN:
    """IRN (role "irn"), in evaluation mode on the step's device; for inference only."""
    irn = load_network(context.input("irn") / WEIGHTS, lambda facts: IRN(rebuilt(facts["backbone"])))
    return only_used(irn, context)


def read_classifier(context: StepContext, role: str = "classifier") -> Classifier:
    return load_network(context.input(role) / WEIGHTS, lambda facts: from_facts("classifier", facts["classifier"]).new(
        rebuilt(facts["backbone"]), facts["n_classes"]), len(context.dataset.classes))


def _frozen(network: N, context: StepContext) -> N:
    """Freeze a network and move it to the step's device. Its weights are channels_last, so every convolution is: on the CPU an
    eighth faster in float32 and a third in bf16; results change by rounding."""
    return network.eval().requires_grad_(False).to(context.runtime.device).to(memory_format=torch.channels_last)


def only_used(network: Network, context: StepContext) -> Network:
    """Prepare a network for inference only: fold batch norm and cast weights once instead of in every call. Only folding
    changes results, by rounding."""
    built_by = [type(network).__name__, network.backbone.facts, getattr(network, "facts", None)]
    _frozen(network, context)   # AMN reads labels besides the image that goes through it, and has no batch norm of its own
    fold_batch_norm(network.backbone if isinstance(network, AMN) else network, json.dumps(built_by, sort_keys=True))
    if context.runtime.precision == "bf16":
        for layer in network.backbone.modules():
            if type(layer) in (Conv2d, Linear):   # others may compute with their weights before autocast casts the result
                layer.to(torch.bfloat16)
    return network


def save_network(context: StepContext, network: Classifier | IRN | Segmenter | AMN | AffinityNet, **more: Any) -> None:
    """Write the weights of a network, the facts to build it again, and `more` facts, as JSON values."""
    save_weights(context.folder / WEIGHTS, network,
                 {"backbone": network.backbone.facts, **network.facts, "n_classes": len(context.dataset.classes), **more})


def feature_function(context: StepContext, classifier: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from images (B, 3, H, W) to features (B, D, h, w) in float32, computed in the run's precision."""
    return in_precision(context, classifier.features)


def logit_function(context: StepContext, classifier: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `feature_function`, to logits (B, C)."""
    if not classifier.reads_features:
        return in_precision(context, classifier)
    features_of = feature_function(context, classifier)
    return lambda x: classifier.head(features_of(x))


def in_precision(context: StepContext,
                 function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of a tensor that is computed in the run's precision, and its result in float32."""
    def compute(x: torch.Tensor) -> torch.Tensor:
        with context.runtime.autocast():
            return function(x).float()
    return compute


def network_input(context: StepContext, network: Classifier | IRN | Segmenter | AMN | AffinityNet, image_id: str,
                  flip: bool = False) -> torch.Tensor:
    """An image (1, 3, H, W), with `flip` also its mirror image (2, 3, H, W), normalised for the network, on the step's
    device."""
    image = normalise(context.dataset.image(image_id), context.runtime.device, network.backbone.normalisation)
    return torch.stack([image, image.flip(-1)] if flip else [image])


def require_finite_output(context: StepContext, output: torch.Tensor, image_id: str) -> torch.Tensor:
    """Return what the network computes for an image. Raises WsssError if it is not finite, as by finite but too large weights."""
    if not output.isfinite().all():
        raise WsssError(f"the network's output for {image_id} is not finite, expected finite numbers. Lower "
                        f"{context.name}.lr, or use other weights")
    return output


def network_reader(folder: Path, n_classes: int) -> None:
    """Read and check the network of a finished training: its facts, and that all weights are finite."""
    path = folder / WEIGHTS
    _facts(path, n_classes)
    tensors = _whole(path, lambda: read_tensors(path))
    if wrong := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ArtifactError(f"{path} holds numbers that are not finite, in {wrong[0]}. {_repair(path)}", damaged=path)


def load_network(path: Path, build: Callable[[dict[str, Any]], Network], n_classes: int | None = None) -> Network:
    """The network in the weights file of a finished step; `build` makes it from the facts. Raises ArtifactError."""
    facts = _facts(path, n_classes)
    try:
        network = build(facts)
    except (ConfigError, LookupError, TypeError) as error:   # made with a method that is not there any more
        raise ArtifactError(f"{path} is of a network that cannot be built ({error}). {_repair(path)}", damaged=path) from error
    _whole(path, lambda: load_weights(path, network))
    return network


def _facts(path: Path, n_classes: int | None = None) -> dict[str, Any]:
    facts = _whole(path, lambda: read_metadata(path))
    if not {"backbone", "n_classes"} <= facts.keys():
        raise ArtifactError(f"{path} does not say which network it belongs to. {_repair(path)}", damaged=path)
    if n_classes is not None and facts["n_classes"] != n_classes:
        raise ArtifactError(f"{path} was trained for {facts['n_classes']} classes, the data set has {n_classes}. Choose "
                            "another run with name=NAME, or train again with replace=true")
    return facts


def _whole(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except WeightsError as error:
        raise ArtifactError(f"{path} cannot be read ({error}). {_repair(path)}", damaged=path) from error


def _repair(path: Path) -> str:
    return (f"Delete it; the same command then makes it from {path.parent.name}'s last saved state, or, without one, trains "
            "again with replace=true")


def planned_classifier(setup: Setup) -> Classifier:
    """The classifier of the configuration without data, on torch's meta device. Raises ConfigError if it cannot be built."""
    with torch.device("meta"):
        return setup.methods["classifier"].new(setup.methods["backbone"].new(), len(setup.dataset.classes)).eval()


def check_init(setup: Setup) -> None:
    """Raise ConfigError if the classifier that a training goes on from (role "init") has weights that its own has not."""
    for source in setup.sources.get("init", ()):
        before, after = planned_classifier(replace(setup, name=source.step)), planned_classifier(setup)
        if lost := sorted(before.state_dict().keys() - after.state_dict().keys()):
            raise ConfigError(f"{setup.name} goes on from the classifier of {source.step}, but its own, "
                              f"{after.facts['classifier']['method']}, has no {', '.join(lost)}, which would be lost. Choose "
                              f"another classifier for {source.step}, such as classifier=plain")


def planned_segmenter(methods: Mapping[str, Any], dataset: Dataset) -> Segmenter:
    """A segmentation network as `planned_classifier`."""
    with torch.device("meta"):
        return methods["segmenter"].new(methods["backbone"].new(), len(dataset.classes) + 1)
