"""Grad-CAM and LayerCAM against plain loops, torchcam (where it is installed) and CAM; nothing outlives an image."""

import copy
import gc
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.networks import LITE0, new_backbone, new_classifier
from wsss.cams.cam import CAM, class_activation_maps
from wsss.cams.gradcam import GradCAM
from wsss.cams.layercam import LayerCAM
from wsss.cams.method import multi_scale_maps
from wsss.errors import ConfigError

CLASSES = [3, 0, 4]
DEIT, SWIN = "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"   # their modules return tokens (B, n, D), and maps (B, h, w, D)
CONVOLUTIONAL = [("tiny", "group"), ("tiny", "frozen_batch"), (LITE0, "frozen_batch")]
NETWORKS = [*CONVOLUTIONAL, (DEIT, "frozen_batch"), (SWIN, "frozen_batch")]
EVERY = pytest.mark.parametrize(("name", "norm"), NETWORKS)
SIZES = pytest.mark.parametrize(("name", "norm", "size"), [   # the long loops over the channels of Lite0 and Swin at one size
    *((*each, (61, 83)) for each in NETWORKS), *((*each, (96, 64)) for each in NETWORKS if each[0] not in (LITE0, SWIN))])
EVERY_CONVOLUTIONAL = pytest.mark.parametrize(("name", "norm"), CONVOLUTIONAL)


@cache
def network(name="tiny", norm="group"):
    """A classifier of 5 classes with random weights; frozen batch norms have the statistics of noise, so that they scale."""
    net = new_classifier(new_backbone(name, norm, seed=3), 5, seed=3)
    if norm == "frozen_batch":
        def measure(layer, inputs):
            layer.running_mean.copy_(inputs[0].mean((0, 2, 3)))
            layer.running_var.copy_(inputs[0].var((0, 2, 3)))
        hooks = [layer.register_forward_pre_hook(measure) for layer in net.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
        with torch.no_grad():
            net(pair(65, 97, seed=9))
        for hook in hooks:
            hook.remove()
    return net.eval()


def pair(height, width, seed=0):
    image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    return torch.stack([image, image.flip(-1)])


def exact(name, norm, size):
    """A network and a pair, with batch norm in float64: in float32 rounding moves a few activations of Lite0 across the kinks of
    a ReLU6, where the gradient jumps. Our group norm is in float32."""
    dtype = torch.float64 if norm == "frozen_batch" else torch.float32
    return copy.deepcopy(network(name, norm)).to(dtype), pair(*size).to(dtype)


def maps_of(method, net, images, classes=CLASSES):
    return method.maps(net, net.features, images, classes)


def plain_stages(net, x):
    """All stages and the logits of one image (1, 3, H, W), with a graph, as the networks' own layers and the formulas of their heads
    say; and the function from a stage to its map (D, h, w)."""
    weight, height, width = net.classifier.weight[:, :, 0, 0], *x.shape[2:]
    layers, stages = getattr(net.backbone, "net", None), []
    if net.backbone.name == DEIT:
        x = layers._pos_embed(layers.patch_embed(x))
        for block in layers.blocks:
            stages.append(x := block(x))
        stages = [*stages[2::3], layers.norm(x)]
        grid = math.ceil(height / 16), math.ceil(width / 16)
        return stages, (stages[-1][:, 1:].mean(1) @ weight.T)[0], lambda stage: stage[0, 1:].T.unflatten(1, grid)
    if net.backbone.name == SWIN:
        x = layers.patch_embed(F.pad(x, (0, -width % 32, 0, -height % 32)))
        for layer in layers.layers:
            stages.append(x := layer(x))
        stages.append(layers.norm(x))

        def cells(stage):   # those of the image
            stride = (height + -height % 32) // stage.shape[1]
            return stage[0, :math.ceil(height / stride), :math.ceil(width / stride)].permute(2, 0, 1)
        return stages, cells(stages[-1]).mean((1, 2)) @ weight.T, cells
    stages = list(net.backbone.stages(x))
    if net.backbone.name == LITE0:
        stages.append(layers.bn2(layers.conv_head(stages[-1])))
    return stages, (stages[-1].mean((2, 3)) @ weight.T)[0], lambda stage: stage[0]


def plain(net, images, classes, kind):
    """The maps (2, K, h, w) of every stage by loops over images, classes and channels; kind "grad" or "layer"."""
    result = []
    for image in images:
        stages, logits, cells = plain_stages(net, image[None].requires_grad_())   # the stem of a pretrained network is frozen
        rows = []
        for index in classes:
            of_class = []
            for stage, gradient in zip(stages, torch.autograd.grad(logits[index], stages, retain_graph=True), strict=True):
                activations, gradients = cells(stage.detach()), cells(gradient)
                total = torch.zeros(activations.shape[1:], dtype=stage.dtype)
                for activation, g in zip(activations, gradients, strict=True):
                    weight = g.sum() / g.numel() if kind == "grad" else g.clamp(min=0)
                    total += weight * activation
                of_class.append(total.clamp(min=0))
            rows.append(of_class)
        result.append(rows)
    return [torch.stack([torch.stack([row[s] for row in rows]) for rows in result]) for s in range(len(result[0][0]))]


def close(found, expected):
    """Equal to 1e-4 of the greatest value of each map in float32, to 1e-8 in float64."""
    assert found.shape == expected.shape and found.dtype == expected.dtype and expected.amax() > 0
    peak = expected.amax((-2, -1), keepdim=True).clamp(min=1e-6)   # one map may be zero: nothing in an image speaks for a class
    torch.testing.assert_close(found / peak, expected / peak, rtol=0, atol=1e-8 if found.dtype == torch.float64 else 1e-4)


@SIZES
def test_grad_cam_equals_plain_loops_at_every_stage(name, norm, size):
    net, images = exact(name, norm, size)
    expected = plain(net, images, CLASSES, "grad")
    assert len(expected) == len(net.backbone.stage_modules) == 5
    for stage, maps in enumerate(expected):
        close(maps_of(GradCAM(stage), net, images), maps)
    assert torch.equal(maps_of(GradCAM(-2), net, images), maps_of(GradCAM(3), net, images))


@SIZES
def test_layer_cam_equals_plain_loops(name, norm, size):
    net, images = exact(name, norm, size)
    expected = plain(net, images, CLASSES, "layer")
    for stage, maps in enumerate(expected):
        close(maps_of(LayerCAM([stage]), net, images), maps)
    for stages in ([2, 3, 4], [-1, 1], [4, -1, 0]):   # in any order, one of them twice
        fine = expected[min(stage % 5 for stage in stages)].shape[2:]
        fused = images.new_zeros(2, len(CLASSES), *fine)
        for b in range(2):
            for k in range(len(CLASSES)):
                for stage in stages:
                    one = expected[stage][b, k]
                    one = torch.tanh(2 * one / one.max()) if one.max() > 0 else one
                    large = F.interpolate(one[None, None], fine, mode="bilinear", align_corners=False)[0, 0]
                    fused[b, k] = torch.maximum(fused[b, k], large)
        close(maps_of(LayerCAM(stages), net, images), fused)
    assert torch.equal(maps_of(LayerCAM([4, -1]), net, images), maps_of(LayerCAM([4]), net, images))


@EVERY_CONVOLUTIONAL
def test_both_equal_torchcam(name, norm):
    methods = pytest.importorskip("torchcam.methods", reason='pip install -e ".[test]"')
    net, images = exact(name, norm, (61, 83))
    layers = list(net.backbone.stage_modules)
    for theirs, ours, kinds in ((methods.GradCAM, GradCAM, range(5)), (methods.LayerCAM, LayerCAM, [[s] for s in range(5)])):
        with theirs(net, layers) as extractor:
            scores = net(images.requires_grad_())
            maps = [extractor(index, scores, normalized=False, retain_graph=True) for index in CLASSES]
        for stage, kind in enumerate(kinds):
            close(maps_of(ours(kind), net, images), torch.stack([of_class[stage] for of_class in maps], dim=1))
    with methods.LayerCAM(net, layers[2:]) as extractor:
        scores, fused = net(images), []
        for index in CLASSES:   # its own normalisation also subtracts the minimum
            maps = extractor(index, scores, normalized=False, retain_graph=True)
            fused.append(extractor.fuse_cams([m / m.amax((1, 2), keepdim=True) for m in maps]))
    close(maps_of(LayerCAM([2, 3, 4]), net, images), torch.stack(fused, dim=1))


@pytest.mark.parametrize(("name", "norm"), NETWORKS)
def test_grad_cam_at_the_last_stage_is_cam_divided_by_the_cells(name, norm):
    net, images = network(name, norm), pair(50, 81)
    with torch.no_grad():
        cam = class_activation_maps(net.features(images), net.classifier.weight[CLASSES].flatten(1))
    close(maps_of(GradCAM(-1), net, images), cam / cam[0, 0].numel())


@pytest.mark.parametrize("method", [GradCAM(-1), LayerCAM([-1])], ids=repr)
def test_no_scale_outweighs_the_others(method):
    """Both are CAM times a number where the features are not negative and the weights are positive, at every scale the same."""
    net, image = copy.deepcopy(network()), np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    net.classifier.weight.data.abs_()
    scales = (1.0, 0.5, 2.0)
    found, cams = (multi_scale_maps(each, net, net.features, image, CLASSES, scales) for each in (method, CAM()))
    ratios = [float(ours.sum() / cam.sum()) for ours, cam in zip(found, cams, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-3)


@EVERY_CONVOLUTIONAL
def test_stage_modules_output_the_stages(name, norm):
    net, x = network(name, norm).backbone, pair(37, 50)
    outputs = []
    hooks = [module.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for module in net.stage_modules]
    with torch.no_grad():
        features = net(x)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        stages = net.stages(x)
    assert torch.equal(outputs[-1], features) and len(outputs) == len(hooks)
    assert all(torch.equal(output, stage) for output, stage in zip(outputs, stages))


@pytest.mark.parametrize("method", [GradCAM(2), GradCAM(-1), LayerCAM([1, -1])])
@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_no_class_and_one_pixel(method, size):
    net = network()
    none, some = maps_of(method, net, pair(*size), []), maps_of(method, net, pair(*size))
    assert none.shape == (2, 0, *some.shape[2:]) and some.shape[:2] == (2, 3) and none.dtype == some.dtype == torch.float32


@pytest.mark.parametrize("method", [GradCAM(0), LayerCAM([0, 1, 2])])
def test_a_class_that_nothing_speaks_for_has_no_map(method):
    net = new_classifier(new_backbone("tiny", "group"), 2).eval()
    torch.nn.init.zeros_(net.classifier.weight)
    assert not maps_of(method, net, pair(33, 50), [1]).any()


@pytest.mark.parametrize("method", [GradCAM(1), LayerCAM([1, -1])])
def test_several_classes_take_one_forward_pass(method):
    net, calls = network(), []
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in (net.backbone, net.classifier)]
    together = maps_of(method, net, pair(33, 50))
    for hook in hooks:
        hook.remove()
    assert len(calls) == 2
    for k, index in enumerate(CLASSES):
        assert torch.equal(maps_of(method, net, pair(33, 50), [index])[:, 0], together[:, k])


@pytest.mark.parametrize("method", [GradCAM(0), GradCAM(-1), LayerCAM([1, 3])])
@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_the_layers_before_the_stage_and_the_parameters_are_not_differentiated(method, norm, monkeypatch):
    net = new_classifier(new_backbone("tiny", norm), 5).eval()
    trained = {name: value.requires_grad for name, value in net.named_parameters()}
    asked = []
    real = torch.autograd.grad

    def grad(outputs, inputs, **options):
        asked.append(list(inputs))
        return real(outputs, inputs, **options)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    maps = maps_of(method, net, pair(33, 50))
    assert len(asked) == len(CLASSES) and all(inputs[0].is_leaf for inputs in asked)   # the graph starts at the finest stage
    assert not maps.requires_grad and maps.grad_fn is None
    assert {name: value.requires_grad for name, value in net.named_parameters()} == trained
    assert all(value.grad is None for value in net.parameters())


@pytest.mark.parametrize("method", [GradCAM(0), GradCAM(2), GradCAM(-1), LayerCAM([0, 2, -1])])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad,
                                    partial(torch.autocast, "cpu", torch.bfloat16)])
def test_a_callers_modes_and_frozen_parameters_change_nothing(method, frozen, caller):
    expected = maps_of(method, network(), pair(33, 50))
    net = new_classifier(new_backbone("tiny", "group", seed=3), 5, seed=3).eval().requires_grad_(not frozen)
    with caller():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        maps = maps_of(method, net, pair(33, 50))   # in inference mode this pair is an inference tensor
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert torch.equal(maps, expected) and not maps.requires_grad


def test_threads_that_share_a_network_do_not_see_each_others_stages():
    net, jobs, start = network(), [(GradCAM(1), 5), (LayerCAM([0, 3]), 6), (GradCAM(-1), 7), (None, 8)], Barrier(4)

    def work(job):
        method, seed = job
        start.wait()
        results = []
        for _ in range(20):
            x = pair(64, 64, seed)
            results.append(maps_of(method, net, x) if method else net(x).detach())
        return results
    alone = [maps_of(method, net, pair(64, 64, seed)) if method else net(pair(64, 64, seed)).detach() for method, seed in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        for results, expected in zip(pool.map(work, jobs), alone, strict=True):
            assert all(torch.allclose(result, expected, atol=1e-6) for result in results)


def live(net):
    """The numbers of tensors that exist and of hooks on the network."""
    objects = gc.get_objects()
    return (sum(issubclass(type(item), torch.Tensor) for item in objects),
            sum(len(hooks) for module in net.modules()
                for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)))


def attention(net, images, classes):
    assert len(net.backbone.attention(images)) == len(net.backbone.net.blocks)
    if classes == [5]:
        raise IndexError


@pytest.mark.parametrize(("name", "call"), [
    *((name, partial(maps_of, method)) for name in ("tiny", "test_vit") for method in (GradCAM(0), LayerCAM([0, 2, -1]))),
    ("test_vit", attention)])
def test_nothing_outlives_an_image(name, call):
    net = network(name)
    call(net, pair(32, 32), CLASSES)     # what is made once
    gc.collect()
    gc.disable()                         # a reference cycle would keep tensors until the next collection
    try:
        before = live(net)
        for seed in range(200):
            call(net, pair(32, 32, seed), CLASSES)
        assert live(net) == before
        with pytest.raises(IndexError):
            call(net, pair(32, 32), [5])
        gc.collect()                     # pytest holds the traceback until then
        assert live(net) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(("method", "message"), [
    (GradCAM(5), "stage 5 does not exist: tiny has 5 stages, expected a number from -5 to 4"),
    (LayerCAM([0, -6]), "stage -6 does not exist: tiny has 5 stages, expected a number from -5 to 4"),
    (LayerCAM([]), "the list of stages is empty, expected numbers from -5 to 4"),
])
def test_stages_that_do_not_exist_are_refused(method, message):
    for use in (lambda: maps_of(method, network(), pair(8, 8)), lambda: method.check(network())):
        with pytest.raises(ConfigError) as error:
            use()
        assert str(error.value) == message
