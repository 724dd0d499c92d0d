"""ReCAM against a plain re-statement of the official files, in float64, class by class and cell by cell."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, multilabel_soft_margin_loss

from tests.networks import new_backbone
from wsss.cams.cam import CAM
from wsss.classifiers.recam import ReCAM
from wsss.errors import ConfigError


def plain_class_features(features, weights):
    """net/resnet50_cam.py, Net_CAM_Feature.forward: (B, C, D) with the array (B, C, D, h, w)."""
    cams = torch.relu(torch.einsum("cd,bdhw->bchw", weights, features))
    cams = cams / (cams.amax((2, 3), keepdim=True) + 1e-5)
    return (cams.unsqueeze(2) * features.unsqueeze(1)).flatten(3).mean(3)


def plain_softmax(of_classes, weights, labels):
    """net/resnet50_cam.py, Class_Predictor.forward."""
    total = 0.0
    for own, label in zip(of_classes, labels):
        present = torch.nonzero(label).squeeze(1)
        if len(present):
            total = total + cross_entropy(own[present] @ weights.T, present)
    return total / len(labels)


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = ReCAM(0.7, "product").new(new_backbone("tiny", "frozen_batch"), 4, seed=3).double()
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)   # one image without classes
    return net, torch.rand(3, 3, 40, 33, dtype=torch.float64), labels


def test_forward_loss_and_gradients_are_those_of_the_official_code(case):
    net, images, labels = case
    features = net.features(images)
    first, second = (layer.weight.flatten(1) for layer in (net.classifier, net.second))
    of_classes = plain_class_features(features, first)
    torch.testing.assert_close(net.class_features(features), of_classes, rtol=0, atol=1e-10)
    torch.testing.assert_close(net.second_head(features), of_classes @ second.T, rtol=0, atol=1e-10)
    parts = multilabel_soft_margin_loss(features.mean((2, 3)) @ first.T, labels), plain_softmax(of_classes, second, labels)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    losses = ReCAM(0.7, "product").losses(net, images, labels)
    for name, wanted in {"multi_label": parts[0], "softmax": parts[1], "loss": parts[0] + 0.7 * parts[1]}.items():
        torch.testing.assert_close(losses[name].double(), wanted, rtol=0, atol=1e-6)   # `losses` are computed in float32
    wanted = torch.autograd.grad(parts[0] + 0.7 * parts[1], parameters, retain_graph=True)
    for name, ours, theirs in zip(names, torch.autograd.grad(losses["loss"], parameters), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("map_weights", ["product", "first"])
def test_maps(case, map_weights):
    net, images, _ = case
    net.product = map_weights == "product"
    pair = images[:2].float()
    net = net.float()
    maps = CAM().maps(net, net.features, pair, [2, 0])
    features = net.features(pair).double()
    first, second = (layer.weight.flatten(1).double() for layer in (net.classifier, net.second))
    weights = first * second if map_weights == "product" else first                 # CAM.forward2 | step_coco/make_recam.py
    wanted = torch.relu(torch.einsum("cd,bdhw->bchw", weights, features))[:, [2, 0]]
    torch.testing.assert_close(maps.double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(net.class_weights(), net.classifier.weight.flatten(1))       # of LPCAM's probabilities: of the logits


def test_the_second_classifier_has_a_learning_rate_of_its_own(case):
    net, _, _ = case
    (slow, one), (fast, ten) = ReCAM(1.0, "first").groups(net, 10.0)
    assert (one, ten) == (1.0, 10.0) and [id(each) for each in fast] == [id(net.second.weight)]
    assert any(each is net.classifier.weight for each in slow)
    assert {id(each) for each in [*slow, *fast]} == {id(each) for each in net.parameters() if each.requires_grad}


def test_no_array_of_all_classes_and_cells_is_made(case):
    net, images, labels = case
    features = net.features(images)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        net.second_head(features)
    assert max(kept) <= max(features.numel(), net.second.weight.numel(), 3 * 4 * int(np.prod(features.shape[2:])))


@pytest.mark.parametrize(("settings", "message"), [
    ((1.0, "second"), "classifier.map_weights='second' is not possible: expected one of product, first"),
    ((-1.0, "first"), "classifier.weight=-1.0 is not possible: expected at least 0")])
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ReCAM(*settings)
