"""AMN in the steps, as `steps.runtime.networks` for the other networks. It reads the labels of an image besides the image."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from steps.runtime.context import StepContext
from steps.runtime.imported_networks import Read, backbone_of, filled
from steps.runtime.networks import (
    N,
    feature_function,
    freeze_early,
    in_precision,
    load_network,
    new_backbone,
    only_used,
    to_train,
)
from steps.runtime.schedule import WEIGHTS
from steps.step import Setup
from wsss.classifiers.classifier import Classifier
from wsss.data.dataset import Dataset
from wsss.networks.amn import AMN
from wsss.networks.backbones.method import rebuilt
from wsss.networks.weights import read_tensors
from wsss.official_networks import AMN as OFFICIAL
from wsss.official_networks import own_state
from wsss.seeding import derived_seed


def new_amn(context: StepContext) -> AMN:
    """AMN to train, on the step's device; its backbone has ImageNet weights if `backbone.` says so."""
    settings, backbone = context.settings, new_backbone(context)
    if settings.freeze_early and context.methods["backbone"].starts_from_weights:   # random layers must learn
        freeze_early(backbone)
    network = AMN(backbone, len(context.dataset.classes), settings.rates, settings.dropout,
                  derived_seed(context.seed, context.name, "amn"))
    return to_train(network, context.runtime.device)


def load_amn(context: StepContext, role: str = "network") -> AMN:
    """AMN, in evaluation mode on the step's device; for inference only."""
    network = load_network(context.input(role) / WEIGHTS, lambda facts: AMN(
        rebuilt(facts["backbone"]), facts["n_classes"], **facts["amn"]), len(context.dataset.classes))
    return only_used(network, context)


def imported_amn(settings: Any) -> Read:
    """The function that reads AMN from a file, as `imported_classifier`, with the rates and the dropout of these settings."""
    def read(file: str, where: str, methods: Mapping[str, Any], dataset: Dataset) -> tuple[AMN, list[str]]:
        state = own_state(read_tensors(file), OFFICIAL, where)
        network = AMN(backbone_of(state, methods), len(dataset.classes), settings.rates, settings.dropout)
        return filled(network, state, where), []
    return read


def planned_amn(setup: Setup) -> AMN:
    """AMN that the step trains or reads, as `planned_classifier`."""
    trained_by = setup.sources.get("amn") or setup.sources.get("network")
    settings = getattr(setup.config, trained_by[0].step) if trained_by else setup.settings
    with torch.device("meta"):
        return AMN(setup.methods["backbone"].new(), len(setup.dataset.classes), settings.rates, settings.dropout)


def of_images(network: N) -> Callable[[torch.Tensor], Any]:
    """The network as a function of images alone, for estimates: AMN with any labels."""
    if not isinstance(network, AMN):
        return network
    return lambda x: network(x, x.new_empty(len(x), network.label_embedding.in_features))


def labelled_features(context: StepContext, network: Classifier | AMN, image_id: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """As `feature_function`; the features of AMN depend on the labels of the image."""
    if not isinstance(network, AMN):
        return feature_function(context, network)
    labels = label_vector(context, image_id)
    return in_precision(context, lambda x: network.features(x, labels.expand(len(x), -1)))


def label_vector(context: StepContext, image_id: str) -> torch.Tensor:
    """The image labels (1, C) float32, 0 or 1, on the step's device."""
    return torch.from_numpy(context.dataset.label_vector(image_id))[None].to(context.runtime.device)
