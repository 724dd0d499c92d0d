"""train_seg with segmenter=deeplab_v2_stock: a plain loop as in deeplab-pytorch (`main.py`: NCHW, sequential) on torchvision's
dilated ResNet-101, against ours. Both in the same precision."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models
from PIL import Image
from torch import Tensor, nn

from benchmarks.harness import CPU, Case, greatest_difference
from benchmarks.setting import N_CLASSES, backbone
from benchmarks.training import RATE, STEPS, our_step
from steps.runtime.networks import to_train
from wsss.families import from_facts

RATES, SCALES, PARTS = [6, 12, 18, 24], [0.5, 0.75], 2   # configs/voc12.yaml: ATROUS_RATES, ITER_SIZE


class PlainDeepLab(nn.Module):
    """libs/models/msc.py on libs/models/deeplabv2.py, with torchvision's network and weights as the base."""

    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = nn.Sequential()
        for name, layer in list(net.named_children())[:-2]:   # without the pooling and the classifier
            self.backbone.add_module(name, layer)
        self.pyramid = nn.ModuleList(nn.Conv2d(2048, N_CLASSES + 1, 3, padding=rate, dilation=rate) for rate in RATES)

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self._logits(x)]
        for scale in SCALES:
            size = [int(side * scale) for side in x.shape[2:]]
            found.append(self._logits(F.interpolate(x, size, mode="bilinear", align_corners=False)))
        large = [F.interpolate(each, found[0].shape[2:], mode="bilinear", align_corners=False) for each in found]
        return [*found, torch.stack(large).max(0)[0]]

    def _logits(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        return sum(convolution(features) for convolution in self.pyramid)


def _resized(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """main.py: resize_labels, on the host."""
    images = [Image.fromarray(label.numpy()).resize(size[::-1], Image.Resampling.NEAREST) for label in labels]
    return torch.from_numpy(np.stack([np.array(image) for image in images])).long()


def deeplab_case(quick: bool, precision: str, sizes: tuple[int, int], device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop."""
    batch, crop = sizes
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(batch, 3, 32, 32, generator=draw), crop, mode="bicubic")
    regions = F.interpolate(torch.randn(batch, 4, 6, 6, generator=draw), crop, mode="bicubic").argmax(1)
    labels = torch.tensor([0, 3, 7, 255])[regions].byte()
    method = from_facts("segmenter", {"method": "deeplab_v2", "rates": RATES, "scales": SCALES, "loss": "cross_entropy"})
    mine, theirs = method.new(copy.deepcopy(backbone("resnet101", dilated=True)), N_CLASSES + 1, seed=1), PlainDeepLab()
    theirs.load_state_dict(mine.state_dict())
    theirs.to(device).eval()   # batch norm is frozen, and nothing else depends on the mode
    mine = to_train(mine, device)
    groups = [{"params": [layer.weight for layer in theirs.backbone.modules() if isinstance(layer, nn.Conv2d)], "lr": RATE},
              {"params": [layer.weight for layer in theirs.pyramid], "lr": 10 * RATE},
              {"params": [layer.bias for layer in theirs.pyramid], "lr": 20 * RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=1e-4, weight_decay=1e-4)
    batches = [(images[part::PARTS].to(device), labels[part::PARTS]) for part in range(PARTS)]   # labels stay on the host

    def official() -> Tensor:
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            total = torch.zeros((), device=device)
            for x, y in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = theirs(x)
                targets = [_resized(y, each.shape[2:]).to(device) for each in logits]
                loss = sum(F.cross_entropy(each.float(), y, ignore_index=255) for each, y in zip(logits, targets, strict=True))
                (loss / PARTS).backward()
                total += loss.detach() / PARTS
            optimizer.step()
            losses.append(total)
        return torch.stack(losses)

    def loss(images: Tensor, labels: Tensor, total: Tensor) -> dict[str, Tensor]:
        return method.losses(mine, images, labels, total)
    ours = our_step(mine, tuple(method.groups(mine, 10.0)), loss, (images.to(device), labels.to(device)), precision, PARTS,
                    lambda images, labels: method.counts(labels))
    return Case(f"{crop}x{crop}, batch {batch} in {PARTS} parts", ours, official, greatest_difference,
                "deeplab-pytorch's loop on torchvision's layers; difference: of the loss", f"{precision}, NCHW -> channels last",
                batch * STEPS)

