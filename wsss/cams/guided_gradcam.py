"""Guided Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV
2017."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.cams.gradcam import GradCAM
from wsss.cams.method import Features

if TYPE_CHECKING:
    from torch import Tensor

    from wsss.classifiers.classifier import Classifier


@dataclass
class GuidedGradCAM(GradCAM):
    """Guided Grad-CAM (section 3, "Guided Grad-CAM"): the map of guided backpropagation (`GuidedBackprop`) times that of Grad-CAM
    at a stage, enlarged to the image (bilinear). The paper multiplies each colour channel; here one value per pixel, as in
    `GuidedBackprop`.

    stage: of Grad-CAM, as of `StageMethod`.
    """

    title: ClassVar[str] = "Guided Grad-CAM"

    def maps(self, net: Classifier, features_of: Features, pair: Tensor, classes: Sequence[int]) -> Tensor:
        """As `CamMethod.maps`, at the full resolution (H, W); not negative. Two forward passes and 2 K backward passes, in
        float32; `features_of` is not used."""
        from wsss.cams.gradients import stage_numbers
        from wsss.cams.guided import guided_gradients
        from wsss.resize import resize

        coarse = super().maps(net, features_of, pair, classes)   # its grid covers the image padded to multiples of its stride
        stride = (*net.backbone.strides, net.backbone.feature_stride)[stage_numbers(net, [self.stage])[0]]
        large = resize(coarse, [stride * side for side in coarse.shape[2:]])[..., :pair.shape[2], :pair.shape[3]]
        return guided_gradients(net, pair, classes).abs().amax(2) * large

    def check(self, net: Classifier) -> None:
        """Raise ConfigError if the backbone does not have this stage, or the network no ReLU."""
        from wsss.cams.guided import check_guided

        super().check(net)
        check_guided(net, "cam=guided_gradcam")

    def scale_weight(self, pair: Tensor) -> float:
        return super().scale_weight(pair) ** 2   # the product of two gradients


Method = GuidedGradCAM
