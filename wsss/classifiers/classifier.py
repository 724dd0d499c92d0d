"""The interface of all classifiers, and the linear one (official `net/resnet50_cam.py`)."""

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from wsss.errors import ConfigError
from wsss.networks.backbones.backbone import Backbone


class Classifier(nn.Module):
    """A backbone and a head, which gives the logits of the classes. `facts`: what builds it again on its backbone, as JSON values
    (`ClassifierMethod.new`)."""

    facts: dict[str, Any]
    reads_features: ClassVar[bool] = True   # whether the logits are `head` of `features`; else only `forward` has them

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to the features before pooling, (B, D, h, w) (`Backbone.features`)."""
        return self.backbone(x)

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to logits (B, C)."""

    def class_weights(self) -> Tensor | None:
        """The weights (C, D) of the classes if the head is linear in one value of each feature, its mean or its maximum over the
        cells, with or without a bias; else None. `weights @ features` is then CAM, which leaves out the bias; if the value is the
        mean, its mean over the cells is the logits. CAM and LPCAM need them."""
        return None

    def map_weights(self) -> Tensor | None:
        """The weights (C, D) of activation maps (CAM): by default `class_weights`."""
        return self.class_weights()

    def tap_weights(self) -> Tensor | None:
        """The weights (C, D, k, k) of the classes if logits are the means over the cells of a convolution of the features; else
        None. LPCAM takes sums of them where there are no `class_weights`."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalised, to logits (B, C)."""
        return self.head(self.features(x))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone, and those of the head and of the layers that learn at its rate
        (`Backbone.head_parameters`)."""
        head = set(self.parameters()) - (set(self.backbone.parameters()) - set(self.backbone.head_parameters()))
        return ([parameter for parameter in self.backbone.parameters() if parameter.requires_grad and parameter not in head],
                [parameter for parameter in self.parameters() if parameter.requires_grad and parameter in head])


def linear_weights(net: Classifier, user: str, of_maps: bool = False) -> Tensor:
    """`net.class_weights()`, or with `of_maps` `net.map_weights()`, (C, D). Raises ConfigError, which names the `user` of the
    weights, if the head is not linear."""
    weights = net.map_weights() if of_maps else net.class_weights()
    if weights is None:
        raise ConfigError(f"{user} needs a classifier that is linear in its features, {type(net).__name__} is not (class_weights "
                          "returns None). Choose one that is, such as classifier=plain; gradient methods (cam=gradcam) need none")
    return weights


def prototype_weights(net: Classifier, user: str, taps: str) -> Tensor:
    """The weights (C, D) by which LPCAM finds the classes of prototypes: `class_weights`, or of the taps of a convolution the
    sum of "all", or the "centre". Raises ConfigError, which names the `user`, if there are neither."""
    weights = None if net.class_weights() is not None else net.tap_weights()
    if weights is None:
        return linear_weights(net, user)
    return weights.sum((2, 3)) if taps == "all" else weights[:, :, weights.shape[2] // 2, weights.shape[3] // 2]


def require_head(net: Classifier, user: str) -> None:
    """Raise ConfigError, which names the `user`, if the logits of a classifier are not those of its features."""
    if not net.reads_features:
        raise headless(net, user)


def headless(net: Classifier, user: str) -> ConfigError:
    return ConfigError(f"{user} needs logits of the features, those of {type(net).__name__} are of its class tokens. Choose "
                       "another method for maps, such as cam=mctformer, or another classifier, such as classifier=plain")


class LinearClassifier(Classifier):
    """Global average pooling and a 1x1 convolution without bias: `classifier.weight` (C, D, 1, 1)."""

    def __init__(self, backbone: Backbone, n_classes: int):
        super().__init__(backbone)
        self.classifier = nn.Conv2d(backbone.feature_channels, n_classes, 1, bias=False)

    def head(self, features: Tensor) -> Tensor:
        pooled = features.mean((2, 3), keepdim=True)  # (B, D, 1, 1)
        return self.classifier(pooled).flatten(1)

    def class_weights(self) -> Tensor:
        return self.classifier.weight.flatten(1)


class PooledClassifier(LinearClassifier):
    """Global average pooling, or with `maximum` global max pooling, dropout in training, and a 1x1 convolution with bias, which
    starts at 0; the weights start from N(0, 0.01) (the CAM paper's released `train_val` prototxts, CAM_fc)."""

    def __init__(self, backbone: Backbone, n_classes: int, maximum: bool, dropout: float):
        super().__init__(backbone, n_classes)
        self.maximum, self.dropout = maximum, nn.Dropout(dropout)
        self.classifier = nn.Conv2d(backbone.feature_channels, n_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(cast(nn.Parameter, self.classifier.bias))

    def head(self, features: Tensor) -> Tensor:
        pooled = features.amax((2, 3)) if self.maximum else _mean(features)   # (B, D)
        return self.classifier(self.dropout(pooled)[:, :, None, None]).flatten(1)


def _mean(features: Tensor) -> Tensor:
    """The mean over the cells, (B, D). Of channels-last features its gradient is channels last too, which that of
    `features.mean((2, 3))` never is: maps by gradients would be several times slower behind it."""
    if features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return features.mean((2, 3))


def poly_factor(step: int, max_step: int, power: float = 0.9) -> float:
    """The factor of the learning rate at `step`, counted from 0 (official `misc/torchutils.PolyOptimizer`).

    The official optimiser is SGD with this factor, momentum 1e-4 and weight decay 1e-4: `PolyOptimizer` passes the weight decay
    to torch's SGD as the momentum, and what it calls momentum (0.9) is the power above.
    """
    return max(0.0, 1 - step / max_step) ** power
