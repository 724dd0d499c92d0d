"""AffinityNet: Ahn & Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018, section 3.2. Official file: `network/resnet38_aff.py`, also for the names of the layers.
"""

from fractions import Fraction
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.networks.backbones.backbone import Backbone
from wsss.networks.irn import resized
from wsss.seeding import seeded

STRIDE = 8                # of its features
WIDTHS = (64, 128, 256)   # channels of the branches, those of the last stage last (official: f8_3, f8_4, f8_5)


class AffinityNet(nn.Module):
    """1x1 convolutions on the last three stages of a backbone, at stride 8, and one on all of them, each with ELU.

    The features of two pixels are near each other if both belong to one class. A stage with another stride is resized. Of a
    backbone with fewer stages all are read.

    seed: of the random weights of the convolutions.
    """

    facts: ClassVar[dict[str, Any]] = {}   # it has no settings

    def __init__(self, backbone: Backbone, seed: int = 0):
        super().__init__()
        self.backbone = backbone
        stages = list(zip(backbone.channels, backbone.strides))[-len(WIDTHS):]
        widths = WIDTHS[-len(stages):]
        self.factors = {f"f8_{6 - len(stages) + i}": Fraction(stride, STRIDE) for i, (_, stride) in enumerate(stages)}
        with seeded(seed):
            for name, (channels, _), width in zip(self.factors, stages, widths):
                self.add_module(name, _convolution(channels, width))
            self.f9 = _convolution(sum(widths), sum(widths))
            for name in self.factors:
                nn.init.kaiming_normal_(self.get_parameter(f"{name}.weight"))
            nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to features (B, 448, ceil(H / 8), ceil(W / 8)). The images are padded with 0 at the
        right and the bottom to multiples of 8 (official `infer_aff.py`)."""
        x = F.pad(x, (0, -x.shape[3] % STRIDE, 0, -x.shape[2] % STRIDE))
        size = [side // STRIDE for side in x.shape[2:]]
        stages = self.backbone.activated_stages(x)[-len(self.factors):]
        parts = [resized(F.elu(self.get_submodule(name)(stage)), factor)[..., :size[0], :size[1]]
                 for (name, factor), stage in zip(self.factors.items(), stages, strict=True)]
        return F.elu(self.f9(torch.cat(parts, 1)))

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone, and those of the convolutions."""
        return ([parameter for parameter in self.backbone.parameters() if parameter.requires_grad],
                [parameter for name in (*self.factors, "f9") for parameter in self.get_submodule(name).parameters()])


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)
