"""Weights files: torchvision's pretrained ones, local ones, and our own (safetensors, which never runs code when read)."""

import http.client
import json
import pickle
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wsss.errors import WeightsError
from wsss.files import replacing, user_path
from wsss.networks.checkpoints import load
from wsss.networks.facts import file_sha256, read_metadata
from wsss.reading import open_regular

DAMAGED = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError)
CHECKPOINTS = ("state_dict", "model_state_dict", "model_state", "model")   # where a checkpoint has the parameters
LISTED = 4  # names shown in an error


def save_weights(path: str | Path, module: nn.Module, metadata: dict | None = None) -> None:
    """Save a module's parameters and buffers, with optional JSON values as metadata; see `save_tensors`."""
    save_tensors(path, module.state_dict(), metadata)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict | None = None) -> None:
    """Save named tensors as safetensors, with optional JSON metadata, completely or not at all; equal input, equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # A single entry, because safetensors writes several in an order that differs between calls.
    content = safetensors.torch.save(tensors, {"json": json.dumps(metadata or {}, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def checksum(tensors: Mapping[str, Tensor], facts: Any = None) -> int:
    """CRC-32 of named tensors and of JSON-able facts: safetensors files have none of their own."""
    found = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(content.data, zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), found))
    return found


def load_weights(path: str | Path, module: nn.Module) -> dict:
    """Load a file of `save_weights` into a module and return its metadata.

    Raises WeightsError if the file is missing or damaged, or if a name or shape differs; the module is then unchanged.
    """
    fill(module, read_tensors(path), str(path))
    return read_metadata(path)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth or .pt file with a state dict, on the CPU.

    A hash in the file name, as in `resnet50-0676ba61.pth`, is checked. Raises WeightsError if the file is missing or damaged.
    """
    path = user_path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}; expected a .safetensors, .pth or .pt file: check its name")
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path.name)
    if named and not file_sha256(path).startswith(named[1]):
        raise WeightsError(f"{path} is damaged: its SHA-256 does not start with {named[1]}, as in its name; download it again")
    try:
        if path.suffix == ".safetensors":
            tensors: Any = safetensors.torch.load_file(path)
        else:
            with open_regular(path) as file:
                tensors = load(file, path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if python := re.search(r"Unsupported (?:global|class|operand)[^\n]*?(\w+(?:\.\w+)+)", str(error)):
            raise WeightsError(f"{path} holds a whole pickled model or other Python objects ({python[1]}), which run code when "
                               "they are read, so nothing of it is read. In the program that made it, save the parameters alone: "
                               "torch.save(model.state_dict(), FILE)") from error
        raise WeightsError(f"{path} is damaged or not a weights file ({type(error).__name__}): download it again, or make it by "
                           "torch.save(model.state_dict(), FILE)") from error
    if isinstance(tensors, dict):   # a checkpoint with other entries
        tensors = next((tensors[name] for name in CHECKPOINTS if isinstance(tensors.get(name), dict)), tensors)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path} holds no plain state dict; expected parameter names with tensors, alone or as one of "
                           f"{', '.join(CHECKPOINTS)}: save model.state_dict()")
    return dict(tensors)


def pretrained_name(network: str) -> str:
    """The name of torchvision's V1 file, for example resnet50-0676ba61.pth; it ends with the start of its SHA-256."""
    return Path(urlparse(_url(network)).path).name


def pretrained_cache(network: str) -> Path:
    """The path of torchvision's V1 file after its download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / pretrained_name(network)


def _url(network: str) -> str:
    from torchvision.models import get_model_weights  # takes a second; plan and status do not need it

    return get_model_weights(network).IMAGENET1K_V1.url


def fetch_pretrained(network: str) -> dict[str, Tensor]:
    """The tensors of torchvision's V1 file of a network ("resnet50", "vgg16", ...), from its cache or the internet. Raises
    WeightsError with the offline alternatives."""
    url, name = _url(network), pretrained_name(network)
    cached = pretrained_cache(network)
    if cached.is_file():
        return read_tensors(cached)
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, check_hash=True, weights_only=True)
    except (*DAMAGED, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot download torchvision's {network} weights: {error}. On a machine with internet access download {url} "
            f"(SHA-256 starting with {name.rsplit('-', 1)[1].removesuffix('.pth')}), then copy it to {cached}, or set "
            "backbone.weights=FILE; or use backbone=tf_efficientnet_lite0, whose ImageNet weights are installed with this project"
        ) from error


def fill(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load a state dict into a module; `where` names its origin. Raises WeightsError, listing missing and unexpected names and
    other shapes, or for a number that is not finite; the module is then unchanged."""
    own = module.state_dict()
    # Files made before 2018 have no num_batches_tracked; frozen statistics do not need it.
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the network's {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(found.values()):
        lists = [f"{len(names)} {what}: {_shortened(names)}" for what, names in found.items() if names]
        raise WeightsError(
            f"{where} does not fit the network. {'. '.join(lists)}. Use the backbone, norm and number of classes it was made with"
        )
    if wrong := next((name for name in own if name in tensors and not tensors[name].isfinite().all()), None):
        raise WeightsError(f"{where}: {wrong} holds numbers that are not finite. Use a checkpoint of a finite training")
    module.load_state_dict(tensors, strict=False)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
