"""The networks of the steps: built from `model.` for training, from the weights file of a finished step for reading.

The header of a weights file names its network, so later steps do not need the `model.` settings.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import Conv2d, Module

from steps.runtime.context import StepContext
from steps.runtime.model import ModelSettings
from steps.runtime.schedule import WEIGHTS
from steps.step import Setup
from wsss.classifiers.plain import Classifier
from wsss.data.dataset import Dataset
from wsss.data.images import normalise
from wsss.errors import ArtifactError, WeightsError
from wsss.files import user_path
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.build import (
    is_at_hand,
    load_pretrained,
    new_backbone,
)
from wsss.networks.facts import read_metadata
from wsss.networks.folding import fold_batch_norm
from wsss.networks.irn import IRN
from wsss.networks.weights import (
    fill,
    load_weights,
    read_tensors,
    save_weights,
)
from wsss.official import CAM, own_state
from wsss.official import IRN as OFFICIAL_IRN
from wsss.seeding import derived_seed

N = TypeVar("N", bound=Module)
Network = TypeVar("Network", Classifier, IRN)


def new_classifier(context: StepContext) -> Classifier:
    """An untrained classifier on the step's device; its backbone has ImageNet weights if `model.` says so."""
    model = context.model
    backbone = new_backbone(model.backbone.value, model.norm, seed=derived_seed(context.seed, context.name, "backbone"))
    if model.starts_from_weights:
        load_pretrained(backbone, model.weights)
    classifier = Classifier(backbone, len(context.dataset.classes), context.settings.detach_after_layer2,
                            seed=derived_seed(context.seed, context.name, "classifier"))
    return to_train(classifier, context.runtime.device)


def to_train(classifier: Classifier, device: torch.device) -> Classifier:
    """Move a classifier to the device for training. With frozen batch norm its weights are channels_last: on the CPU a step at
    512 px takes 10 % less time in float32 and 20 % less in bf16; a small network with group norm gains nothing."""
    last = torch.channels_last if classifier.backbone.norm == "frozen_batch" else torch.preserve_format
    return classifier.to(device).to(memory_format=last)


def load_classifier(context: StepContext, gradients: bool = False) -> Classifier:
    """The classifier (role "classifier"), in evaluation mode on the step's device; for inference only.

    With `gradients` of activations its weights are as trained, in float32. No parameter requires a gradient in either case.
    """
    network = _read_classifier(context)
    return _frozen(network, context) if gradients else _only_used(network, context)


def new_irn(context: StepContext) -> IRN:
    """IRN with untrained branches on a frozen backbone: the classifier's if the step reads it, else ImageNet's."""
    if context.reads("classifier"):
        backbone = _read_classifier(context).backbone
    else:
        backbone = new_backbone(context.model.backbone.value, "frozen_batch")
        load_pretrained(backbone, context.model.weights)
    return IRN(_frozen(backbone, context), seed=derived_seed(context.seed, context.name, "branches")).to(context.runtime.device)


def load_irn(context: StepContext) -> IRN:
    """IRN (role "irn"), in evaluation mode on the step's device; for inference only."""
    irn = _load(context.input("irn") / WEIGHTS, lambda facts: IRN(new_backbone(facts["backbone"], facts["norm"])))
    return _only_used(irn, context)


def _read_classifier(context: StepContext) -> Classifier:
    return _load(context.input("classifier") / WEIGHTS, lambda facts: Classifier(
        new_backbone(facts["backbone"], facts["norm"]), facts["n_classes"]), len(context.dataset.classes))


def _frozen(network: N, context: StepContext) -> N:
    """Freeze a network and move it to the step's device. Its weights are channels_last, so every convolution is: on the CPU an
    eighth faster in float32 and a third in bf16; results change by rounding."""
    return network.eval().requires_grad_(False).to(context.runtime.device).to(memory_format=torch.channels_last)


def _only_used(network: Network, context: StepContext) -> Network:
    """Prepare a network for inference only: fold batch norm and cast weights once instead of in every call. Only folding
    changes results, by rounding."""
    fold_batch_norm(_frozen(network, context))
    if context.runtime.precision == "bf16":
        for layer in network.backbone.modules():
            if isinstance(layer, Conv2d):
                layer.to(torch.bfloat16)   # autocast would cast them in every call
    return network


def import_network(context: StepContext, read: Callable[[str, str, ModelSettings, Dataset], Classifier | IRN]) -> dict[str, Any]:
    """Import the network of a training from the file `weights` instead of training; return the step's result."""
    file = context.settings.weights
    if context.runtime.group.is_main:
        save_network(context, read(file, f"{context.name}.weights={file}", context.model, context.dataset))
    return {"imported_from": str(user_path(file).resolve())}


def imported_classifier(file: str, where: str, model: ModelSettings, dataset: Dataset) -> Classifier:
    """The classifier in a file of the official code or of a run; `where` names the file in messages.

    Raises WeightsError if the file is missing or damaged, or is of another network or number of classes.
    """
    state = own_state(read_tensors(file), CAM, where)
    head = state.get("classifier.weight")
    if head is not None and len(head) != len(dataset.classes):
        raise WeightsError(f"{where} is a classifier of {len(head)} classes (classifier.weight {tuple(head.shape)}); the data "
                           f"set {dataset.name} in {dataset.root} has {len(dataset.classes)}. Use one that was trained on this "
                           "data set")
    return _filled(Classifier(_backbone_of(state, model), len(dataset.classes)), state, where, model)


def imported_irn(file: str, where: str, model: ModelSettings, dataset: Dataset) -> IRN:
    """IRN in a file, as `imported_classifier`."""
    state = own_state(read_tensors(file), OFFICIAL_IRN, where)
    return _filled(IRN(_backbone_of(state, model)), state, where, model)


def _backbone_of(state: Mapping[str, torch.Tensor], model: ModelSettings) -> Backbone:
    """The untrained backbone of a file's weights."""
    # official networks have batch norm; only a network that a run trained from scratch has group norm
    return new_backbone(model.backbone.value, "frozen_batch" if "backbone.bn1.running_mean" in state else "group")


def _filled(network: Network, state: dict[str, torch.Tensor], where: str, model: ModelSettings) -> Network:
    fill(network, state, f"{where} (model.backbone={model.backbone.value})")
    return network


def save_network(context: StepContext, network: Classifier | IRN) -> None:
    """Write the weights of a network and the facts to build it again."""
    save_weights(context.folder / WEIGHTS, network, {
        "backbone": network.backbone.name, "norm": network.backbone.norm, "n_classes": len(context.dataset.classes)})


def feature_function(context: StepContext, classifier: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from images (B, 3, H, W) to features (B, D, h, w) in float32, computed in the run's precision."""
    def features(images: torch.Tensor) -> torch.Tensor:
        with context.runtime.autocast():
            return classifier.features(images).float()
    return features


def network_input(context: StepContext, network: Classifier | IRN, image_id: str, flip: bool = False) -> torch.Tensor:
    """An image (1, 3, H, W), with `flip` also its mirror image (2, 3, H, W), normalised for the network, on the step's
    device."""
    image = normalise(context.dataset.image(image_id), context.runtime.device, network.backbone.normalisation)
    return torch.stack([image, image.flip(-1)] if flip else [image])


def network_reader(folder: Path, n_classes: int) -> None:
    """Read and check the network of a finished training: its facts, and that all weights are finite."""
    path = folder / WEIGHTS
    _facts(path, n_classes)
    tensors = _whole(path, lambda: read_tensors(path))
    if wrong := [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ArtifactError(f"{path} holds numbers that are not finite, in {wrong[0]}. {_repair(path)}", damaged=path)


def _load(path: Path, build: Callable[[dict[str, Any]], Network], n_classes: int | None = None) -> Network:
    network = build(_facts(path, n_classes))
    _whole(path, lambda: load_weights(path, network))
    return network


def _facts(path: Path, n_classes: int | None = None) -> dict[str, Any]:
    facts = _whole(path, lambda: read_metadata(path))
    if not {"backbone", "norm", "n_classes"} <= facts.keys():
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


def check_training(setup: Setup, read: Callable[[str, str, ModelSettings, Dataset], Classifier | IRN], pretrained: bool) -> None:
    """Check before any work the file `weights` of a training or, if it starts from them (`pretrained`), the ImageNet weights."""
    if file := setup.settings.weights:
        read(file, f"{setup.name}.weights={file}", setup.config.model, setup.dataset)
    elif pretrained:
        check_weights(setup.config.model, setup.fetch)


def check_weights(model: ModelSettings, fetch: bool = True) -> None:
    """Check before any work that the ImageNet weights exist, are intact and fit; torchvision's are downloaded now.

    Without `fetch` torchvision's are checked only if they are downloaded already.

    Raises WeightsError: with the file that is needed and its place.
    """
    if fetch or model.weights is not None or is_at_hand(model.backbone.value):
        load_pretrained(new_backbone(model.backbone.value, "frozen_batch"), model.weights)
