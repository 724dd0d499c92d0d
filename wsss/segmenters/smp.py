"""The decoders of segmentation-models-pytorch (Iakubovskii, https://github.com/qubvel-org/segmentation_models.pytorch, MIT)."""

# The best kept library of decoders without a training loop of its own. TorchSeg, a fork of it, has early releases only (0.0.1a4);
# mmsegmentation (last release 1.2.2) needs its own loop and a compiled package.

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsss.data.messages import did_you_mean
from wsss.errors import BackendError, ConfigError
from wsss.segmenters.method import SegmenterMethod

if TYPE_CHECKING:
    from wsss.networks.backbones.backbone import Backbone
    from wsss.segmenters.segmenter import Segmenter

PACKAGE = "segmentation_models_pytorch"
ARCHITECTURES = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "deeplabv3plus", "upernet",
                 "segformer", "dpt")


@dataclass
class SMP(SegmenterMethod):
    """A decoder of segmentation-models-pytorch with its default settings, on the stages of the backbone.

    Raises ConfigError for an unknown architecture. `build` raises BackendError without the package, and ConfigError if the
    decoder does not work with the stages of the backbone.
    """

    architecture: str   # one of ARCHITECTURES

    smallest_part: ClassVar[int] = 2   # some of its decoders have batch norm of a map that is pooled to one pixel

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ConfigError(f"segmenter.architecture={self.architecture!r} is no decoder"
                              f"{did_you_mean(self.architecture, ARCHITECTURES)}: expected one of {', '.join(ARCHITECTURES)}")

    def build(self, backbone: Backbone, n_labels: int) -> Segmenter:
        if importlib.util.find_spec(PACKAGE) is None:
            raise BackendError("segmenter=smp needs the package segmentation-models-pytorch, which is not installed. Install it "
                               "by pip install 'segmentation-models-pytorch>=0.6', or choose another segmenter")
        from wsss.segmenters.smp_layers import smp_segmenter

        return smp_segmenter(self.architecture, backbone, n_labels)

    def groups(self, net: Segmenter, head_lr_mult: float) -> list[tuple]:
        from wsss.segmenters.decay import decay_groups

        return decay_groups(net, head_lr_mult)


Method = SMP
