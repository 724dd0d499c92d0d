"""ReCAM: Chen et al., "Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation", CVPR 2022, section 3.2.

Official files: `net/resnet50_cam.py` (Net_CAM_Feature, Class_Predictor, CAM.forward2), `step/train_recam.py`,
`step_coco/make_recam.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from wsss.classifiers.method import ClassifierMethod
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsss.classifiers.classifier import Classifier
    from wsss.classifiers.reactivated import ReactivatedClassifier
    from wsss.networks.backbones.backbone import Backbone

MAP_WEIGHTS = ("product", "first")


@dataclass
class ReCAM(ClassifierMethod):
    """The linear classifier, and a second one that is trained by softmax on the features of each class. It goes on from a
    finished linear classifier.

    The map of each class, divided by its maximum, weights the features, and their mean is the feature of the class. The second
    classifier must tell the classes of an image from these; the gradient goes through the maps.

    weight: of the softmax loss in the sum with the multi-label soft margin loss (lambda of the paper).
    map_weights: of the activation maps. "product": the product of both classifiers' weights (official, VOC). "first": those of
    the first classifier (official, COCO).

    Raises ConfigError for another `map_weights`, or a negative `weight`.
    """

    weight: float
    map_weights: str

    def __post_init__(self) -> None:
        if self.map_weights not in MAP_WEIGHTS:
            raise ConfigError(f"classifier.map_weights={self.map_weights!r} is not possible: expected one of "
                              f"{', '.join(MAP_WEIGHTS)}")
        if not self.weight >= 0:
            raise ConfigError(f"classifier.weight={self.weight!r} is not possible: expected at least 0")

    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        from wsss.classifiers.reactivated import ReactivatedClassifier

        return ReactivatedClassifier(backbone, n_classes, self.map_weights == "product")

    def losses(self, net: Classifier, images: Tensor, labels: Tensor, *more: Tensor) -> dict[str, Tensor]:
        """As `ClassifierMethod.losses`: "multi_label", "softmax" and their weighted sum. The softmax loss of an image is the mean
        over its classes, 0 without any (official: Class_Predictor)."""
        from torch.nn.functional import multilabel_soft_margin_loss

        features, second_head = net.features(images), cast("ReactivatedClassifier", net).second_head   # of `build`
        multi_label = multilabel_soft_margin_loss(net.head(features).float(), labels)
        right = second_head(features).float().log_softmax(2).diagonal(dim1=1, dim2=2)   # (B, C)
        softmax = -((right * labels).sum(1) / labels.sum(1).clamp(min=1)).mean()
        return {"loss": multi_label + self.weight * softmax, "multi_label": multi_label, "softmax": softmax}

    def groups(self, net: Classifier, head_lr_mult: float) -> list[tuple]:
        """`head_lr_mult` is the factor of the second classifier; all others have the learning rate of the backbone."""
        second = cast("nn.Parameter", cast("ReactivatedClassifier", net).second.weight)   # of `build`
        others = [parameter for group in net.parameter_groups() for parameter in group if parameter is not second]
        return [(others, 1.0), ([second], head_lr_mult)]


Method = ReCAM
