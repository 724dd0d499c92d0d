"""The setting for measuring a single step of the pipeline: a data set of synthetic pictures, networks with random weights."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torchvision.models  # noqa: F401 - the pipeline imports it late; measuring processes inherit it from their parent

from benchmarks.harness import CPU
from benchmarks.pictures import draw_dataset
from pipeline.config import compose, typed
from pipeline.contexts import make_context
from pipeline.order import sources
from steps.runtime import networks
from steps.runtime.artifacts import write_arrays
from steps.runtime.context import Runtime, StepContext
from steps.runtime.journal import merge_journals
from steps.runtime.memory import keep_heap
from steps.runtime.networks import WEIGHTS
from wsss.classifiers.classifier import Classifier
from wsss.data.dataset import Dataset
from wsss.families import from_facts
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.irn import IRN
from wsss.networks.weights import save_weights

N_CLASSES = 20
_read_network = networks.load_network


def scratch() -> Path:
    """A folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def classifier(features: Backbone, n_classes: int) -> Classifier:
    return from_facts("classifier", {"method": "plain", "loss": "soft_margin"}).new(features, n_classes, seed=1)


@cache
def backbone(depth: str = "resnet50", norm: str = "frozen_batch", dilated: bool = False) -> Backbone:
    """A backbone with random weights whose features have the magnitude of trained ones (as in the tests' reference case)."""
    kind = {"method": "resnet_dilated", "style": "torchvision", "trained_on": "imagenet"} if dilated else {"method": "resnet"}
    net = from_facts("backbone", {**kind, "depth": depth}).new(norm, seed=7)
    for name, value in net.named_parameters():
        if name.endswith("bn3.weight" if depth in ("resnet50", "resnet101") else "bn2.weight"):
            torch.nn.init.constant_(value, 0.3)
    return net


class Run:
    """A run folder with finished steps, in which steps are run one by one, also repeatedly on other ids."""

    def __init__(self, dataset: Dataset, depth: str = "resnet50", norm: str = "frozen_batch", precision: str = "float32",
                 overrides: tuple[str, ...] = ("recipe=official",), device: torch.device = CPU):
        keep_heap()   # as every run does
        self.dataset, self.precision, self.folder, self.device = dataset, precision, scratch(), device
        self._networks: dict[Path, torch.nn.Module] = {}
        self.config = typed(compose([*overrides, f"precision={precision}"]))
        self.classifier = classifier(backbone(depth, norm), len(dataset.classes)).eval().requires_grad_(False)
        self.irn = IRN(backbone(depth, norm), seed=2).eval().requires_grad_(False)
        facts = {"backbone": self.classifier.backbone.facts, "classifier": self.config.classifier.facts,
                 "n_classes": len(dataset.classes)}
        for step, network in (("train_cam", self.classifier), ("train_irn", self.irn)):
            (self.folder / step).mkdir()
            save_weights(self.folder / step / WEIGHTS, network, facts)
        self.prototypes = write_prototypes(self.folder / "make_lpcam/prototypes.npz", self.classifier, len(dataset.classes))

    def context(self, step: str, ids: tuple[str, ...] | None = None, fresh: bool = True) -> StepContext:
        """The context of a step; with `fresh` its earlier output is removed, except the prototypes and weights."""
        ids, folder = self.dataset.lists["train"] if ids is None else ids, self.folder / step
        if fresh:
            for path in [path for path in folder.glob("*") if path.name not in ("prototypes.npz", WEIGHTS)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(exist_ok=True)
        lists = {"ids": ids, "prototypes": ids, "scored": ids, "val": ()}
        return make_context(self.config, self.dataset, step, lists, folder, sources(self.config, step), self._place,
                            Runtime(device=self.device, precision=self.precision))

    def _place(self, step: str) -> Path | None:
        return folder if (folder := self.folder / step).exists() else None

    def _load(self, path: Path, *args: Any) -> torch.nn.Module:
        if path not in self._networks:
            self._networks[path] = _read_network(path, *args)
        return self._networks[path]

    def run(self, module: Any, ids: tuple[str, ...] | None = None) -> Path:
        """Run a single step on all images or on `ids`, and return its folder."""
        step = module.__name__.split(".")[-1]
        context = self.context(step, ids)
        with patch.object(networks, "load_network", self._load):   # reading a network is not part of the time per image
            module.run(context)
        if not step.startswith(("eval", "train")):
            merge_journals(context.folder, context.ids)
        return context.folder


def write_prototypes(path: Path, classifier: Classifier, n_classes: int, each: int = 12) -> dict[bool, list[torch.Tensor]]:
    """Write random prototypes, `each` of foreground and context per class, as `prototypes.npz`; return (each, D) by context."""
    draw, dimension = torch.Generator().manual_seed(5), classifier.classifier.in_channels
    centers = torch.randn(n_classes, 2, each, dimension, generator=draw).relu()
    path.parent.mkdir(exist_ok=True)
    write_arrays(path, center=centers.view(-1, dimension).numpy(), class_index=np.repeat(np.arange(n_classes), 2 * each),
                 is_background=np.tile(np.repeat([False, True], each), n_classes), kept=np.ones(n_classes * 2 * each, bool))
    return {False: list(centers[:, 0]), True: list(centers[:, 1])}


@cache
def drawn(n: int, size: tuple[int, int] = (375, 500), per_image: int | None = None) -> Dataset:
    """A data set of `n` synthetic pictures of one size."""
    return draw_dataset(scratch(), n, N_CLASSES, sizes=(size,), per_image=per_image)
