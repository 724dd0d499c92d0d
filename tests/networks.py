"""Networks of the tests, with random weights that depend only on the seed."""

from wsss.classifiers.classifier import Classifier
from wsss.classifiers.plain import Plain
from wsss.families import from_facts
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.method import BackboneMethod

LITE0 = "tf_efficientnet_lite0"


def backbone_method(name: str, weights: str | None = None) -> BackboneMethod:
    """The method of a ResNet ("resnet18", "tiny", ...) or of a network of timm."""
    layers = {"method": "resnet", "depth": name} if name == "tiny" or name.startswith("resnet") else \
        {"method": "timm", "network": name, "output_stride": None}
    return from_facts("backbone", {**layers, "weights": weights})


def new_backbone(name: str, norm: str = "group", seed: int = 0) -> Backbone:
    return backbone_method(name).new(norm, seed)


def new_classifier(backbone: Backbone, n_classes: int, seed: int = 0) -> Classifier:
    return Plain(loss="soft_margin").new(backbone, n_classes, seed)


def facts(backbone: Backbone, n_classes: int) -> dict:
    """The facts of a weights file."""
    return {"backbone": backbone.facts, "classifier": Plain(loss="soft_margin").facts, "n_classes": n_classes}


def load_pretrained(backbone: Backbone, file: str | None = None) -> None:
    """Load ImageNet weights as a run does."""
    backbone_method(backbone.name, None if file is None else str(file)).load(backbone)
