"""IRN's two branches on a frozen backbone: class boundaries, and displacements to the centre of the instance.

Ahn et al. 2019, section 4; layers and parameter names as in the official `net/resnet50_irn.py`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import ArgumentError
from wsss.networks.backbones.backbone import Backbone
from wsss.resize import resize
from wsss.seeding import seeded


class MeanShift(nn.Module):
    """Subtract the mean displacement, measured once after training, in eval mode; do nothing in training mode."""

    running_mean: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean.view(1, -1, 1, 1)


class IRN(nn.Module):
    """Edge and displacement branches on the stages of a backbone, which stays in eval mode and is not trained.

    The backbone is modified in place: its gradients are disabled. For its two to five stages (`channels`, `strides` from 4
    upwards) the branches have the official widths: in the displacement branch the stages of stride 4 get 64, 128, 128 channels,
    the coarser ones 256 each, concatenated at stride 8. Each is enlarged by its own stride. A ResNet's five stages give the
    official network.

    Raises ArgumentError as `check_stages`.
    """

    facts: ClassVar[dict[str, Any]] = {}   # it has no settings

    def __init__(self, backbone: Backbone, seed: int = 0):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.mean_shift = MeanShift(2)
        check_stages(backbone)
        self.fine = backbone.strides.count(4)
        stages = list(enumerate(zip(backbone.channels, backbone.strides), start=1))
        with seeded(seed):
            for i, (channels, stride) in stages:
                self.add_module(f"fc_edge{i}", _branch(channels, 32, 4, Fraction(stride, 4)))
            self.fc_edge6 = nn.Conv2d(32 * len(stages), 1, 1)
            widths = [(64, 128, 128)[i - 1] if stride == 4 else 256 for i, (_, stride) in stages]
            for (i, (channels, stride)), width in zip(stages, widths):
                factor = Fraction(1) if stride == 4 else Fraction(stride, 8)
                self.add_module(f"fc_dp{i}", _branch(channels, width, min(16, width // 8), factor))
            self.fc_dp6 = _branch(sum(widths[self.fine:]), 256, 16, Fraction(2))
            self.fc_dp7 = nn.Sequential(*_branch(sum(widths[:self.fine]) + 256, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def train(self, mode: bool = True) -> "IRN":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to edge logits (B, 1, h, w) and displacement (B, 2, h, w) at stride 4, rounded up.

        The displacement is (down, right) in grid cells; the mean is subtracted in eval mode only.
        """
        stages = self._stages(x)
        return self._edge(stages, x), self._displacement(stages, x)

    @torch.no_grad()
    def edge_map(self, pair: Tensor, pad_to: int = 0) -> Tensor:
        """An image and its mirror image, (2, 3, H, W), to the class boundary map (1, h, w) in [0, 1] of the image.

        `pad_to`: the images are first padded with 0 at the right and bottom to sides of at least this, and the map is
        cropped back (IRN `net/resnet50_irn.py`, EdgeDisplacement: 512, and longer sides are cropped; LPCAM: none).
        """
        padded = _padded(pair, pad_to)
        return self._merge(_cropped(self._edge(self._stages(padded), padded), _grid(pair, 4)))

    @torch.no_grad()
    def edge_and_displacement(self, pair: Tensor, pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """As `edge_map`, with the displacement (2, h, w) of the image itself (official `EdgeDisplacement`)."""
        edge, displacement = (_cropped(output, _grid(pair, 4)) for output in self(_padded(pair, pad_to)))
        return self._merge(edge), displacement[0]

    def set_displacement_mean(self, mean: Tensor) -> None:
        """mean: (2,), of the raw displacement over images; set it to 0 before measuring, or measure in training mode."""
        self.mean_shift.running_mean.copy_(mean)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the edge and of the displacement branch."""
        named = list(self.named_parameters())
        edge, displacement = ([p for name, p in named if name.startswith(prefix)] for prefix in ("fc_edge", "fc_dp"))
        return edge, displacement

    @torch.no_grad()
    def _stages(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.stages(x)

    def _edge(self, stages: tuple[Tensor, ...], images: Tensor) -> Tensor:
        parts = [_cropped(self.get_submodule(f"fc_edge{i}")(x), _grid(images, 4)) for i, x in enumerate(stages, start=1)]
        return self.fc_edge6(torch.cat(parts, 1))

    def _displacement(self, stages: tuple[Tensor, ...], images: Tensor) -> Tensor:
        parts = [self.get_submodule(f"fc_dp{i}")(x) for i, x in enumerate(stages, start=1)]
        coarse = self.fc_dp6(torch.cat([_cropped(part, _grid(images, 8)) for part in parts[self.fine:]], 1))
        return self.mean_shift(self.fc_dp7(torch.cat([*parts[:self.fine], _cropped(coarse, _grid(images, 4))], 1)))

    @staticmethod
    def _merge(edge_logits: Tensor) -> Tensor:
        """Sigmoid of the mean of an image's logits and of its mirror image's, mirrored back."""
        return torch.sigmoid(edge_logits[0] / 2 + edge_logits[1].flip(-1) / 2)


def check_stages(backbone: Backbone) -> None:
    """Raise ArgumentError for a backbone on whose stages IRN's branches cannot stand."""
    strides = tuple(backbone.strides)
    fine = strides.count(4)
    if not 2 <= len(strides) <= 5 or fine > 3 or fine == len(strides) or list(strides) != sorted(strides) or min(strides) < 4:
        raise ArgumentError(f"IRN: the backbone has stages of stride {', '.join(map(str, strides))}; expected two to five from "
                            "fine to coarse, at most three of them of stride 4 and at least one coarser. Choose a backbone that "
                            "has them, such as backbone=resnet50 or backbone=tf_efficientnet_lite0")


class _Resize(nn.Module):
    """Resize maps by a factor, which need not be whole."""

    def __init__(self, factor: Fraction):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return resized(x, self.factor)


def resized(x: Tensor, factor: Fraction) -> Tensor:
    """Maps (B, D, h, w) to (B, D, ceil(factor * h), ceil(factor * w)), bilinear with align_corners=False."""
    size = [math.ceil(factor * side) for side in x.shape[2:]]
    rows, columns = (-side % factor.denominator for side in x.shape[2:])
    if rows or columns:   # repeat the last cells, as beyond a border, so that the factor is that of whole sides
        x = torch.cat([x, *[x[:, :, -1:]] * rows], 2)
        x = torch.cat([x, *[x[..., -1:]] * columns], 3)
    whole = [int(factor * side) for side in x.shape[2:]]
    return _cropped(resize(x, whole), size)


def _branch(inputs: int, outputs: int, groups: int, factor: Fraction = Fraction(1)) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)]
    if factor != 1:
        layers.append(_Resize(factor))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _grid(images: Tensor, stride: int) -> tuple[int, ...]:
    """The sides of images at a stride, rounded up."""
    return tuple(-(-side // stride) for side in images.shape[2:])


def _padded(images: Tensor, side: int) -> Tensor:
    return F.pad(images, (0, max(0, side - images.shape[3]), 0, max(0, side - images.shape[2])))


def _cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    return x[..., :size[0], :size[1]]
