"""IRN's two branches on a frozen backbone: class boundaries, and displacements to the centre of the instance.

Ahn et al. 2019, section 4; layers and parameter names as in the official `net/resnet50_irn.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import ArgumentError
from wsss.networks.backbones.backbone import Backbone
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
    the coarser ones 256 each, concatenated at stride 8. A ResNet's five stages give the official network.

    Raises ArgumentError for a backbone with other stages.
    """

    def __init__(self, backbone: Backbone, seed: int = 0):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.mean_shift = MeanShift(2)
        strides = tuple(backbone.strides)
        fine = strides.count(4)
        if not 2 <= len(strides) <= 5 or not 1 <= fine <= 3 or fine == len(strides) or strides != tuple(sorted(strides)):
            raise ArgumentError(f"IRN: the backbone has stages of stride {strides}; expected two to five from fine to coarse, "
                                "one to three of them of stride 4 and at least one coarser")
        stages = list(enumerate(zip(backbone.channels, strides), start=1))
        with seeded(seed):
            for i, (channels, stride) in stages:
                self.add_module(f"fc_edge{i}", _branch(channels, 32, 4, upsample=stride // 4))
            self.fc_edge6 = nn.Conv2d(32 * len(stages), 1, 1)
            widths = [(64, 128, 128)[i - 1] if stride == 4 else 256 for i, (_, stride) in stages]
            for (i, (channels, stride)), width in zip(stages, widths):
                self.add_module(f"fc_dp{i}", _branch(channels, width, min(16, width // 8), upsample=max(1, stride // 8)))
            self.fc_dp6 = _branch(sum(widths[fine:]), 256, 16, upsample=2)
            self.fc_dp7 = nn.Sequential(*_branch(sum(widths[:fine]) + 256, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def train(self, mode: bool = True) -> "IRN":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to edge logits (B, 1, h, w) and displacement (B, 2, h, w) at stride 4, rounded up.

        The displacement is (down, right) in grid cells; the mean is subtracted in eval mode only.
        """
        stages = self._stages(x)
        return self._edge(stages), self._displacement(stages)

    @torch.no_grad()
    def edge_map(self, pair: Tensor, pad_to: int = 0) -> Tensor:
        """An image and its mirror image, (2, 3, H, W), to the class boundary map (1, h, w) in [0, 1] of the image.

        `pad_to`: the images are first padded with 0 at the right and bottom to sides of at least this, and the map is
        cropped back (IRN `net/resnet50_irn.py`, EdgeDisplacement: 512, and longer sides are cropped; LPCAM: none).
        """
        return self._merge(_strided(self._edge(self._stages(_padded(pair, pad_to))), pair))

    @torch.no_grad()
    def edge_and_displacement(self, pair: Tensor, pad_to: int = 0) -> tuple[Tensor, Tensor]:
        """As `edge_map`, with the displacement (2, h, w) of the image itself (official `EdgeDisplacement`)."""
        edge, displacement = (_strided(output, pair) for output in self(_padded(pair, pad_to)))
        return self._merge(edge), displacement[0]

    def set_displacement_mean(self, mean: Tensor) -> None:
        """mean: (2,), of the raw displacement over images; set it to 0 before measuring, or measure in training mode."""
        self.mean_shift.running_mean.copy_(mean)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the edge and of the displacement branch; the latter gets ten times the learning rate."""
        named = list(self.named_parameters())
        edge, displacement = ([p for name, p in named if name.startswith(prefix)] for prefix in ("fc_edge", "fc_dp"))
        return edge, displacement

    @torch.no_grad()
    def _stages(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.stages(x)

    def _edge(self, stages: tuple[Tensor, ...]) -> Tensor:
        parts = [_cropped(self.get_submodule(f"fc_edge{i}")(x), stages[0].shape) for i, x in enumerate(stages, start=1)]
        return self.fc_edge6(torch.cat(parts, 1))

    def _displacement(self, stages: tuple[Tensor, ...]) -> Tensor:
        parts = [self.get_submodule(f"fc_dp{i}")(x) for i, x in enumerate(stages, start=1)]
        fine = self.backbone.strides.count(4)
        grid = stages[0].shape                                                           # of stride 4
        half = [-(-side // 2) for side in grid]                                          # of stride 8
        coarse = self.fc_dp6(torch.cat([_cropped(part, half) for part in parts[fine:]], 1))
        return self.mean_shift(self.fc_dp7(torch.cat([*parts[:fine], _cropped(coarse, grid)], 1)))

    @staticmethod
    def _merge(edge_logits: Tensor) -> Tensor:
        """Sigmoid of the mean of an image's logits and of its mirror image's, mirrored back."""
        return torch.sigmoid(edge_logits[0] / 2 + edge_logits[1].flip(-1) / 2)


def _branch(inputs: int, outputs: int, groups: int, upsample: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)]
    if upsample > 1:
        layers.append(nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


def _strided(output: Tensor, images: Tensor) -> Tensor:
    """The part of an output that belongs to the images before padding: at stride 4, rounded up."""
    height, width = ((side - 1) // 4 + 1 for side in images.shape[2:])
    return output[..., :height, :width]


def _padded(images: Tensor, side: int) -> Tensor:
    return F.pad(images, (0, max(0, side - images.shape[3]), 0, max(0, side - images.shape[2])))


def _cropped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """`x` cropped to the last two sides of `shape`."""
    return x[..., : shape[-2], : shape[-1]]
