"""The image classifier whose weights and features give the activation maps (official `net/resnet50_cam.py`)."""

from torch import Tensor, nn

from wsss.networks.backbones.backbone import Backbone
from wsss.seeding import seeded


class Classifier(nn.Module):
    """Backbone, global average pooling, and a 1x1 convolution without bias: `classifier.weight` (C, D, 1, 1).

    detach_after_layer2: in training, stem, layer1 and layer2 get no gradient (IRN; removed in LPCAM).
    """

    def __init__(self, backbone: Backbone, n_classes: int, detach_after_layer2: bool = False, seed: int = 0):
        super().__init__()
        self.backbone = backbone
        self.detach_after_layer2 = detach_after_layer2
        with seeded(seed):
            self.classifier = nn.Conv2d(backbone.feature_channels, n_classes, 1, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the features before pooling, (B, D, ceil(H/16), ceil(W/16))."""
        return self.backbone(x, self.detach_after_layer2)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, C)."""
        return self.head(self.features(x))

    def head(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) to logits (B, C)."""
        pooled = features.mean((2, 3), keepdim=True)  # (B, D, 1, 1)
        return self.classifier(pooled).flatten(1)

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters of the backbone and of the classifier; the latter gets ten times the learning rate."""
        return [p for p in self.backbone.parameters() if p.requires_grad], list(self.classifier.parameters())


def poly_factor(step: int, max_step: int, power: float = 0.9) -> float:
    """The factor of the learning rate at `step`, counted from 0 (official `misc/torchutils.PolyOptimizer`).

    The official optimiser is SGD with this factor, momentum 1e-4 and weight decay 1e-4: `PolyOptimizer` passes the weight decay
    to torch's SGD as the momentum, and what it calls momentum (0.9) is the power above.
    """
    return max(0.0, 1 - step / max_step) ** power
