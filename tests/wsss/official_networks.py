"""The official networks as plain modules with the same attributes (IRN and LPCAM, net/resnet50_cam.py, net/resnet50_irn.py).

Independent of `wsss`. Modules shared between attributes appear several times in the state dict, as in the official code.
"""

import torch
import torchvision
from torch import nn


def plain_resnet(depth: str) -> nn.Module:
    """torchvision's ResNet with stride 1 in layer4, without pooling and head, and with random batch norm statistics."""
    net = getattr(torchvision.models, depth)(weights=None)
    del net.fc, net.avgpool
    for layer in net.layer4.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.uniform_(-0.1, 0.1)
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.0)
    return net


class OfficialCam(nn.Module):
    def __init__(self, n_classes: int, depth: str = "resnet50"):
        super().__init__()
        self.resnet50 = plain_resnet(depth)
        stem = (self.resnet50.conv1, self.resnet50.bn1, self.resnet50.relu, self.resnet50.maxpool)
        self.stage1 = nn.Sequential(*stem, self.resnet50.layer1)
        self.stage2 = nn.Sequential(self.resnet50.layer2)
        self.stage3 = nn.Sequential(self.resnet50.layer3)
        self.stage4 = nn.Sequential(self.resnet50.layer4)
        self.classifier = nn.Conv2d(self.resnet50.inplanes, n_classes, 1, bias=False)
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4])
        self.newly_added = nn.ModuleList([self.classifier])
        self.eval()

    def forward(self, x):
        features = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.classifier(features.mean((2, 3), keepdim=True)).flatten(1)


class MeanShift(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))

    def forward(self, x):
        return x - self.running_mean.view(1, 2, 1, 1)


def layer(inputs: int, outputs: int, groups: int, scale: int = 1) -> nn.Sequential:
    upsample = [nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)] if scale > 1 else []
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs), *upsample, nn.ReLU(inplace=True))


class OfficialIrn(nn.Module):
    """With the constants of AffinityDisplacementLoss, whose state dict is what train_irn saves."""

    def __init__(self, depth: str = "resnet50", channels: tuple[int, ...] = (64, 256, 512, 1024, 2048)):
        super().__init__()
        net = self.resnet50 = plain_resnet(depth)
        self.stage1 = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stage2, self.stage3 = nn.Sequential(net.layer1), nn.Sequential(net.layer2)
        self.stage4, self.stage5 = nn.Sequential(net.layer3), nn.Sequential(net.layer4)
        self.mean_shift = MeanShift(2)
        c = channels
        self.fc_edge1, self.fc_edge2, self.fc_edge3 = layer(c[0], 32, 4), layer(c[1], 32, 4), layer(c[2], 32, 4, 2)
        self.fc_edge4, self.fc_edge5 = layer(c[3], 32, 4, 4), layer(c[4], 32, 4, 4)
        self.fc_edge6 = nn.Conv2d(160, 1, 1, bias=True)
        self.fc_dp1, self.fc_dp2, self.fc_dp3 = layer(c[0], 64, 8), layer(c[1], 128, 16), layer(c[2], 256, 16)
        self.fc_dp4, self.fc_dp5 = layer(c[3], 256, 16, 2), layer(c[4], 256, 16, 2)
        self.fc_dp6 = layer(768, 256, 16, 2)
        self.fc_dp7 = nn.Sequential(nn.Conv2d(448, 256, 1, bias=False), nn.GroupNorm(16, 256), nn.ReLU(inplace=True),
                                    nn.Conv2d(256, 2, 1, bias=False), self.mean_shift)
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4, self.stage5])
        self.edge_layers = nn.ModuleList([getattr(self, f"fc_edge{i}") for i in range(1, 7)])
        self.dp_layers = nn.ModuleList([getattr(self, f"fc_dp{i}") for i in range(1, 8)])
        self.register_buffer("path_indices0", torch.zeros(3, 4, dtype=torch.long))
        self.register_buffer("disp_target", torch.zeros(1, 2, 3, 1))
        self.mean_shift.running_mean.copy_(torch.tensor([0.25, -1.5]))
        self.eval()

    def forward(self, x):
        x1 = self.stage1(x)
        x2 = self.stage2(x1)
        x3 = self.stage3(x2)
        x4 = self.stage4(x3)
        x5 = self.stage5(x4)
        edge2 = self.fc_edge2(x2)
        h, w = edge2.shape[2:]
        edges = [self.fc_edge1(x1), edge2, self.fc_edge3(x3), self.fc_edge4(x4), self.fc_edge5(x5)]
        edge = self.fc_edge6(torch.cat([part[..., :h, :w] for part in edges], dim=1))
        dp2, dp3 = self.fc_dp2(x2), self.fc_dp3(x3)
        coarse = [part[..., :dp3.size(2), :dp3.size(3)] for part in (dp3, self.fc_dp4(x4), self.fc_dp5(x5))]
        up = self.fc_dp6(torch.cat(coarse, dim=1))[..., :dp2.size(2), :dp2.size(3)]
        return edge, self.fc_dp7(torch.cat([self.fc_dp1(x1), dp2, up], dim=1))


class _Aspp(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        for i, rate in enumerate((6, 12, 18, 24)):
            self.add_module(f"c{i}", nn.Conv2d(inputs, outputs, 3, 1, padding=rate, dilation=rate))

    def forward(self, x):
        return sum(layer(x) for layer in self.children())


class OfficialAmn(nn.Module):
    """AMN, net/resnet50_amn.py."""

    def __init__(self, n_classes: int, depth: str = "resnet50"):
        super().__init__()
        net = self.resnet50 = plain_resnet(depth)
        self.stage1 = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        self.stage2, self.stage3, self.stage4 = nn.Sequential(net.layer2), nn.Sequential(net.layer3), nn.Sequential(net.layer4)
        self.label_enc = nn.Linear(n_classes, net.inplanes)
        self.classifier = nn.Sequential(nn.Dropout(0.1), _Aspp(net.inplanes, n_classes + 1))
        self.backbone = nn.ModuleList([self.stage1, self.stage2, self.stage3, self.stage4])
        self.newly_added = nn.ModuleList([self.classifier, self.label_enc])
        self.eval()

    def forward(self, x, labels):
        return self.classifier(self.stage4(self.stage3(self.stage2(self.stage1(x)))) * self.label_enc(labels)[:, :, None, None])
