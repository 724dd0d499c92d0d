"""The network of ReCAM (`wsss.classifiers.recam`): a linear classifier with a second one on the features of each class."""

import torch
from torch import Tensor, nn

from wsss.classifiers.classifier import LinearClassifier
from wsss.networks.backbones.backbone import Backbone

EPSILON = 1e-5   # added to the maximum of a map; official: net/resnet50_cam.py, Net_CAM_Feature


class ReactivatedClassifier(LinearClassifier):
    """`second.weight` (C, D, 1, 1): the second classifier, a 1x1 convolution without bias."""

    def __init__(self, backbone: Backbone, n_classes: int, product: bool):
        super().__init__(backbone, n_classes)
        self.second = nn.Conv2d(backbone.feature_channels, n_classes, 1, bias=False)
        self.product = product

    def class_features(self, features: Tensor) -> Tensor:
        """The features of each class: of features (B, D, h, w) the means (B, C, D), weighted by the map of the class, which is
        divided by its maximum after a ReLU. The gradient goes through the maps and their maxima."""
        cells = features.flatten(2)                                                       # (B, D, hw)
        maps = (self.classifier.weight.flatten(1) @ cells).relu()                         # (B, C, hw)
        maps = maps / (maps.amax(2, keepdim=True) + EPSILON)
        return torch.einsum("bcn,bdn->bcd", maps, cells) / cells.shape[2]

    def second_head(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to logits (B, C, C): of the features of each class, for each class."""
        return self.class_features(features) @ self.second.weight.flatten(1).T

    def map_weights(self) -> Tensor:
        """The product of both classifiers' weights, or those of the first."""
        first = self.class_weights()
        return first * self.second.weight.flatten(1) if self.product else first
