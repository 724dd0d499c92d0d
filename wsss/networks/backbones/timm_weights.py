"""Weights of timm's networks: their names, where they are, and files of them."""

import re
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_ETAG_TIMEOUT
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from wsss.errors import WeightsError
from wsss.networks.backbones.packaged import FILE, NAME, PACKAGE
from wsss.networks.backbones.timm_networks import without_head
from wsss.networks.facts import file_sha256
from wsss.seeding import seeded

_FILES = ("model.safetensors", "pytorch_model.bin")   # of a model at Hugging Face, as timm looks for them
_CLASSIFIERS = ("head", "fc", "classifier")           # in files that are not timm's
_LONGEST = 600                                        # characters of torch's list of names, which may have hundreds


def tagged_name(network: str) -> str | None:
    """The name of a network with the tag of its weights: "deit_tiny_patch16_224.fb_in1k". None if timm has no weights of it."""
    weights = timm.get_pretrained_cfg(network)
    if weights is None or not weights.has_weights:
        return None
    return f"{weights.architecture}.{weights.tag}" if weights.tag else weights.architecture


def is_cached(network: str) -> bool:
    """Whether the weights have been downloaded."""
    weights: Any = timm.get_pretrained_cfg(network)
    if weights is None or not weights.hf_hub_id:
        return bool(weights and weights.url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file()
    repository, _, revision = weights.hf_hub_id.partition("@")
    names = [weights.hf_hub_filename] if weights.hf_hub_filename else _FILES
    return any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None), str)
               for name in names)


def fetch(network: str) -> dict[str, Tensor]:
    """The tensors of timm's weights, with the classifier, from the cache or the internet.

    Raises WeightsError with the alternatives for a machine without internet access.
    """
    try:
        if not is_cached(network):
            _reach(network)
        with seeded(0):   # the random weights that they replace
            tensors = timm.create_model(network, pretrained=True).state_dict()
        _check_download(network)
        return tensors
    except Exception as error:   # of Hugging Face's client, of the file, or of timm
        weights: Any = timm.get_pretrained_cfg(network)
        file = f"{weights.hf_hub_filename or _FILES[0]} of https://huggingface.co/{weights.hf_hub_id}" if weights.hf_hub_id \
            else weights.url
        reason = textwrap.shorten(str(error), _LONGEST).rstrip(".")
        raise WeightsError(
            f"cannot download the ImageNet weights of {tagged_name(network)}: {reason}. On a "
            f"machine with internet access download {file}, copy it to this one and set backbone.weights=FILE; or use the "
            f"network there once and copy what is then new in {HF_HUB_CACHE} to the same place here; or use backbone={NAME}, "
            "whose ImageNet weights are installed with this project") from error


def _check_download(network: str) -> None:
    """Compare the SHA-256 of the downloaded file with that in its name: Hugging Face's cache names a file so, and its client
    compares the size alone. Raises WeightsError if they differ."""
    weights: Any = timm.get_pretrained_cfg(network)
    if weights.hf_hub_id:
        repository, _, revision = weights.hf_hub_id.partition("@")
        names = [weights.hf_hub_filename] if weights.hf_hub_filename else _FILES
        found = (huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None) for name in names)
        paths = [Path(path).resolve() for path in found if isinstance(path, str)]
    else:
        paths = [Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name]
    for path in paths:
        named = re.fullmatch(r"([0-9a-f]{64})|.*-([0-9a-f]{8,64})\.\w+", path.name)
        if named and not file_sha256(path).startswith(expected := named[1] or named[2]):
            raise WeightsError(f"{path} is damaged: its SHA-256 is not {expected}. Remove it, and the same command downloads it "
                               "again")


def _reach(network: str) -> None:
    """Ask Hugging Face once for the file. Its client alone asks six times for each name of a file, which without internet access
    takes a minute and prints a dozen lines. Raises what that client raises if the server is not reached."""
    weights: Any = timm.get_pretrained_cfg(network)
    if weights.hf_hub_id:
        repository, _, revision = weights.hf_hub_id.partition("@")
        url = huggingface_hub.hf_hub_url(repository, weights.hf_hub_filename or _FILES[0], revision=revision or None)
        with suppress(EntryNotFoundError):   # it may have the other file
            huggingface_hub.get_hf_file_metadata(url, timeout=HF_HUB_ETAG_TIMEOUT)


def converted(tensors: Mapping[str, Tensor], network: str, options: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The tensors of a file, with the names of timm or of the network's authors, by timm's names and without the classifier.

    timm itself reads them: it resizes embeddings of positions too. The number of classes is that of the file.
    Raises WeightsError, with names, if they are of another network; `where` names the file.
    """
    known = timm.get_pretrained_cfg(network)
    classifier = (known and known.classifier) or ()
    heads = [*((classifier,) if isinstance(classifier, str) else classifier), *_CLASSIFIERS]
    n_classes = next((len(tensors[f"{head}.weight"]) for head in heads if f"{head}.weight" in tensors), 0)
    overlay = {"state_dict": dict(tensors), "num_classes": n_classes, "label_offset": 0}
    try:
        with seeded(0):
            net = timm.create_model(network, pretrained=True, num_classes=n_classes, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:   # whatever timm's readers raise for names that they do not know
        names = textwrap.shorten(str(error), _LONGEST) if isinstance(error, RuntimeError) else "it has other names"
        raise WeightsError(f"{where}: the {len(tensors)} tensors are not those of {network}: {names}. Choose the "
                           "backbone that these weights belong to") from error
    return without_head(net).state_dict()


def timm_names(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet-Lite0 file, with the package's or timm's names, to timm's names and drop the
    classifier. Raises WeightsError if they are of another network; `where` names the file.

    The tensors of the package are those of timm's network in the same order, under other names.
    """
    if "conv_stem.weight" in tensors:
        named = dict(tensors)
    else:
        with torch.device("meta"):
            own = timm.create_model(NAME, num_classes=0).state_dict()
        backbone = [value for name, value in tensors.items() if not name.startswith("_fc.")]
        if [value.shape for value in backbone] != [value.shape for value in own.values()]:
            raise WeightsError(f"{where}: the {len(tensors)} tensors are not those of {NAME}, neither by timm's names nor by "
                               f"their shapes in order. Use the file {FILE} of the package {PACKAGE}, or choose the "
                               "backbone that these weights belong to")
        named = dict(zip(own, backbone))
    return {name: value for name, value in named.items() if not name.startswith("classifier.")}
