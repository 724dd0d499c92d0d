"""A new backbone or classifier is one file in its package and one in conf/. Nothing else knows of it."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT, copied
from tests.pipeline.test_plug_in import call, copy_code, plans
from wsss.networks.facts import read_metadata

FILES = {
    "wsss/networks/backbones/pyramid.py": '''
        """Two convolutions."""

        from dataclasses import dataclass

        from wsss.data.images import IMAGENET
        from wsss.networks.backbones.method import BackboneMethod


        @dataclass
        class PyramidMethod(BackboneMethod):
            width: int

            def build(self, norm):
                from torch import nn

                from wsss.networks.backbones.backbone import StagedBackbone

                fine = nn.Sequential(nn.Conv2d(3, self.width, 7, stride=4, padding=3), nn.ReLU())
                coarse = nn.Sequential(nn.Conv2d(self.width, 2 * self.width, 3, stride=2, padding=1), nn.ReLU())
                return StagedBackbone([fine, coarse], channels=(self.width, 2 * self.width), strides=(4, 8), normalisation=IMAGENET)


        Method = PyramidMethod
        ''',
    "wsss/classifiers/mixed.py": '''
        """A head of two layers, which is not linear in the features; every second sample is mixed with another of its batch."""

        from dataclasses import dataclass

        from wsss.classifiers.plain import Plain


        @dataclass
        class Mixed(Plain):
            hidden: int

            def build(self, backbone, n_classes):
                from torch import nn

                from wsss.classifiers.classifier import Classifier

                class Net(Classifier):
                    def head(self, features):
                        return self.layers(features.mean((2, 3)))

                net = Net(backbone)
                net.layers = nn.Sequential(nn.Linear(backbone.feature_channels, self.hidden), nn.Dropout(), nn.ReLU(),
                                           nn.Linear(self.hidden, n_classes))
                return net

            def members(self, image_id, batch, labels, draws):
                return image_id, *draws.choice(batch, int(draws.integers(2)))

            def mix(self, samples, draws):
                return tuple(sum(parts) / len(parts) for parts in zip(*samples))


        Method = Mixed
        ''',
    "conf/backbone/pyramid.yaml": "# @package backbone\ndefaults: [/schema/backbone@_here_: pyramid, _self_]\nwidth: 8\npretrained: false\nweights: null\n",
    "conf/classifier/mixed.yaml": "# @package classifier\ndefaults: [/schema/classifier@_here_: mixed, _self_]\nhidden: 16\nloss: soft_margin\n",
    "wsss/networks/backbones/broken.py": "import nowhere\n\nMethod = nowhere.Method\n",
    "conf/backbone/broken.yaml": "# @package backbone\ndefaults: [/schema/backbone@_here_: broken, _self_]\n",
    "wsss/classifiers/broken.py": "import nowhere\n\nMethod = nowhere.Method\n",
    "conf/classifier/broken.yaml": "# @package classifier\ndefaults: [/schema/classifier@_here_: broken, _self_]\n",
}
CHOSEN = {"backbone": ("backbone=pyramid",), "classifier": ("classifier=mixed", "cam=gradcam", "seed_maps=make_cam",
                                                            "steps=[train_cam,make_cam,eval_cam]")}


@pytest.fixture(scope="module")
def tree(made_once, smoke_outputs):
    """A copy of the tree with the new files; `outputs` has the finished runs `backbone` and `classifier`, each made with one of them.
    Tests only read it."""
    def make(tree: Path) -> None:
        copy_code(ROOT, tree)
        for name, content in FILES.items():
            assert not (tree / name).exists()
            (tree / name).write_text(textwrap.dedent(content).lstrip("\n"))
        copied(smoke_outputs / ".data", tree / "outputs/.data")
        for family, words in CHOSEN.items():
            (tree / f"{family}.txt").write_text(call(tree, f"name={family}", *words, "report.write=true", chosen=()))
    return made_once("networks", make)


def test_every_step_runs_with_a_new_backbone(tree):
    run = tree / "outputs/backbone"
    said, scores = (tree / "backbone.txt").read_text(), json.loads((run / "summary.json").read_text())["scores"]
    assert "pyramid from scratch" in said
    assert list(scores) == ["make_cam", "make_lpcam_fg_only", "make_lpcam", "make_sem_seg_labels"]
    facts = read_metadata(run / "train_irn/weights.safetensors")
    assert facts["backbone"] == {"method": "pyramid", "width": 8, "norm": "group"}
    line = json.loads((run / "make_cam/index.jsonl").read_text().splitlines()[0])
    assert line["pad"] == 8 and line["grids"][0] == [-(-line["height"] // 8), -(-line["width"] // 8)]
    assert "<dt>backbone</dt><dd>pyramid, pretrained=false, weights=null, width=8</dd>" in (run / "report/report.html").read_text()


def test_a_classifier_whose_head_is_not_linear_has_gradient_maps_and_no_lpcam(tree):
    run = tree / "outputs/classifier"
    assert list(json.loads((run / "summary.json").read_text())["scores"]) == ["make_cam"]
    facts = read_metadata(run / "train_cam/weights.safetensors")
    assert facts["classifier"] == {"method": "mixed", "hidden": 16, "loss": "soft_margin"}
    assert "<dt>classifier</dt><dd>mixed, loss=soft_margin, hidden=16</dd>" in (run / "report/report.html").read_text()
    lpcam, cam = plans(tree, ("classifier=mixed", "cam=gradcam"), ("classifier=mixed",), chosen=())
    assert lpcam.startswith("make_lpcam needs a classifier that is linear in its features, Net is not") and cam.startswith("cam=cam does not fit the network: CAM needs a classifier that is linear")


@pytest.mark.parametrize(("family", "change", "why"), [("backbone", "backbone.width=9", "backbone.width: 8 -> 9"),
                                                       ("classifier", "classifier.hidden=17", "classifier.hidden: 16 -> 17")])
def test_settings_count_and_an_up_to_date_run_is_skipped(tree, family, change, why):
    run = (f"name={family}", *CHOSEN[family], "replace=true")
    same, other = plans(tree, run, (*run, change), chosen=())
    assert {step[0] for step in same.values()} == {"skip"}
    assert other["train_cam"][0] == "re-run" and other["train_cam"][2] == why


def test_a_lost_training_is_continued_from_its_last_state_with_the_same_bits(tree, tmp_path):
    """Also with dropout, and with samples that are mixed."""
    copied(tree / "outputs", tmp_path)
    lost = tmp_path / "classifier/train_cam/weights.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    run = (f"outputs={tmp_path}", "name=classifier", *CHOSEN["classifier"])
    assert plans(tree, run, chosen=())[0]["train_cam"][0] == "continue"
    call(tree, *run, chosen=())
    assert lost.read_bytes() == content


@pytest.mark.parametrize(("family", "package", "near", "names", "keys"), [
    ("backbone", "wsss/networks/backbones", "pyramid", ".*broken, .*pyramid, resnet101, .*", "pretrained, weights, width"),
    ("classifier", "wsss/classifiers", "mixed", "broken, edam, gap, gap_softmax, gap_softmax_dropout, gmp, mctformer_v1, mctformer_v2, mixed, plain, recam, recam_coco, recam_first", "loss, hidden")])
def test_misspellings_and_a_file_that_does_not_import(tree, family, package, near, names, keys):
    wrong = near[:-1]
    name, key, broken, method, whole = plans(tree, (f"{family}={wrong}",), (f"{family}={near}", f"{family}.colour=1"), (f"{family}=broken",),
                                             (f"{family}={near}", f"{family}.method=plain"), ("to_step=train_cam",), chosen=())
    assert re.fullmatch(rf"{family}={wrong}: there is no such option; did you mean '{near}'\? \(allowed: {names}\)", name)
    assert key == f"{family}.colour: there is no such key (allowed here: {keys})"
    assert broken.startswith(f"{family}: {tree / package}/broken.py cannot be imported (ModuleNotFoundError: No module named 'nowhere')")
    assert method.startswith(f"{family}.method='plain' is not possible: expected {near}; choose the method by {family}=NAME")
    assert whole["train_cam"][0] == "run"   # no other method is broken
