"""Estimate the disk space and memory of a step before it runs, from its settings, the headers of a few images, and its network
on torch's meta device, where tensors have shapes but no data. The function `needs` of a step adds up the parts of `Estimate`.

Memory is that of the process, with the networks on the CPU (with a GPU most of it is on the GPU), without loader processes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from steps.runtime.concurrency import available_cores, max_concurrent
from steps.runtime.memory import SLACK, resident
from steps.runtime.schedule import OptimizerName, epochs_of
from steps.runtime.store import Layout
from steps.step import Needs, Setup
from wsss.cams.maps import grids
from wsss.classifiers.plain import Classifier
from wsss.data.dataset import Dataset
from wsss.networks.backbones.backbone import Backbone
from wsss.networks.backbones.build import new_backbone
from wsss.networks.irn import IRN

_CPU = torch.device("cpu")
MIB, SAMPLE = 2**20, 50      # SAMPLE: number of ids sampled from a list

# Measured with torch 2.15 on Linux: VmHWM of /proc/self/status, reset by writing 5 to clear_refs. "Default run": no overrides.
_PROCESS = 700 * MIB         # with the pipeline imported; used only without /proc
_LIBRARIES = 75 * MIB        # kept after a first forward and backward, even after malloc_trim: kernels of oneDNN
_LEFT_OVER = 200 * MIB       # freed by earlier steps but kept by glibc: eval_cam takes 35 alone, 550 in the default run
_LIVE = 4                    # largest outputs in memory at once in a forward, with copies of oneDNN: resnet18 3, resnet50 5
_KEPT = 0.6                  # freed outputs that glibc keeps for each further image size, until it is trimmed:
#                              333 to 500 px, scales up to 2: resnet18 0.6, resnet50 1.0; 100 to 168 px: resnet18 0.4
_KEPT_OUTPUT = 128 * MIB     # upper limit of such an output: blocks above 32 MiB are freed (resnet18, 700 to 1000 px: 80 a size)
_TRAINED = 1.3               # training relative to what autograd keeps: freed memory stays; 16 crops of 512 px take 11.3 GB
_BF16 = 0.75                 # outputs under autocast on the CPU relative to float32: 0.65 to 0.78
_CRF = 500, 100              # bytes per pixel, and per pixel and label: images, 2 to 13 labels: within 25 %; noise doubles it
_CONFUSION = 20              # bytes per pixel of `Confusion.update`
# Bytes on disk, measured on the files of the default run.
_PNG = 850                   # a label of one class: palette and chunks
_MAPS_LINE, LABEL_LINE = 235, 145    # of the index, per image
_PACKED = 768 + 40           # more for a file in a pack: header, half a block of padding, and its place in the index
CELL = 12                    # of scores.json: a number of the confusion matrix


@dataclass(eq=False)
class _Kept:
    """A tensor that autograd keeps for backward; freed with the graph."""

    tensor: torch.Tensor


class Images:
    """An evenly spaced sample of a list: (H, W) of the files (`original`) or of the network inputs; classes present."""

    def __init__(self, dataset: Dataset, ids: Sequence[str], original: bool = False):
        sample, size = ids[::max(1, -(-len(ids) // SAMPLE))], dataset.size if original else dataset.working_size
        self.number, self.sizes = len(ids), [size(image_id) for image_id in sample]
        self.present = [dataset.labels[image_id] for image_id in sample]
        self.shown = sum(len(dataset.labels[image_id]) for image_id in ids)   # classes of all images: a sample may be 20 % off
        self.pixels, self.classes = np.array([h * w for h, w in self.sizes]), np.array([len(p) for p in self.present])   # (n,)

    def total(self, each: np.ndarray) -> float:
        """The sum over the whole list, estimated from the values (n,) of the sample."""
        return self.number * float(each.mean()) if len(each) else 0.0

    def most(self, pixel: float, pixel_and_class: float = 0) -> float:
        """Bytes of the image that needs most."""
        return float((self.pixels * (pixel + pixel_and_class * self.classes)).max(initial=0))

    def cells(self, scales: Sequence[float] = (1.0,)) -> np.ndarray:
        """Cells (n,) of the feature grids of all scales."""
        return np.array([sum(h * w for h, w in grids(*size, scales)) for size in self.sizes])


class Estimate:
    """The parts of the cost of a step, in bytes."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings, self.config = setup, setup.settings, setup.config

    def finish(self, disk: float, held: float = 0, passing: float = 0, files: int = 0) -> Needs:
        """The needs of the step.

        `disk`: bytes of its folder. `held`: bytes of memory that are not freed while it works. `passing`: bytes that are
        allocated and freed; they reuse memory freed by earlier steps. `files`: number of files per image.
        """
        if self.config.artifacts.layout is Layout.packed and files:
            disk += _PACKED * files * len(self.setup.lists["ids"])
        return Needs(disk / MIB, (_process() + _LIBRARIES + held + max(_LEFT_OVER, passing)) / MIB)

    def images(self, purpose: str, original: bool = False) -> Images:
        return Images(self.setup.dataset, self.setup.lists[purpose], original)

    def classifier(self, detach_after_layer2: bool = False) -> Classifier:
        with torch.device("meta"):
            return Classifier(self._backbone(), len(self.setup.dataset.classes), detach_after_layer2)

    def irn(self) -> IRN:
        with torch.device("meta"):
            return IRN(self._backbone())

    def _backbone(self) -> Backbone:
        return new_backbone(self.config.model.backbone.value, self.config.model.norm)

    def training(self, network: Classifier | IRN, log_line: int) -> tuple[float, float, float]:
        """`disk`, `held` and `passing` of a training: weights, gradients, optimiser state, and the outputs that autograd keeps
        for a batch. `log_line`: bytes of both logs per training step."""
        settings, number, alive = self.settings, len(self.setup.lists["ids"]), WeakSet[_Kept]()

        def keep(tensor: torch.Tensor) -> _Kept:
            alive.add(kept := _Kept(tensor.detach()))   # detached: with its graph it would keep itself alive
            return kept
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            outputs = network.train()(torch.empty(self.part(number), 3, *2 * [settings.crop_size], device="meta"))
            own = {tensor.untyped_storage() for tensor in network.state_dict().values()}
            kept = sum(storage.nbytes() for storage in {kept.tensor.untyped_storage() for kept in alive} - own)
            sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
        gradients = sum(p.nbytes for p in network.parameters() if p.grad is not None)   # of trained parameters only
        state = weights(network) + gradients * (2 if settings.optimizer is OptimizerName.adamw else settings.momentum > 0)
        log = log_line * epochs_of(settings, number) * max(1, number // settings.batch_size)
        return (weights(network) + state + 2 * log,   # the state contains the log too
                3 * state + gradients,                # saving makes two copies: the tensors, and the file
                _TRAINED * self._of_outputs(kept))

    def part(self, images: int) -> int:
        """The number of images in the largest part of a training batch (of a single process), of a list of `images`."""
        return math.ceil(min(self.settings.batch_size, images) / (self.settings.parts or 1))

    def forwards(self, network: nn.Module, forward: Callable, images: Images, scale: float = 1.0, batch: int = 2) -> float:
        """Bytes of `forward` over the images one by one (`passing`); `batch` is 2 with the mirror image."""
        if not images.number:
            return 0.0
        height, width = (math.ceil(side * scale) for side in max(images.sizes, key=math.prod))
        outputs: list[int] = []
        for module in network.modules():
            module.register_forward_hook(lambda _, inputs, output: outputs.append(getattr(output, "nbytes", 0)))   # 0: several
        with torch.no_grad():
            forward(torch.empty(batch, 3, height, width, device="meta"))
        largest = self._of_outputs(max(outputs))
        return _LIVE * largest + min(_KEPT * len(set(images.sizes)) * min(largest, _KEPT_OUTPUT), SLACK)

    def crf(self, images: Images, labellings: int = 1) -> float:
        """Bytes of a dense CRF of the largest image with this many labellings at once (`passing`)."""
        pixel, label = _CRF
        return images.most(pixel + label * labellings, label * labellings)

    def walk(self, images: Images, maps: float = 0, maps_per_class: float = 0) -> float:
        """Bytes of a random walk in the largest image (`passing`): pairs and maps in float64 at stride 4."""
        return images.most(8 / 16 * (2 * directions(self.settings.radius) + maps), 8 / 16 * maps_per_class)

    def concurrent(self, images: Images) -> int:
        """The number of images that a step works on at once on the CPU."""
        return max_concurrent(_CPU, images.pixels.max(initial=1), self.config.threads or available_cores())

    def _of_outputs(self, in_float32: float) -> float:
        return in_float32 * (_BF16 if self.config.precision.value == "bf16" else 1)


def needs_of_file(path: Path) -> Needs:
    """The needs of a training whose network is imported from a file."""
    size = path.stat().st_size
    return Needs(size / MIB, (_process() + _LEFT_OVER + 3 * size) / MIB)


@cache
def _process() -> int:
    """Bytes of this process before any work."""
    return resident() or _PROCESS


def weights(network: nn.Module) -> int:
    """Bytes of the weights of a network."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def maps_on_disk(images: Images, scales: Sequence[float], kinds: int = 1) -> float:
    """Bytes of packed maps, in float16 with the 128-byte header of a .npy file, and of their index."""
    cells = images.total(images.cells(scales)) / max(1, images.number)
    return images.number * (128 * kinds + _MAPS_LINE) + kinds * 2 * images.shown * cells


def labels_on_disk(images: Images, border: float) -> float:
    """Bytes of label images and of their index. `border`: bytes of the borders, per pixel of a side."""
    return images.total(_PNG + border * np.sqrt(images.pixels) + LABEL_LINE)


def comparison(images: Images) -> float:
    """Bytes for comparing the labels of the largest image (`passing`)."""
    return images.most(_CONFUSION)


def directions(radius: int) -> float:
    """The number of pairs of a pixel with later pixels nearer than `radius`: nearly half a disc (152 at radius 10)."""
    return math.pi / 2 * radius ** 2


def _train_cam(step: _Step) -> _Bytes:
    network = step.classifier()
    needs = step.training(network, _CAM_STEP)
    return needs._replace(passing=max(needs.passing, step.forwards(network, network.features, step.images("val"), batch=1)))


def _make_cam(step: _Step) -> _Bytes:
    network, images = step.classifier(), step.images("ids")
    passing = step.forwards(network, network.features, images, max(step.settings.scales))
    return _Bytes(step.maps(images), _weights(network), passing)


def _make_lpcam(step: _Step) -> _Bytes:
    network, settings, images, sources = step.classifier(), step.settings, step.images("ids"), step.images("prototypes")
    shown = Counter(index for present in sources.present for index in present)
    share = max(shown.values(), default=0) / max(1, len(sources.present))   # of the commonest class
    cells, limit = share * sources.total(sources.cells()), settings.max_features_per_class
    rows = min(cells, 2.5 * limit) + limit * (cells > limit)      # both samples with spare rows, and a copy to shorten one
    rows += 2 * min(cells, 128 * settings.n_clusters)             # k-means++ samples this many, and normalises them
    if settings.kmeans_backend.value == "kmeans_pytorch":
        rows += min(cells, limit) * (settings.n_clusters + 2)     # its N x K x D array, and two copies of the features
    feature = 4 * network.backbone.feature_channels                   # float32
    near = 9 * (4 * max(map(len, step.lists["prototypes"][:1]), default=0) + 8)   # ids (UCS-4) and cells of the nearest features
    centers = 2 * settings.n_clusters * len(shown) * (feature + 14 + near)
    return _Bytes(step.maps(images, 1 + settings.save_fg_maps) + centers, _weights(network),
                  max(step.forwards(network, network.features, images, max(step.config.make_cam.scales)),
                      step.forwards(network, network.features, sources) + feature * rows))


def _eval_cam(step: _Step) -> _Bytes:
    kinds = 1 + ("make_lpcam" in step.config.steps) * (1 + step.config.make_lpcam.save_fg_maps)
    lists = [step.images(purpose, original=True) for purpose in ("scored", "val")]
    counts = kinds * sum(images.number > 0 for images in lists) * 8 * (len(step.dataset.classes) + 1) ** 2 * (len(THRESHOLDS) + 1)
    return _Bytes(counts + kinds * _CURVE, counts, max(images.most(*_COUNTED) for images in lists))


def _cam_to_ir_label(step: _Step) -> _Bytes:
    images, (pixel, label) = step.images("ids"), _CRF
    at_once = max_concurrent(_CPU, images.pixels.max(initial=1), step.config.threads or available_cores())
    return _Bytes(_labels(images, _IR_LABEL), 0, at_once * images.most(pixel + label, label))


def _train_irn(step: _Step) -> _Bytes:
    needs, settings = step.training(step.irn(), _IRN_STEP), step.settings
    affinities = 4 * _part(settings, settings.batch_size) * (settings.crop_size / 4) ** 2 * _directions(settings.radius)
    return needs._replace(passing=needs.passing + 2 * affinities)   # and their gradients


def _part(settings: Any, images: int) -> int:
    """The number of images in the largest part of a batch (of a single process)."""
    return math.ceil(min(settings.batch_size, images) / (settings.parts or 1))


def _make_sem_seg_labels(step: _Step) -> _Bytes:
    network, images, originals = step.irn().eval(), step.images("ids"), step.images("ids", original=True)
    refiners, (pixel, label) = step.settings.refiners(bool(step.lists["val"])), _CRF
    walks, crf = any(refiner.walks for refiner in refiners), any(refiner.has_crf for refiner in refiners)
    soft = walks * step.settings.save_soft * images.total(2 * (images.classes + 1) * images.pixels / 16)   # float16 at stride 4
    walk = images.most(8 / 16 * 2 * _directions(step.settings.radius), 8 / 16 * 6)   # float64 at stride 4; 6 copies of the maps
    chooses = step.settings.chooses and step.lists["val"]
    labellings, kept = len(OFFSETS) * (1 + walks) if chooses else 1, 0.0
    if chooses and Refiner.walk_crf in refiners:
        kept = min((val := step.images("val")).total(val.classes * val.pixels / 4), WALKS_KEPT)   # float32 at stride 4
    passing = [originals.most(*_SOFT)]
    if walks:
        passing += [step.forwards(network, network.edge_map, images), walk]
    if crf:
        passing.append(images.most(pixel + label * labellings, label * labellings))
    return _Bytes(_labels(originals, _MASK) + soft, walks * _weights(network) + kept, max(passing))


def _make_ins_seg_labels(step: _Step) -> _Bytes:
    network, images, originals = step.irn().eval(), step.images("ids"), step.images("ids", original=True)
    walk = images.most(8 / 16 * (2 * _directions(step.settings.radius) + 6 * AT_ONCE))   # as above, for AT_ONCE maps together
    return _Bytes(originals.total(_INSTANCES + _MASK * np.sqrt(originals.pixels) + _LABEL_LINE), _weights(network),
                  max(step.forwards(network, network.edge_and_displacement, images), walk, originals.most(_LARGE * AT_ONCE)))


def _eval_ins_seg(step: _Step) -> _Bytes:
    objects = step.dataset.objects
    return _Bytes(_CELL * len(step.dataset.classes) + 400, 0, step.images("scored", original=True).most(_CONFUSION)
                  + (objects.memory if objects and step.lists["scored"] else 0))


def _eval_sem_seg(step: _Step) -> _Bytes:
    return _Bytes(_CELL * (len(step.dataset.classes) + 1) ** 2, 0, step.images("scored", original=True).most(_CONFUSION))


_FILES: dict[str, Callable[[Any], int]] = {   # per image
    "make_cam": lambda settings: 1, "make_lpcam": lambda settings: 1 + settings.save_fg_maps,
    "cam_to_ir_label": lambda settings: 1, "make_sem_seg_labels": lambda settings: 1 + 2 * settings.save_soft,
    "make_ins_seg_labels": lambda settings: 1}
_NEEDS: dict[str, Callable[[_Step], _Bytes]] = {
    "train_cam": _train_cam, "make_cam": _make_cam, "make_lpcam": _make_lpcam, "eval_cam": _eval_cam,
    "cam_to_ir_label": _cam_to_ir_label, "train_irn": _train_irn, "make_sem_seg_labels": _make_sem_seg_labels,
    "eval_sem_seg": _eval_sem_seg, "make_ins_seg_labels": _make_ins_seg_labels, "eval_ins_seg": _eval_ins_seg}
