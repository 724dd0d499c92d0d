"""The networks of trainings that are imported from files instead of trained, and their checks before any work."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from steps.runtime.context import StepContext
from steps.runtime.networks import Network, save_network
from steps.step import Setup
from wsss.classifiers.classifier import Classifier
from wsss.data.dataset import Dataset
from wsss.errors import WeightsError
from wsss.files import user_path
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.amn import AMN
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.foreign import HEAD_BIAS, classifier_state, is_foreign, without_bias
from wsss.networks.irn import IRN
from wsss.networks.weights import fill, read_tensors
from wsss.official_networks import CAM, SECOND, own_state, read_second
from wsss.official_networks import IRN as OFFICIAL_IRN
from wsss.segmenters.segmenter import Segmenter

# (file, its name in messages, methods, data set) -> the network, and what is dropped of it
Read = Callable[[str, str, Mapping[str, Any], Dataset], tuple[Classifier | IRN | Segmenter | AMN | AffinityNet, list[str]]]


def import_network(context: StepContext, read: Read) -> dict[str, Any]:
    """Import the network of a training from the file `weights` instead of training; return the step's result."""
    file = context.settings.weights
    if context.runtime.group.is_main:
        network, notes = read(file, f"{context.name}.weights={file}", context.methods, context.dataset)
        for note in notes:
            context.runtime.warn(f"{context.name}.weights={file} is not used completely: {note}")
        save_network(context, network)
    return {"imported_from": str(user_path(file).resolve())}


def imported_classifier(file: str, where: str, methods: Mapping[str, Any], dataset: Dataset) -> tuple[Classifier, list[str]]:
    """The classifier in a file of the official code or of a run, or of a network of torchvision or timm that another program
    trained; and what is dropped of it. `where` names the file in messages.

    Raises WeightsError if the file is missing or damaged, or is of another network or number of classes.
    """
    method = methods["classifier"]
    tensors = method.own(read_tensors(file), where)
    notes: list[str] = []
    state, (name, dimension) = own_state(tensors, CAM, where), method.head
    if foreign := is_foreign(state, name):
        state, notes = classifier_state(tensors, methods["backbone"], len(dataset.classes),
                                        methods["backbone"].new().feature_channels, where)
    head = state.get(name)
    if head is not None and head.shape[dimension] != len(dataset.classes):
        raise WeightsError(f"{where} is a classifier of {head.shape[dimension]} classes ({name} {tuple(head.shape)}); the data "
                           f"set {dataset.name} in {dataset.root} has {len(dataset.classes)}. Use one that was trained on this "
                           "data set")
    classifier = method.new(backbone_of(state, methods), len(dataset.classes))
    if foreign and HEAD_BIAS in state.keys() - classifier.state_dict().keys():
        notes = [*notes, without_bias(state.pop(HEAD_BIAS))]
    if SECOND in classifier.state_dict().keys() - state.keys():   # the official code of ReCAM
        state[SECOND] = read_second(file, where)
    return filled(classifier, state, where), notes


def imported_irn(file: str, where: str, methods: Mapping[str, Any], dataset: Dataset) -> tuple[IRN, list[str]]:
    """IRN in a file, as `imported_classifier`."""
    state = own_state(read_tensors(file), OFFICIAL_IRN, where)
    return filled(IRN(backbone_of(state, methods)), state, where), []


def imported_segmenter(file: str, where: str, methods: Mapping[str, Any], dataset: Dataset) -> tuple[Segmenter, list[str]]:
    """The segmentation network in a file of a run, as `imported_classifier`."""
    state = read_tensors(file)
    return filled(methods["segmenter"].new(backbone_of(state, methods), len(dataset.classes) + 1), state, where), []


def backbone_of(state: Mapping[str, torch.Tensor], methods: Mapping[str, Any]) -> Backbone:
    """The untrained backbone of a file's weights."""
    # official networks have batch norm; only a network that a run trained from scratch has group norm
    batch = any(name.startswith("backbone.") and name.endswith(".running_mean") for name in state)
    return methods["backbone"].new("frozen_batch" if batch else "group")


def filled(network: Network, state: dict[str, torch.Tensor], where: str) -> Network:
    """The network with the weights of a file. Raises WeightsError if they do not fit."""
    fill(network, state, f"{where} (backbone {network.backbone.name})")
    return network


def check_training(setup: Setup, read: Read, pretrained: bool) -> None:
    """Check before any work the file `weights` of a training or, if it starts from them (`pretrained`), the ImageNet weights:
    that they exist, are intact and fit. Those that are not installed are downloaded now with `setup.fetch`, else only checked if
    they are there already.

    Raises WeightsError: with the file that is needed and its place.
    """
    method = setup.methods["backbone"]
    if file := setup.settings.weights:
        read(file, f"{setup.name}.weights={file}", setup.methods, setup.dataset)
    elif pretrained and (setup.fetch or method.at_hand()):
        method.load(method.new("frozen_batch"))
