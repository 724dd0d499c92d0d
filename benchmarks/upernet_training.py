"""train_seg with UPerNet on a Swin-T: a plain loop with the network of segmentation-models-pytorch and timm against ours."""

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from benchmarks.harness import CPU, Case, greatest_difference
from benchmarks.setting import N_CLASSES
from benchmarks.training import our_step, samples
from steps.runtime.networks import to_train
from steps.runtime.schedule import OptimizerName
from wsss.families import from_facts
from wsss.segmenters.segmenter import Segmenter
from wsss.segmenters.upernet import UPerNet

SWIN, WIDTH = "swin_tiny_patch4_window7_224", 512
SETTINGS = SimpleNamespace(optimizer=OptimizerName.adamw, lr=6e-5, weight_decay=0.01)
METHOD = UPerNet(width=WIDTH, auxiliary_width=256, auxiliary_weight=0.0, dropout=0.0, swin=True)   # smp: one loss, no dropout
# Our names of parameters -> those of smp
NAMES = ((r"backbone\.net\.layers\.(\d)", r"encoder.model.layers_\1"), (r"backbone\.net", "encoder.model"),
         ("norms", "decoder.feature_norms"), (r"head\.pooled\.(\d)", r"decoder.psp.blocks.\1.1"),
         (r"head\.bottleneck", "decoder.psp.out_conv"), (r"head\.fuse", "decoder.fusion_block"),
         (r"head\.classifier\.1", "segmentation_head.0"),
         *((rf"head\.lateral\.{i}", f"decoder.fpn_lateral_blocks.{2 - i}.conv_norm_relu") for i in range(3)),
         *((rf"head\.smooth\.{i}", f"decoder.fpn_conv_blocks.{2 - i}") for i in range(3)))


def smp_upernet(mine: Segmenter, crop: int) -> torch.nn.Module:
    """smp's network with the weights of ours."""
    import segmentation_models_pytorch as smp

    net = smp.create_model("upernet", f"tu-{SWIN}", None, classes=N_CLASSES + 1, decoder_channels=WIDTH, img_size=crop,
                           always_partition=True, drop_path_rate=0.0)
    state = {}
    for name, value in mine.state_dict().items():
        for ours, theirs in NAMES:
            if re.match(ours, name):
                state[re.sub(f"^{ours}", theirs, name)] = value
                break
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    return net


def upernet_case(quick: bool, precision: str, sizes: tuple[int, int], device: torch.device = CPU) -> Case:
    """`sizes`: the batch and the crop."""
    batch, crop = sizes
    images = samples(batch, crop)[0].to(device)
    draw = torch.Generator().manual_seed(1)
    regions = F.interpolate(torch.randn(batch, 4, 6, 6, generator=draw), crop, mode="bicubic").argmax(1)
    labels = torch.tensor([0, 3, 7, 255])[regions].byte().to(device)
    backbone = from_facts("backbone", {"method": "timm", "network": SWIN, "output_stride": None, "drop_path": 0.0})
    mine = METHOD.new(backbone.new("frozen_batch"), N_CLASSES + 1)
    theirs = smp_upernet(mine, crop).to(device).train()
    mine = to_train(mine, device)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)

    def plain() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = theirs(images)
        loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=255, reduction="sum") / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()[None]
    ours = our_step(mine, tuple(METHOD.groups(mine, 1.0)), lambda x, y, total: METHOD.losses(mine, x, y, METHOD.counts(y)),
                    (images, labels), precision, settings=SETTINGS)
    return Case(f"{crop}x{crop}, batch {batch}", ours, plain, greatest_difference,
                "a loop with smp's network, without the second head; difference: of the loss", precision, batch)
