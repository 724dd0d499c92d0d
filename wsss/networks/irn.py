"""IRN's two branches on a frozen backbone: class boundaries, and displacements to the centre of the instance.

Ahn et al. 2019, section 4; layers and parameter names as in the official `net/resnet50_irn.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.networks.resnet import ResNet, seeded


class MeanShift(nn.Module):
    """In eval mode takes off the mean displacement, which is measured once after training; in training mode does nothing."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x - self.running_mean.view(1, -1, 1, 1)


class IRN(nn.Module):
    """Edge and displacement branches on the five stages of a backbone, which stays in eval mode and is not trained.

    The backbone is used as it is given, with its gradients switched off for good.
    """

    def __init__(self, backbone: ResNet, seed: int = 0):
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.mean_shift = MeanShift(2)
        c1, c2, c3, c4, c5 = backbone.channels
        with seeded(seed):
            self.fc_edge1 = _branch(c1, 32, 4)
            self.fc_edge2 = _branch(c2, 32, 4)
            self.fc_edge3 = _branch(c3, 32, 4, upsample=2)
            self.fc_edge4 = _branch(c4, 32, 4, upsample=4)
            self.fc_edge5 = _branch(c5, 32, 4, upsample=4)
            self.fc_edge6 = nn.Conv2d(160, 1, 1)
            self.fc_dp1 = _branch(c1, 64, 8)
            self.fc_dp2 = _branch(c2, 128, 16)
            self.fc_dp3 = _branch(c3, 256, 16)
            self.fc_dp4 = _branch(c4, 256, 16, upsample=2)
            self.fc_dp5 = _branch(c5, 256, 16, upsample=2)
            self.fc_dp6 = _branch(768, 256, 16, upsample=2)
            self.fc_dp7 = nn.Sequential(*_branch(448, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def train(self, mode: bool = True) -> "IRN":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to edge logits (B, 1, h, w) and displacement (B, 2, h, w) at stride 4, rounded up.

        The displacement points (down, right), in grid cells; the mean is taken off in eval mode only.
        """
        stages = self._stages(x)
        return self._edge(stages), self._displacement(stages)

    @torch.no_grad()
    def edge_map(self, pair: Tensor, pad_to: int = 0) -> Tensor:
        """An image and its mirror image, (2, 3, H, W), to the class boundary map (1, h, w) in [0, 1] of the image.

        `pad_to`: the images are first padded with 0 at the right and below to sides of at least this, and the map is
        cropped back (IRN `net/resnet50_irn.py`, EdgeDisplacement: 512, where a longer side is cut off instead; LPCAM: none).
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
        return tuple([p for name, p in named if name.startswith(prefix)] for prefix in ("fc_edge", "fc_dp"))

    @torch.no_grad()
    def _stages(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.stages(x)

    def _edge(self, stages: tuple[Tensor, ...]) -> Tensor:
        x1, x2, x3, x4, x5 = stages
        parts = [self.fc_edge1(x1), self.fc_edge2(x2), self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5)]
        return self.fc_edge6(torch.cat([_cropped(part, x1) for part in parts], 1))

    def _displacement(self, stages: tuple[Tensor, ...]) -> Tensor:
        x1, x2, x3, x4, x5 = stages
        coarse = [self.fc_dp3(x3), _cropped(self.fc_dp4(x4), x3), _cropped(self.fc_dp5(x5), x3)]
        coarse = _cropped(self.fc_dp6(torch.cat(coarse, 1)), x1)
        return self.mean_shift(self.fc_dp7(torch.cat([self.fc_dp1(x1), self.fc_dp2(x2), coarse], 1)))

    @staticmethod
    def _merge(edge_logits: Tensor) -> Tensor:
        """The mean of the logits of an image and of its mirror image turned back, through the sigmoid."""
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


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    return x[..., : like.shape[2], : like.shape[3]]
