"""Methods are found by their files; what a method makes of an image at every scale."""

import dataclasses
import gc
import re
import weakref

import numpy as np
import pytest
import torch

from tests.networks import new_backbone, new_classifier
from tests.test_house import ROOT
from wsss import families
from wsss.cams import SCALES
from wsss.cams.cam import CAM, multi_scale_cam, multi_scale_features
from wsss.cams.method import CamMethod, multi_scale_maps
from wsss.errors import ArgumentError, ConfigError
from wsss.families import BaseMethod, found, load_method, method_files

IMAGE = np.random.default_rng(0).integers(0, 256, (33, 50, 3), dtype=np.uint8)


@pytest.fixture
def classifier():
    return new_classifier(new_backbone("tiny", "group"), 4).eval().requires_grad_(False)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`package(name=text)` makes the files of a family `test`."""
    name = f"family_{tmp_path.name}"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(families.FAMILIES, "test", name)

    def make(**files: str) -> None:
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(text)
    return make


GOOD = "from wsss.families import BaseMethod\nclass Good(BaseMethod): ...\nMethod = Good\n"


def test_a_module_with_a_method_is_found_without_its_import(package):
    package(good=GOOD, helper="import nowhere\nclass Method: ...\n", broken="import nowhere\nMethod = nowhere.Method\n")
    assert list(method_files("test")) == ["broken", "good"]
    assert list(found("test")) == ["good"] and load_method("test", "good")().method == "good"


@pytest.mark.parametrize(("file", "message"), [
    ("import nowhere\nMethod = nowhere.Method", r"test: .*/bad.py cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\)"),
    ("Method = (", r"test: .*/bad.py cannot be imported \(SyntaxError: "),
    ("Method = print", r"test: Method in .*/bad.py is <built-in function print>, expected a dataclass of that file"),
    ("from wsss.cams.method import CamMethod as Method\nMethod = Method", "expected a dataclass of that file with all functions"),
    ("from wsss.cams.cam import CAM\nMethod = CAM", "expected a dataclass of that file"),
    ("a = 1", r"test: there is no method 'bad' \(in family_.*: good\)")])
def test_a_file_that_cannot_be_used_is_named(package, file, message):
    package(good=GOOD, bad=file)
    with pytest.raises(ConfigError, match=message):
        load_method("test", "bad")
    assert list(found("test")) == ["good"]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_method_has_a_file_in_conf_and_no_default(family):
    """Its values and their sources are there."""
    methods = found(family)
    named = {line.split(":")[-1].strip() for path in (ROOT / "conf" / family).glob("*.yaml") for line in path.read_text().splitlines()
             if re.search(rf"/schema/{family}@(_here_|{family}):", line)}
    assert list(methods) == list(method_files(family)) and named == methods.keys()
    for method in methods.values():
        assert issubclass(method, BaseMethod)
        assert all(field.default is field.default_factory is dataclasses.MISSING for field in dataclasses.fields(method)), method


@pytest.mark.parametrize("classes", [[], [2], [0, 3]])
def test_the_method_cam_is_the_public_function(classifier, classes):
    expected = multi_scale_cam(classifier.features, IMAGE, classifier.classifier.weight[classes].flatten(1))
    maps = multi_scale_maps(CAM(), classifier, classifier.features, IMAGE, classes, SCALES)
    assert len(maps) == len(SCALES) and all(torch.equal(one, other) for one, other in zip(maps, expected))


class Recorded(CamMethod):
    """Gradients at the features, and what `maps` was called with."""

    gradients = True

    def maps(self, net, features_of, pair, classes):
        features = features_of(pair).detach().requires_grad_()
        self.graph = weakref.ref(features)
        self.modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), pair.requires_grad, pair.is_inference()
        scores = net.classifier(features.mean((2, 3), keepdim=True)).flatten(1)   # (2, C)
        return torch.stack([(features * torch.autograd.grad(scores[:, index].sum(), features, retain_graph=True)[0]).sum(1)
                            for index in classes], dim=1)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_method_with_gradients_has_them_whatever_the_caller_does(classifier, outer):
    method = Recorded()
    with outer():
        maps = multi_scale_maps(method, classifier, classifier.features, IMAGE, [1, 2], (1.0, 0.5))
    assert method.modes == (False, True, False, False) and not any(each.requires_grad for each in maps)
    gc.collect()
    assert method.graph() is None   # nor anything that it leads to
    for summed, feature in zip(maps, multi_scale_features(classifier.features, IMAGE, (1.0, 0.5)), strict=True):
        # of a linear head features times gradients are the maps before the ReLU, over the number of cells
        raw = torch.einsum("nd,bdhw->bnhw", classifier.classifier.weight[[1, 2]].flatten(1), feature) / feature[0, 0].numel()
        torch.testing.assert_close(summed, raw[0] + raw[1].flip(-1))


def test_maps_of_another_shape_are_refused(classifier):
    class Wrong(CamMethod):
        def maps(self, net, features_of, pair, classes):
            return torch.zeros(2, 3, 4)
    with pytest.raises(ArgumentError, match=r"maps returned \(2, 3, 4\), expected \(2, 1, h, w\): the maps of 1 classes"):
        multi_scale_maps(Wrong(), classifier, classifier.features, IMAGE, [0], (1.0,))
