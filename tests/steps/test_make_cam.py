"""make_cam runs the method that is chosen as the method needs it."""

import math
from dataclasses import replace

import pytest
import torch

from pipeline import Pipeline
from pipeline.order import BY_NAME
from steps.runtime.artifacts import Maps
from steps.runtime.networks import load_classifier
from wsss.cams.method import CamMethod
from wsss.data.images import normalise
from wsss.errors import ConfigError


class Watching(CamMethod):
    """Zeros; keeps what the network and its features were computed in."""

    def __init__(self) -> None:
        self.seen: set[tuple] = set()

    def maps(self, net, features_of, pair, classes):
        inside = []
        hook = net.backbone.register_forward_hook(lambda *_: inside.append(torch.is_autocast_enabled("cpu")))
        features = features_of(pair)
        hook.remove()
        weights = {layer.weight.dtype for layer in net.backbone.modules() if type(layer) is torch.nn.Conv2d}
        self.seen.add((*inside, *weights, features.dtype, torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return features.new_zeros(2, len(classes), *features.shape[2:])


class Ramp(CamMethod):
    """The distance of a cell's centre from the top of the image, on the grid of a stride."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def maps(self, net, features_of, pair, classes):
        height, width = (math.ceil(side / self.stride) for side in pair.shape[2:])
        return ((torch.arange(height) + 0.5) * self.stride)[:, None].expand(2, len(classes), height, width)


@pytest.mark.parametrize("stride", [16, 8, 4, 1])
def test_maps_on_the_grid_of_any_stage_keep_their_place(smoke, outputs, tmp_path, stride):
    context = smoke().recorded(outputs / "smoke").context("make_cam")
    (folder := tmp_path / "make_cam").mkdir()
    image_id = next(each for each in context.ids if context.dataset.working_size(each)[0] % 16)
    context = replace(context, folder=folder, lists={"ids": (image_id,)}, methods={"cam": Ramp(stride)},
                      settings=replace(context.settings, scales=[1.0]))
    BY_NAME["make_cam"].run(context)
    full = Maps(folder).at(image_id, "full")[0, :, 0]
    inside = torch.arange(8, len(full) - 16)   # beyond the centre of the last cell a map is constant
    torch.testing.assert_close(full[inside] / full[8], (inside + 0.5) / 8.5, rtol=2e-3, atol=0)


@pytest.mark.parametrize(("gradients", "seen"), [
    (True, (False, torch.float32, torch.float32, False, True)), (False, (True, torch.bfloat16, torch.float32, True, False))])
def test_a_method_with_gradients_works_in_float32(smoke, outputs, tmp_path, monkeypatch, gradients, seen):
    monkeypatch.setattr(Watching, "gradients", gradients)
    context = smoke().recorded(outputs / "smoke").context("make_cam")
    (folder := tmp_path / "make_cam").mkdir()
    context = replace(context, folder=folder, lists={"ids": context.ids[:2]}, methods={"cam": (method := Watching())},
                      runtime=replace(context.runtime, precision="bf16"))
    assert BY_NAME["make_cam"].run(context) == {"title": "test_make_cam"}   # of its module
    assert method.seen == {seen}
    maps = Maps(folder)
    assert set(maps.index) == set(context.ids) and not any(maps.packed(image_id).any() for image_id in context.ids)


def test_a_stage_that_the_backbone_lacks_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="^cam=gradcam does not fit the network: stage 5 does not exist: tiny has 5 stages"):
        Pipeline.compose("experiment=smoke", "backbone=tiny", "cam=gradcam", "cam.stage=5").plan()


class Ones(CamMethod):
    """A constant map of each crop."""

    def maps(self, net, features_of, pair, classes):
        assert pair.shape == (2, 3, 224, 224)
        return pair.new_ones(2, len(classes), 14, 14)


def test_maps_of_ten_crops_cover_the_image(smoke, outputs, tmp_path):
    """The full map is the share of the crops that cover a pixel."""
    context = smoke().recorded(outputs / "smoke").context("make_cam")
    (folder := tmp_path / "make_cam").mkdir()
    context = replace(context, folder=folder, lists={"ids": context.ids[:1]}, methods={"cam": Ones()},
                      settings=replace(context.settings, scales=[1.0], crops=10))
    BY_NAME["make_cam"].run(context)
    maps, image_id = Maps(folder), context.ids[0]
    height, width = context.dataset.working_size(image_id)
    full = maps.at(image_id, "full")[0]
    assert maps.facts(image_id)["grids"] == [[256, 256]] and maps.facts(image_id)["pad"] == 1 and full.shape == (height, width)
    assert full[height // 2, width // 2] == 1 and full[0, 0] == pytest.approx(0.2, abs=1e-3)
    assert full[0, width // 2] == pytest.approx(0.4, abs=1e-3)


def test_crops_are_part_of_the_identity_only_if_there_are_some(smoke):
    def identity(*words):
        pipeline = smoke("to_step=make_cam", "make_cam.scales=[1.0]", "replace=true", *words)
        return next(step for step in pipeline.plan() if step.name == "make_cam").identity["make_cam"]
    assert "crops" not in identity() and identity("make_cam.crops=10")["crops"] == 10


@pytest.mark.parametrize(("words", "message"), [
    (["make_cam.crops=5"], "make_cam.crops=5 is not possible: expected 0 .whole images. or 10"),
    (["make_cam.crops=10"], r"make_cam.scales=\[1.0, 0.5, 1.5, 2.0\] is not possible: expected \[1.0\] with make_cam.crops=10")])
def test_impossible_crops_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline.compose("experiment=smoke", *words)


class Twice(Ramp):
    """Asks for the features of another image of the same size after those of the image."""

    def maps(self, net, features_of, pair, classes):
        features_of(pair), features_of(torch.zeros_like(pair))
        return super().maps(net, features_of, pair, classes)


@pytest.mark.parametrize(("scales", "cam", "forwards"), [
    ([1.0, 0.5], "cam=cam", 2), ([0.5, 2.0], "cam=cam", 3), ([1.0, 0.5], Twice(16), 5), ([1.0, 0.5], Ramp(16), 1)])
def test_the_predicted_classes_are_those_of_the_image_alone(smoke, outputs, tmp_path, monkeypatch, scales, cam, forwards):
    context = smoke().recorded(outputs / "smoke").context("make_cam")
    (folder := tmp_path / "make_cam").mkdir()
    context = replace(context, folder=folder, lists={"ids": context.ids[:1]}, settings=replace(context.settings, scales=scales),
                      methods=context.methods if cam == "cam=cam" else {"cam": cam})
    classifier, batches = load_classifier(context), []
    classifier.backbone.register_forward_hook(lambda _, inputs, output: batches.append(len(inputs[0])))
    monkeypatch.setattr("steps.runtime.networks.load_classifier", lambda *_: classifier)
    BY_NAME["make_cam"].run(context)
    assert len(batches) == forwards
    image = normalise(context.dataset.image(context.ids[0]), "cpu", classifier.backbone.normalisation)[None]
    with torch.inference_mode():
        expected = classifier(image)[0].sort(descending=True)
    predicted = Maps(folder).facts(context.ids[0])["predicted"]
    assert [index for index, _ in predicted] == expected.indices[:5].tolist()
    assert [logit for _, logit in predicted] == pytest.approx(expected.values[:5].tolist(), rel=1e-4, abs=1e-5)
