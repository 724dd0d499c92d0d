"""The classifiers of the CAM paper (Zhou et al., CVPR 2016, sections 2 and 3) and of F-CAM and wsolevaluation (WGAP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsss.classifiers.plain import Plain
from wsss.errors import ConfigError

if TYPE_CHECKING:
    from wsss.classifiers.classifier import Classifier
    from wsss.networks.backbones.backbone import Backbone

POOLINGS = ("gap", "gmp")


@dataclass
class Pooled(Plain):
    """The mean (gap) or the maximum (gmp) of each feature over the cells, dropout, and a linear layer with bias.

    With "gmp" the logits are not the mean of the maps, but CAM has the same weights (paper, section 3.2.1). Maps leave out the
    bias. loss: as of `Plain`. Raises ConfigError for an impossible setting.
    """

    pooling: str     # gap | gmp
    dropout: float   # of the pooled features, in training

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise ConfigError(f"classifier.pooling={self.pooling!r} is not possible: expected one of {', '.join(POOLINGS)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"classifier.dropout={self.dropout} is not possible: expected a share in [0, 1)")

    def build(self, backbone: Backbone, n_classes: int) -> Classifier:
        from wsss.classifiers.classifier import PooledClassifier

        return PooledClassifier(backbone, n_classes, self.pooling == "gmp", self.dropout)


Method = Pooled
