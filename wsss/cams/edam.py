"""The class masks of EDAM (`wsss.classifiers.edam`) as activation maps. Official file: `infer_cls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.method import CamMethod, Features
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier
    from wsss.classifiers.collaborative import CollaborativeClassifier


@dataclass
class EdamMasks(CamMethod):
    """The masks of the classes, each image alone. It has no settings."""

    title: ClassVar[str] = "EDAM"
    exact_grids: ClassVar[bool] = True   # official: the masks are resized to the image

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        return _with_masks(net).class_masks(features_of(pair))[:, list(classes)].float()

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the classifier has no masks."""
        _with_masks(net)


Method = EdamMasks


def _with_masks(net: Classifier) -> CollaborativeClassifier:
    from wsss.classifiers.collaborative import CollaborativeClassifier

    if not isinstance(net, CollaborativeClassifier):
        raise ConfigError(f"EDAM's maps are the masks of its classifier, {type(net).__name__} has none. Set classifier=edam, or "
                          "choose maps of another method, such as cam=cam")
    return net
