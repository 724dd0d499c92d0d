"""AffinityNet in the steps, as `steps.runtime.networks` for the other networks, and the networks that a refiner can read."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from steps.runtime.context import StepContext
from steps.runtime.imported_networks import backbone_of, filled
from steps.runtime.networks import freeze_early, load_irn, load_network, new_backbone, only_used, read_classifier, to_train
from steps.runtime.schedule import WEIGHTS
from steps.step import Setup
from wsss.data.dataset import Dataset
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.backbones.method import rebuilt
from wsss.networks.irn import IRN
from wsss.networks.weights import read_tensors
from wsss.official_networks import PSA as OFFICIAL
from wsss.official_networks import own_state
from wsss.refiners.method import RefinerMethod
from wsss.seeding import derived_seed


def new_affinitynet(context: StepContext) -> AffinityNet:
    """AffinityNet to train, on the step's device: on the backbone of the classifier if the step reads it, else on a new one,
    which has ImageNet weights if `backbone.` says so. A backbone with trained weights keeps those of its stem, and with
    `freeze_early` of its early layers."""
    trained = context.reads("classifier")
    backbone = read_classifier(context).backbone if trained else new_backbone(context)
    if trained or context.methods["backbone"].starts_from_weights:
        for parameter in backbone.stem_parameters():
            parameter.requires_grad_(False)
        if context.settings.freeze_early:
            freeze_early(backbone)
    return to_train(AffinityNet(backbone, derived_seed(context.seed, context.name, "affinity")), context.runtime.device)


def load_affinitynet(context: StepContext) -> AffinityNet:
    """AffinityNet (role "affinity"), in evaluation mode on the step's device; for inference only."""
    return only_used(load_network(context.input("affinity") / WEIGHTS, lambda facts: AffinityNet(rebuilt(facts["backbone"]))),
                     context)


def imported_affinitynet(file: str, where: str, methods: Mapping[str, Any], dataset: Dataset) -> tuple[AffinityNet, list[str]]:
    """AffinityNet in a file, as `steps.runtime.imported_networks.imported_classifier`."""
    state = own_state(read_tensors(file), OFFICIAL, where)
    return filled(AffinityNet(backbone_of(state, methods)), state, where), []


def planned_affinitynet(setup: Setup) -> AffinityNet:
    """AffinityNet of the backbone of the configuration, as `steps.runtime.networks.planned_classifier`."""
    trained_by = setup.sources.get("affinity")
    own = getattr(setup.config, trained_by[0].step).backbone if trained_by else None
    with torch.device("meta"):
        return AffinityNet((own or setup.methods["backbone"]).new())


LOADERS: dict[str, Callable[[StepContext], IRN | AffinityNet]] = {"irn": load_irn, "affinity": load_affinitynet}   # by role


def load_read(context: StepContext, methods: Iterable[RefinerMethod]) -> dict[str, Any]:
    """The networks that refiners read (`RefinerMethod.reads`), by their role."""
    return {role: LOADERS[role](context) for role in sorted({method.reads for method in methods} - {""})}
