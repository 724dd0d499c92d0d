"""Backbone, classifier and IRN: torchvision's names, strides, what is trained, and equality with the official code."""

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from tests.networks import new_backbone, new_classifier
from tests.reference import EXPECTED, IDS, REFERENCE, load
from tests.wsss.reference_networks import reference_classifier, reference_image, reference_irn
from wsss.classifiers.classifier import poly_factor
from wsss.errors import ArgumentError, ConfigError
from wsss.networks.backbones.resnet_layers import FrozenBatchNorm
from wsss.networks.irn import IRN


def image(height=33, width=50, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize(("depth", "channels"), [("resnet18", (64, 64, 128, 256, 512)), ("resnet50", (64, 256, 512, 1024, 2048)),
                                                 ("tiny", (4, 4, 8, 16, 32))])
@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 50), (64, 17)])
def test_stages_have_stride_16_at_any_size(depth, channels, norm, height, width):
    net = new_backbone(depth, norm)
    with torch.no_grad():
        stages = net.stages(image(height, width))
        assert torch.equal(net(image(height, width)), stages[-1])
    assert net.channels == channels
    for stage, channel, stride in zip(stages, channels, (4, 4, 8, 16, 16), strict=True):
        assert stage.shape == (1, channel, -(-height // stride), -(-width // stride))


def test_tiny_is_tiny_and_changes_no_other_network():
    assert sum(parameter.numel() for parameter in new_backbone("tiny").parameters()) == 20_052
    groups = {(layer.num_channels, layer.num_groups) for layer in new_backbone("tiny").modules() if isinstance(layer, torch.nn.GroupNorm)}
    assert groups == {(4, 1), (8, 1), (16, 2), (32, 4)}
    assert {layer.num_groups for layer in new_backbone("resnet18").modules() if isinstance(layer, torch.nn.GroupNorm)} == {32}


@pytest.mark.parametrize("depth", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_torchvision_names_and_strides(depth):
    with torch.device("meta"):
        original = getattr(torchvision.models, depth)(weights=None)
        net = new_backbone(depth, "frozen_batch")
    names = {name: value.shape for name, value in original.state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in net.state_dict().items()} == names
    ours, theirs = dict(net.named_modules()), dict(original.named_modules())
    changed = {name for name, layer in ours.items() if isinstance(layer, torch.nn.Conv2d) and layer.stride != theirs[name].stride}
    middle = "layer4.0.conv1" if depth in ("resnet18", "resnet34") else "layer4.0.conv2"
    assert changed == {middle, "layer4.0.downsample.0"}
    assert all(layer.dilation == (1, 1) for layer in ours.values() if isinstance(layer, torch.nn.Conv2d))


def test_weights_come_from_the_seed_alone():
    state = torch.get_rng_state()
    nets = [new_classifier(new_backbone("resnet18", seed=seed), 3, seed=seed).state_dict() for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    for name in ("backbone.conv1.weight", "classifier.weight"):
        assert not torch.equal(nets[0][name], nets[2][name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        original = torchvision.models.resnet18(weights=None)
    assert torch.equal(nets[0]["backbone.layer3.1.conv2.weight"], original.layer3[1].conv2.weight)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_scale():
    model = new_classifier(new_backbone("resnet18", "frozen_batch"), 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone, classifier = model.parameter_groups()
    optimizer = torch.optim.SGD([*backbone, *classifier], lr=0.1)
    model(image(batch=2)).sum().backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, _ in model.named_parameters() if ".conv1." not in name or "layer" in name}
    assert changed == trained - {"backbone.bn1.weight", "backbone.bn1.bias"}
    assert not any(module.training for module in model.modules() if isinstance(module, FrozenBatchNorm))


def test_group_norm_trains_everything():
    model = new_classifier(new_backbone("resnet18", "group"), 3)
    model(image()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert sum(map(len, model.parameter_groups())) == len(list(model.parameters()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_the_early_parameters_are_those_up_to_layer2():
    model = new_classifier(new_backbone("resnet18", "frozen_batch"), 3)
    early = model.backbone.early_parameters()
    names = {name.split(".")[0] for name, parameter in model.backbone.named_parameters() if any(parameter is each for each in early)}
    assert names == {"layer1", "layer2"} and model.training   # the stem is not trained anyway
    for parameter in early:
        parameter.requires_grad_(False)
    model(image()).sum().backward()
    assert model.backbone.layer2[1].conv2.weight.grad is None and model.backbone.layer3[0].conv1.weight.grad is not None


def test_logits_are_the_pooled_class_maps():
    model = new_classifier(new_backbone("resnet18"), 4)
    with torch.no_grad():
        maps = F.conv2d(model.features(image()), model.classifier.weight)  # (1, 4, h, w)
        torch.testing.assert_close(model(image()), maps.mean((2, 3)))


def test_unknown_names_list_the_known():
    with pytest.raises(ConfigError, match="backbone.depth='resnet51' is not possible: expected one of resnet18, "):
        new_backbone("resnet51")
    with pytest.raises(ArgumentError, match="unknown norm 'batch'; known: frozen_batch, group"):
        new_backbone("resnet18", "batch")


def test_reference_training_trace():
    expected = EXPECTED["train_cam_trace"]
    size, steps = expected["crop"], expected["max_step"]
    crops = [reference_image(image_id)[:, :size, :size] for image_id in IDS]
    images = torch.stack([F.pad(crop, (0, size - crop.shape[2], 0, size - crop.shape[1])) for crop in crops])
    labels = torch.from_numpy(np.load(REFERENCE / "labels.npy"))
    model = reference_classifier().train()
    backbone, classifier = model.parameter_groups()
    groups = [{"params": backbone, "lr": expected["lr"]}, {"params": classifier, "lr": 10 * expected["lr"]}]
    optimizer = torch.optim.SGD(groups, momentum=1e-4, weight_decay=expected["weight_decay"])
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (expected["lr"], 10 * expected["lr"]), strict=True):
            group["lr"] = rate * poly_factor(step, steps)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected["lrs"][step])
        loss = F.multilabel_soft_margin_loss(model(images), labels)
        assert loss.item() == pytest.approx(expected["loss"][step], rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def irn():
    return reference_irn()


@pytest.mark.parametrize("image_id", IDS)
def test_reference_edge_and_displacement(irn, image_id):
    expected, x = load("irn", image_id), reference_image(image_id)
    pair = torch.stack([x, x.flip(-1)])
    edge, displacement = irn.edge_and_displacement(pair)
    np.testing.assert_allclose(edge, expected["edge"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(displacement, expected["dp"], rtol=1e-4, atol=1e-4)
    assert torch.equal(irn.edge_map(pair), edge)


def test_padding_as_in_irn(irn):
    """IRN's EdgeDisplacement: the network sees 0 at the right and below, its outputs are cut back before the flip."""
    pair = image(45, 61, batch=2)
    edge, displacement = irn(F.pad(pair, [0, 128 - 61, 0, 128 - 45]))
    edge, displacement = edge[..., :12, :16], displacement[..., :12, :16]
    padded = irn.edge_and_displacement(pair, pad_to=128)
    torch.testing.assert_close(padded[0], torch.sigmoid(edge[0] / 2 + edge[1].flip(-1) / 2))
    torch.testing.assert_close(padded[1], displacement[0])
    assert torch.equal(irn.edge_map(pair, pad_to=128), padded[0])
    assert not torch.allclose(irn.edge_map(pair), padded[0], atol=1e-4)
    assert torch.equal(irn.edge_map(pair, pad_to=40), irn.edge_map(pair))   # what is longer stays whole


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
def test_irn_takes_any_size(depth):
    model = IRN(new_backbone(depth)).eval()
    for height, width in ((1, 1), (2, 37), (45, 31)):
        edge, displacement = model.edge_and_displacement(image(height, width, batch=2))
        grid = -(-height // 4), -(-width // 4)
        assert edge.shape == (1, *grid) and displacement.shape == (2, *grid)
        assert 0 <= edge.min() and edge.max() <= 1


def test_irn_trains_its_branches_and_not_the_backbone():
    model = IRN(new_backbone("resnet18")).train()
    edge, displacement = model(image(batch=2))
    (edge.sum() + displacement.sum()).backward()
    branches = model.parameter_groups()
    assert [len(group) for group in branches] == [17, 22]
    assert all(p.grad is not None for group in branches for p in group)
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert not any(module.training for module in model.backbone.modules())


def test_the_mean_displacement_is_taken_off_in_eval_mode_only():
    model = IRN(new_backbone("resnet18"))
    with torch.no_grad():
        model.set_displacement_mean(torch.tensor([0.5, -2.0]))
        raw, shifted = model.train()(image())[1], model.eval()(image())[1]
    torch.testing.assert_close(raw - shifted, torch.tensor([0.5, -2.0]).view(1, 2, 1, 1).expand_as(raw))
