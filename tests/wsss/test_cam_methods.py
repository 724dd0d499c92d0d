"""The activation map methods against plain loops and torchcam (where it is installed), and what all of them have in common."""

import copy
import gc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.networks import LITE0, new_backbone, new_classifier
from tests.wsss.test_gradcam import CLASSES, close, exact, live, maps_of, network, pair
from wsss.cams.backprop import Backprop
from wsss.cams.cam import CAM
from wsss.cams.eigencam import EigenCAM
from wsss.cams.gradcam import GradCAM
from wsss.cams.gradcam_pp import GradCAMpp
from wsss.cams.guided_backprop import GuidedBackprop
from wsss.cams.guided_gradcam import GuidedGradCAM
from wsss.cams.hirescam import HiResCAM
from wsss.cams.iscam import ISCAM
from wsss.cams.layercam import LayerCAM
from wsss.cams.legrad import LeGrad
from wsss.cams.maps import pack, pad_of, rebuild
from wsss.cams.method import multi_scale_maps
from wsss.cams.noise import noises
from wsss.cams.occlusion import Occlusion
from wsss.cams.rollout import AttentionRollout
from wsss.cams.scorecam import ScoreCAM
from wsss.cams.signed_cam import SignedCAM
from wsss.cams.smooth_gradcam_pp import SmoothGradCAMpp
from wsss.cams.sscam import SSCAM
from wsss.cams.xgradcam import XGradCAM
from wsss.errors import ConfigError

VIT = "vit_tiny_patch16_224"
NETWORKS = [("tiny", "group"), (LITE0, "frozen_batch"), ("test_vit", "frozen_batch")]   # a small ResNet and a small ViT
EVERY = pytest.mark.parametrize(("name", "norm"), NETWORKS, ids=[name for name, _ in NETWORKS])
CONVOLUTIONAL = pytest.mark.parametrize(("name", "norm"), NETWORKS[:2], ids=[name for name, _ in NETWORKS[:2]])
METHODS = [GradCAMpp(-1), XGradCAM(-1), HiResCAM(-1), EigenCAM(), Backprop(), ScoreCAM("paper", 16), SSCAM("paper", 16, 2, 0.5),
           ISCAM("paper", 16, 2), SSCAM("fcam", 16, 2, 0.5), SmoothGradCAMpp(-1, "paper", 2, 0.3), Occlusion(24, 16, 16), GuidedBackprop(),
           GuidedGradCAM(-1), LeGrad(0), AttentionRollout()]
ALL = pytest.mark.parametrize("method", METHODS, ids=[f"{method.method}_{getattr(method, 'definition', '')}".strip("_") for method in METHODS])
SIZE = (45, 61)


def network_for(method):
    """A small network that the method can make maps of."""
    return network("test_vit", "frozen_batch") if isinstance(method, LeGrad | AttentionRollout) else network()


def of_stage(net, image, stage):
    """The activations (D, h, w) of a stage of one image, and the gradients of the classes with respect to them, (K, D, h, w)."""
    outputs = []
    hook = net.backbone.stage_modules[stage].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = net(image[None].clone().requires_grad_())[0]
    hook.remove()
    gradients = [torch.autograd.grad(logits[index], outputs[0], retain_graph=True)[0] for index in CLASSES]
    activation, *maps = (net.backbone.as_map(each.detach(), image.shape[1:])[0] for each in (outputs[0], *gradients))
    return activation, torch.stack(maps)


def grad_cam_pp(a, g):
    weight, total = 0.0, a.sum()
    for value in g.flatten():
        if value > 0:
            weight += value ** 2 / (2 * value ** 2 + total * value ** 3) * value
    return weight * a


def x_grad_cam(a, g):
    return (g * a).sum() / a.sum() * a if a.sum() != 0 else 0 * a


FORMULAS = [(GradCAMpp, grad_cam_pp), (XGradCAM, x_grad_cam), (HiResCAM, lambda a, g: g * a)]


def by_channels(formula, activation, gradients):
    """The maps (K, h, w) by a loop over classes and channels."""
    return torch.stack([sum(formula(a, g) for a, g in zip(activation, gradient, strict=True)).clamp(min=0) for gradient in gradients])


@EVERY
@pytest.mark.parametrize(("kind", "formula"), FORMULAS, ids=[kind.__name__ for kind, _ in FORMULAS])
@pytest.mark.parametrize("stage", [-1, -2])
def test_gradient_methods_equal_plain_loops(name, norm, kind, formula, stage):
    net, images = exact(name, norm, SIZE)
    found = maps_of(kind(stage), net, images)
    for maps, image in zip(found, images, strict=True):
        close(maps, by_channels(formula, *of_stage(net, image, stage)))


@EVERY
def test_gradient_methods_equal_torchcam(name, norm):
    methods = pytest.importorskip("torchcam.methods", reason='pip install -e ".[test]"')
    net, images = exact(name, norm, SIZE)
    net.classifier.weight.data *= 100   # torchcam adds 1e-8 to denominators

    def theirs(kind, stage, **options):
        layer = net.backbone.stage_modules[stage]
        with kind(net, layer, reshape_transform=lambda output: net.backbone.as_map(output, SIZE), **options) as extractor:
            scores = net(images.clone().requires_grad_())
            maps = [extractor(index, scores, normalized=False, retain_graph=True)[0] for index in CLASSES]
        return torch.stack(maps, dim=1).detach()

    def close_to(method, expected):
        close(maps_of(method, net, images).float(), expected.float())   # to 1e-4, because of what they add to denominators
    for stage in (-1, -2):
        close_to(XGradCAM(stage), theirs(methods.XGradCAM, stage))
    # Their Grad-CAM++ never divides by its denominator, their Smooth Grad-CAM++ does. Both definitions of the denominator are the
    # same where the gradient is the same in all cells.
    smooth = theirs(methods.SmoothGradCAMpp, -1, num_samples=1, std=1e-12)
    close_to(GradCAMpp(-1), smooth)
    close_to(SmoothGradCAMpp(-1, "paper", 3, 0.0), smooth)


@EVERY
@pytest.mark.parametrize("stage", [-1, -2])
def test_gradient_methods_equal_pytorch_grad_cam(name, norm, stage):
    theirs = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam, which brings OpenCV")
    net, images = exact(name, norm, SIZE)
    net.classifier.weight.data *= 1e6   # they add to denominators
    activations, gradients = zip(*(of_stage(net, image, stage) for image in images), strict=True)
    for ours, kind in [(GradCAM(stage), "GradCAM"), (GradCAMpp(stage), "GradCAMPlusPlus"), (XGradCAM(stage), "XGradCAM"),
                       (HiResCAM(stage), "HiResCAM"), (LayerCAM([stage]), "LayerCAM")]:
        with getattr(theirs, kind)(net, [net.backbone.stage_modules[stage]]) as method:
            maps = [torch.from_numpy(method.get_cam_image(images, None, None, torch.stack(activations).numpy(), each.numpy(), False))
                    for each in torch.stack(gradients, dim=1)]
        close(maps_of(ours, net, images).float(), torch.stack(maps, dim=1).clamp(min=0).float())


def test_score_cam_equals_pytorch_grad_cam(monkeypatch):
    theirs = pytest.importorskip("pytorch_grad_cam", reason="pip install grad-cam, which brings OpenCV")
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", lambda size: torch.nn.Upsample(size, mode="bilinear"))   # theirs aligns corners
    net, images = network(), pair(40, 55)
    with torch.no_grad(), theirs.ScoreCAM(net, [net.backbone.stage_modules[-1]]) as method:
        features = net.features(images).numpy()
        maps = [torch.from_numpy(method.get_cam_image(images, None, [lambda output, index=index: output[index]] * 2, features, None))
                for index in CLASSES]
        close(maps_of(ScoreCAM("paper", 16), net, images), torch.stack(maps, dim=1).clamp(min=0))


@EVERY
def test_signed_cam_is_cam_before_its_relu(name, norm):
    net, images = network(name, norm), pair(*SIZE)
    with torch.no_grad():
        found, features = maps_of(SignedCAM(), net, images), net.features(images)
        assert found.min() < 0 and SignedCAM.range == (-1, 1) and maps_of(SignedCAM(), net, images, []).shape == (2, 0, *found.shape[2:])
        close(found.clamp(min=0), maps_of(CAM(), net, images))
        for k, index in enumerate(CLASSES):   # average pooling of the map is the logit
            torch.testing.assert_close(found[:, k].mean((1, 2)), net.head(features)[:, index])


@EVERY
@pytest.mark.parametrize("kind", [XGradCAM, HiResCAM])
def test_where_the_gradient_is_the_same_in_all_cells_they_are_grad_cam(name, norm, kind):
    net, images = exact(name, norm, SIZE)
    close(maps_of(kind(-1), net, images), maps_of(GradCAM(-1), net, images))


@EVERY
@pytest.mark.parametrize("stage", [-1, -2])
@pytest.mark.parametrize("definition", ["paper", "fcam"])
def test_smooth_grad_cam_pp_equals_a_plain_loop(name, norm, stage, definition):
    net, images = exact(name, norm, SIZE)
    method = SmoothGradCAMpp(stage, definition, 3, 0.3)
    found, noise_of = maps_of(method, net, images), list(noises(images, 3, 0.3, "smooth_gradcam_pp"))
    for i, image in enumerate(images):
        gradients = torch.stack([of_stage(net, image + noise[i], stage)[1] for noise in noise_of])   # (3, K, D, h, w)
        activation = of_stage(net, image, stage)[0]
        first, second, third = (gradients.pow(power).mean(0) for power in (1, 2, 3))
        inner = third * activation.sum((1, 2))[None, :, None, None]
        if definition == "fcam":
            inner, first = (third * activation).sum((2, 3), keepdim=True), gradients[-1]
            activation = of_stage(net, image + noise_of[-1][i], stage)[0]
        weights = (second / (2 * second + inner) * first.clamp(min=0)).nan_to_num(0).sum((2, 3))
        close(found[i], (weights[:, :, None, None] * activation).sum(1).clamp(min=0))


def test_the_noise_depends_on_the_image_alone():
    one, other = pair(20, 30), pair(20, 30, seed=1)
    first, second = noises(one, 2, 0.5, "user")
    assert first.shape == (2, 3, 20, 30) and next(noises(one, 1, 0.5, "user", 1)).shape == (2, 1, 20, 30)
    assert not torch.equal(first, second) and float(first[0].std()) == pytest.approx(0.5, rel=0.1)
    assert torch.equal(first[1], first[0].flip(-1))
    assert not torch.equal(first, next(noises(other, 1, 0.5, "user"))) and not torch.equal(first, next(noises(one, 1, 0.5, "another")))
    assert torch.equal(first, next(noises(one + 1e-6, 1, 0.5, "user")))   # the rounding of another device
    assert torch.equal(first, next(noises(one, 1, 0.5, "user")))


@EVERY
@pytest.mark.parametrize("size", [(33, 40), (180, 190)])
def test_eigen_cam_equals_a_singular_value_decomposition(name, norm, size):
    net, images = exact(name, norm, size)
    with torch.no_grad():
        features = net.features(images)
        if name != LITE0:   # which has 1280 channels
            assert (features.shape[1] > features[0, 0].numel()) == (size == (33, 40))   # both matrices of products
        expected = []
        for feature in features.double():
            cells = feature.flatten(1).T   # (n, D)
            projected = cells @ torch.linalg.svd(cells, full_matrices=False).Vh[0]
            expected.append((projected * projected.sum().sign()).clamp(min=0).unflatten(0, feature.shape[1:]))
        found = maps_of(EigenCAM(), net, images)
    assert torch.equal(found[:, 0], found[:, 1])
    close(found[:, :1].float(), torch.stack(expected)[:, None].float())


@EVERY
def test_backprop_equals_the_gradient_of_the_image(name, norm):
    net, images = exact(name, norm, SIZE)
    for found, image in zip(maps_of(Backprop(), net, images), images, strict=True):
        x = image.clone().requires_grad_()
        logits = net(x[None])[0]
        close(found, torch.stack([torch.autograd.grad(logits[k], x, retain_graph=True)[0].abs().amax(0) for k in CLASSES]))


@CONVOLUTIONAL
def test_guided_backprop_equals_hooks_on_the_relus(name, norm):
    net, images = exact(name, norm, SIZE)
    guided, plain = maps_of(GuidedBackprop(), net, images), maps_of(Backprop(), net, images)
    hooked = copy.deepcopy(net)
    relus = [module for module in hooked.modules() if isinstance(module, (torch.nn.ReLU, torch.nn.ReLU6))]
    for relu in relus:
        relu.inplace = False   # torch cannot hook the others
        relu.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0].clamp(min=0),))
    close(guided, maps_of(Backprop(), hooked, images))
    assert not torch.allclose(guided, plain) and torch.equal(maps_of(Backprop(), net, images), plain)


@CONVOLUTIONAL
@pytest.mark.parametrize("stage", [-1, 1])
def test_guided_grad_cam_is_a_product(name, norm, stage):
    net, images = exact(name, norm, SIZE)
    coarse, stride = maps_of(GradCAM(stage), net, images), {-1: 16, 1: net.backbone.strides[1]}[stage]
    large = F.interpolate(coarse, scale_factor=stride, mode="bilinear", align_corners=False)[..., :SIZE[0], :SIZE[1]]
    close(maps_of(GuidedGradCAM(stage), net, images), maps_of(GuidedBackprop(), net, images) * large)


@pytest.mark.parametrize(("kind", "name", "norm"), [
    *((kind, *network) for kind in ("ScoreCAM", "SSCAM", "ISCAM") for network in (NETWORKS[0], NETWORKS[2])),
    pytest.param("ScoreCAM", *NETWORKS[1], marks=pytest.mark.slow)])   # it has 1280 channels; the variants differ in the masks alone
def test_score_cam_and_its_variants_equal_torchcam(name, norm, kind, monkeypatch):
    methods = pytest.importorskip("torchcam.methods", reason='pip install -e ".[test]"')
    method, options, seen = {"ScoreCAM": (ScoreCAM("paper", 64), {}), "SSCAM": (SSCAM("paper", 64, 2, 0.5), {"num_samples": 2, "std": 0.5}),
                             "ISCAM": (ISCAM("paper", 64, 3), {"num_samples": 3})}[kind], {}, []

    class Theirs(getattr(methods, kind)):
        def _upsample(self, activation):
            return self._normalize(super()._upsample(activation), 2)   # the paper scales the enlarged activations

        def sample(self, shape):
            """Our noise, which is the same for all channels of a copy; they draw it for each."""
            seen.append(shape)
            return noise[len(seen) - 1][:, :1].expand(shape)
    (method, options), net, images = method, network(name, norm), pair(24, 33)
    noise, layer = list(noises(images, 2, 0.5, "sscam", 1)), net.backbone.stage_modules[-1]
    with torch.no_grad():
        expected = []
        for index in CLASSES[:2]:
            seen.clear()
            with Theirs(net, layer, batch_size=64, reshape_transform=lambda output: net.backbone.as_map(output, (24, 33)), **options) as extractor:
                monkeypatch.setattr(extractor, "_distrib", SimpleNamespace(sample=extractor.sample), raising=False)
                expected.append(extractor(index, net(images), normalized=False)[0])
        assert len(seen) == (2 if kind == "SSCAM" else 0)
        close(maps_of(method, net, images, CLASSES[:2]), torch.stack(expected, dim=1))


def scaled(x):
    return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else torch.zeros_like(x)


@pytest.mark.parametrize("method", [ScoreCAM("paper", 16), SSCAM("paper", 16, 3, 2.0), ISCAM("paper", 16, 3), ScoreCAM("fcam", 16),
                                    SSCAM("fcam", 16, 3, 2.0), ISCAM("fcam", 16, 3)], ids=lambda method: f"{method.method}_{method.definition}")
def test_score_cam_and_its_variants_equal_plain_loops(method):
    net, images, fcam = network(), pair(40, 55), method.definition == "fcam"
    noise = list(noises(images, 3, 2.0, "sscam", 3 if fcam else 1)) if isinstance(method, SSCAM) else [torch.zeros(2, 1, 1, 1)] * 3
    factors = [1 / 3, 1 / 3 + 2 / 3, 1 / 3 + 2 / 3 + 1] if isinstance(method, ISCAM) else [1.0]
    factors = factors if isinstance(method, ISCAM) else factors * (3 if isinstance(method, SSCAM) else 1)
    with torch.no_grad():
        features, found = net.features(images), maps_of(method, net, images)
        for i, (image, feature, maps) in enumerate(zip(images, features, found, strict=True)):
            baseline, rows = net(torch.zeros_like(image)[None])[0], []
            if fcam:
                feature = torch.stack([scaled(channel) for channel in feature])
            for channel in feature:
                mask = F.interpolate(channel[None, None], image.shape[1:], mode="bilinear", align_corners=False)
                mask, row = mask if fcam else scaled(mask), torch.zeros(5)
                for factor, each in zip(factors, noise, strict=False):
                    logits = net((factor * mask + each[i]) * image)[0]
                    row += logits.softmax(0) if fcam else logits - baseline
                rows.append(row / len(factors))
            weights = torch.stack(rows) if fcam else torch.stack(rows).softmax(0)   # (D, C)
            expected = torch.stack([sum(w * a for w, a in zip(weights[:, k], feature, strict=True)) for k in CLASSES])
            close(maps, expected.clamp(min=0))


def test_variants_of_score_cam_without_noise_or_with_one_copy_are_score_cam():
    net, images = network(), pair(40, 55)
    with torch.no_grad():
        for definition in ("paper", "fcam"):
            expected = maps_of(ScoreCAM(definition, 16), net, images)
            close(maps_of(SSCAM(definition, 16, 2, 0.0), net, images), expected)
            close(maps_of(ISCAM(definition, 16, 1), net, images), expected)


VITS = pytest.mark.parametrize("name", ["test_vit", VIT, "eva02_tiny_patch14_224"])   # the last has rotary positions and its own blocks


def attended(net, image):
    """The attention (heads, n, n) of each block, as a leaf, and the tokens (n, D) that the block makes of it, by timm's layers."""
    net, rows = copy.deepcopy(net), []
    for block in net.backbone.net.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: rows.append([output.detach().requires_grad_()]) or rows[-1][0])
        block.register_forward_hook(lambda module, args, output: rows[-1].append(output))
    net.features(image[None].clone().requires_grad_())
    return net, rows


@VITS
@pytest.mark.parametrize("first", [0, -1, 2])
def test_legrad_equals_a_plain_loop(name, first):
    net, images = exact(name, "frozen_batch", SIZE)
    for image, maps in zip(images, maps_of(LeGrad(first), net, images), strict=True):
        hooked, rows = attended(net, image)
        expected = torch.zeros_like(maps)
        for attention, tokens in rows[first:]:
            layers = hooked.backbone.net
            cells = layers.fc_norm(layers.norm(tokens))[0, -maps[0].numel():]   # after the class token; one norm is an identity
            logits = cells.mean(0) @ net.classifier.weight[:, :, 0, 0].T
            for k, index in enumerate(CLASSES):
                gradient = torch.autograd.grad(logits[index], attention, retain_graph=True)[0][0]   # (heads, n, n)
                mean = sum(query.clamp(min=0) for head in gradient for query in head) / (len(gradient) * len(gradient[0]))
                expected[k] += mean[-maps[0].numel():].view_as(maps[0])
        close(maps, expected)


@VITS
def test_attention_rollout_equals_a_plain_loop(name):
    net, images = exact(name, "frozen_batch", SIZE)
    for image, maps in zip(images, maps_of(AttentionRollout(), net, images), strict=True):
        rollout, cells = 1, maps[0].numel()
        for attention, _ in attended(net, image)[1]:
            mean = attention.detach()[0].mean(0)
            step = mean + torch.eye(len(mean), dtype=mean.dtype)
            step = step / step.sum(1, keepdim=True)
            rollout = step if isinstance(rollout, int) else step @ rollout
        close(maps, rollout[-cells:].mean(0)[-cells:].view_as(maps[0]).expand_as(maps))


def test_cells_that_only_pad_the_image_are_left_out():
    net, images = network("test_vit", "frozen_batch"), pair(33, 50)
    for method in (LeGrad(0), AttentionRollout()):
        assert maps_of(method, net, images).shape == (2, 3, *net.features(images).shape[2:])


@EVERY
@pytest.mark.parametrize(("size", "stride"), [(24, 16), (9, 20)])
def test_occlusion_equals_a_plain_loop(name, norm, size, stride):
    net, images = network(name, norm), pair(*SIZE)
    with torch.no_grad():
        found = maps_of(Occlusion(size, stride, 7), net, images)
        assert found.shape[2:] == (-(-SIZE[0] // stride), -(-SIZE[1] // stride))
        for image, maps in zip(images, found, strict=True):
            expected = torch.zeros_like(maps)
            for row in range(maps.shape[1]):
                for column in range(maps.shape[2]):
                    occluded = image.clone()
                    top, left = (cell * stride + (stride - size) // 2 for cell in (row, column))
                    occluded[:, max(0, top):max(0, top + size), max(0, left):max(0, left + size)] = 0
                    expected[:, row, column] = (net(image[None]) - net(occluded[None]))[0, CLASSES].clamp(min=0)
            close(maps, expected)


@pytest.mark.parametrize("kind", [lambda batch: ScoreCAM("paper", batch), lambda batch: SSCAM("paper", batch, 2, 2.0),
                                  lambda batch: ISCAM("paper", batch, 2), lambda batch: Occlusion(24, 16, batch)])
def test_batches_of_any_size_give_the_same_maps(kind):
    net, images = network(), pair(40, 55)
    with torch.no_grad():
        expected = maps_of(kind(16), net, images)
        for batch in (1, 7, 1000):
            torch.testing.assert_close(maps_of(kind(batch), net, images), expected, rtol=0, atol=1e-5 * float(expected.max()))
        seen = []
        kind(7).maps(net, lambda x: seen.append(len(x)) or net.features(x), images, CLASSES)
    assert max(seen) == 7 and "batch_size" not in kind(7).facts


@ALL
@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_classes_and_sizes(method, size):
    """No class, one or several give the same maps, finite and not negative, and without a graph. A repetition gives the same bits."""
    net, images = network_for(method), pair(*size)
    with torch.set_grad_enabled(method.gradients):
        none, some, again = maps_of(method, net, images, []), maps_of(method, net, images), maps_of(method, net, images)
        assert none.shape == (2, 0, *some.shape[2:]) and some.shape[:2] == (2, 3) and none.dtype == some.dtype == torch.float32
        assert torch.equal(some, again) and some.isfinite().all() and some.min() >= 0 and not some.requires_grad
        for k, index in enumerate(CLASSES):
            torch.testing.assert_close(maps_of(method, net, images, [index])[:, 0], some[:, k], rtol=0, atol=1e-6 * float(some.max()))
    assert size == (1, 1) or (some.amax((2, 3)) > 0).any()


@ALL
def test_a_callers_modes_change_nothing(method):
    net, images = network_for(method), pair(33, 50)
    expected = maps_of(method, net, images).detach()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.testing.assert_close(maps_of(method, net, images).detach().clone(), expected, rtol=0, atol=1e-6 * float(expected.max()))


@ALL
def test_nothing_outlives_an_image(method):
    net = copy.deepcopy(network_for(method)).requires_grad_(False)
    with torch.inference_mode(not method.gradients), torch.set_grad_enabled(method.gradients):
        maps_of(method, net, pair(32, 32), [1])   # what is made once
        gc.collect()
        gc.disable()                              # a reference cycle would keep tensors until the next collection
        try:
            before = live(net)
            for seed in range(5):
                maps_of(method, net, pair(32, 32, seed), CLASSES[:2])
            assert live(net) == before
        finally:
            gc.enable()
    assert all(value.grad is None for value in net.parameters())


@ALL
@pytest.mark.parametrize("name", ["tiny", "test_vit"])
def test_shapes_are_known_without_data(method, name):
    """As a plan asks for them."""
    with torch.device("meta"):
        planned = new_classifier(new_backbone(name), 5).eval().requires_grad_(False)
    if name == "test_vit" and method.method.startswith("guided") or name == "tiny" and network_for(method) is not network():
        return
    method.check(planned)
    shape = method.maps(planned, planned.features, torch.empty(2, 3, *SIZE, device="meta"), CLASSES).shape
    fast = replace(method, batch_size=256) if isinstance(method, ScoreCAM) else method
    with torch.set_grad_enabled(method.gradients):
        assert shape == maps_of(fast, network(name), pair(*SIZE)).shape


@pytest.mark.parametrize("method", [GradCAMpp(-1), XGradCAM(-1), HiResCAM(-1)], ids=["gradcam_pp", "xgradcam", "hirescam"])
def test_dead_and_constant_channels_have_finite_weights(method):
    a, g = torch.rand(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    zero, one = torch.zeros(2, 1, 4, 5), torch.ones(2, 1, 4, 5)
    expected = method.map_of(a, g)
    torch.testing.assert_close(method.map_of(torch.cat([a, zero, one], 1), torch.cat([g, one, zero], 1)), expected)   # dead; no slope
    assert method.map_of(-one, 2 * one / 20 * one).isfinite().all()   # the denominator 2 + g sum A of Grad-CAM++ is 0
    assert method.map_of(torch.cat([one, -one], 3), torch.cat([one, one], 3)).isfinite().all()   # a sum of 0


def test_score_cam_of_dead_and_constant_channels():
    """A dead channel adds nothing, a constant one only its constant: its mask is 0 although rounding enlarges it to no constant."""
    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    seen = []

    def features_of(x):
        seen.append(x)
        pooled = F.avg_pool2d(x, 8).abs()[:, :2]
        return torch.cat([pooled, torch.zeros_like(pooled[:, :1]), torch.full_like(pooled[:, :1], 0.3)], 1)
    net, images = SimpleNamespace(head=lambda features: features.mean((2, 3)) @ weights.T), pair(40, 56)
    found = ScoreCAM("paper", 1).maps(net, features_of, images, [0])
    assert found.isfinite().all() and all(not seen[i].any() for i in (3, 4, 7, 8)) and seen[1].any() and seen[2].any()


@ALL
def test_no_scale_outweighs_the_others(method):
    """The mean value of the maps of a smooth image changes little with its size."""
    net = copy.deepcopy(network_for(method))
    net.classifier.weight.data.abs_()
    small = torch.randint(0, 256, (1, 3, 5, 8), generator=torch.Generator().manual_seed(0)).float()
    image = F.interpolate(small, (96, 160), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0).numpy().astype(np.uint8)
    means = [float(each.mean()) for each in multi_scale_maps(method, net, net.features, image, CLASSES, (0.5, 1.0, 2.0))]
    assert max(means) < 2.5 * min(means), means


def test_maps_at_full_resolution_come_back_as_they_were():
    net, image = network(), np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    maps = multi_scale_maps(Backprop(), net, net.features, image, CLASSES, [1.0])
    full = rebuild(pack(maps)[0], 37, 50, [(37, 50)], "full", pad=pad_of([(37, 50)], 37, 50, (16, 4), [1.0]))
    torch.testing.assert_close(full, maps[0] / maps[0].amax((1, 2), keepdim=True), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ScoreCAM("paper", 0), "cam.batch_size=0 is not possible: expected at least 1"),
    (lambda: ScoreCAM("ours", 1), "cam.definition='ours' is not possible: expected paper or fcam"),
    (lambda: SSCAM("paper", 1, 0, 1.0), "cam.samples=0 is not possible: expected at least 1"),
    (lambda: SSCAM("paper", 1, 1, -1.0), "cam.std=-1.0 is not possible: expected at least 0"),
    (lambda: ISCAM("paper", 1, 0), "cam.samples=0 is not possible: expected at least 1"),
    (lambda: LeGrad(3).check(network()), "LeGrad needs a transformer whose attention is between all cells, tiny is none. Choose one that "
     "is, such as backbone=timm backbone.network=deit_tiny_patch16_224, or another method, such as cam=gradcam"),
    (lambda: AttentionRollout().check(network("swin_tiny_patch4_window7_224", "frozen_batch")), "Attention rollout needs a transformer "
     "whose attention is between all cells, swin_tiny_patch4_window7_224 is none. Choose one that is, such as backbone=timm "
     "backbone.network=deit_tiny_patch16_224, or another method, such as cam=gradcam"),
    (lambda: LeGrad(12).check(network(VIT, "frozen_batch")), "cam.first_block=12 does not exist: vit_tiny_patch16_224 has 12 blocks, "
     "expected a number from -12 to 11"),
    (lambda: Occlusion(0, 16, 16), "cam.size=0 is not possible: expected at least 1"),
    (lambda: Occlusion(32, -1, 16), "cam.stride=-1 is not possible: expected at least 1"),
    (lambda: SmoothGradCAMpp(-1, "paper", 0, 0.3), "cam.samples=0 is not possible: expected at least 1"),
    (lambda: SmoothGradCAMpp(-1, "paper", 4, -0.1), "cam.std=-0.1 is not possible: expected at least 0"),
    (lambda: GuidedBackprop().check(network(VIT, "frozen_batch")), "cam=guided_backprop needs a network with ReLUs, vit_tiny_patch16_224 "
     "has none. Choose one that has, such as backbone=resnet50, or another method, such as cam=backprop"),
    (lambda: GuidedGradCAM(9).check(network()), "stage 9 does not exist: tiny has 5 stages, expected a number from -5 to 4"),
])
def test_what_is_not_possible_is_refused(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message
