"""Build the networks and inputs of the reference case (tests/reference_case/README.md)."""

import copy
import functools
import hashlib

import imageio.v3 as imageio
import numpy as np
import torch
import torchvision

from tests.reference import EXPECTED, REFERENCE
from wsss.classifiers.classifier import Classifier, LinearClassifier
from wsss.networks.backbones.resnet_layers import FrozenBatchNorm, ResNet
from wsss.networks.irn import IRN


def reference_backbone() -> ResNet:
    """The ResNet-50 of the reference case with frozen batch norm."""
    backbone = copy.deepcopy(_reference_backbone())
    backbone.conv1.requires_grad_(False)
    backbone.bn1.requires_grad_(False)
    return backbone


@functools.cache
def _reference_backbone() -> ResNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(EXPECTED["seed"])
        net = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm)
    state, digest = net.state_dict(), hashlib.sha256()
    for name in sorted(state):
        if name.endswith("bn3.weight"):
            state[name].fill_(0.3)
        digest.update(name.encode() + state[name].numpy().tobytes())
    assert digest.hexdigest() == EXPECTED["backbone_sha256"], "this torchvision initialises a ResNet-50 differently"
    return ResNet(net)


def reference_classifier() -> Classifier:
    """The classifier of the reference case: 20 classes on the reference backbone."""
    model = LinearClassifier(reference_backbone(), n_classes=20)
    weight = torch.from_numpy(np.load(REFERENCE / "classifier_weight.npy"))
    model.classifier.weight.data.copy_(weight[:, :, None, None])
    return model


def reference_irn() -> IRN:
    """The IRN of the reference case, in eval mode."""
    with np.load(REFERENCE / "irn_heads.npz") as file:
        heads = {name: torch.from_numpy(file[name]) for name in file if name != "fc_dp7.4.running_mean"}  # mean_shift, once more
    model = IRN(reference_backbone())
    missing, unexpected = model.load_state_dict(heads, strict=False)
    assert not unexpected and all(name.startswith("backbone.") for name in missing)
    return model.eval()


def reference_image(image_id: str) -> torch.Tensor:
    """The image as the official networks get it: (3, H, W) float32, ImageNet mean and standard deviation."""
    image = imageio.imread(REFERENCE / "JPEGImages" / f"{image_id}.jpg") / 255
    image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
