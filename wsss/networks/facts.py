"""Facts about a weights file that need no torch: its SHA-256 and its metadata."""

import hashlib
from pathlib import Path

import safetensors

from wsss.errors import WeightsError
from wsss.reading import parse_json

# The names of torchvision's V1 files, as `wsss.networks.weights.pretrained_name` returns; importing torchvision takes seconds.
PRETRAINED = {"resnet18": "resnet18-f37072fd.pth", "resnet34": "resnet34-b627a593.pth", "resnet50": "resnet50-0676ba61.pth",
              "resnet101": "resnet101-63fe2227.pth", "vgg16": "vgg16-397923af.pth",
              "alexnet": "alexnet-owt-7be5be79.pth", "googlenet": "googlenet-1378be20.pth",
              "inception_v3": "inception_v3_google-0cc3c7bd.pth"}


def read_metadata(path: str | Path) -> dict:
    """The JSON metadata of a file of `save_weights`. Raises WeightsError if it is missing or damaged."""
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = parse_json((file.metadata() or {}).get("json", "{}"))
    except (OSError, RuntimeError, EOFError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is missing or damaged ({type(error).__name__}: {error}): make it again") from error
    if not isinstance(metadata, dict):
        raise WeightsError(f"{path} is not a weights file of this project: its metadata is {metadata!r}, expected names with "
                           "values: make it again")
    return metadata


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises WeightsError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror or error}; check its name and "
                           "permissions") from error
