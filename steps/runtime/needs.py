"""Estimate the disk space and memory of a step before it runs, from its settings, the headers of a few images, and its network
on torch's meta device, where tensors have shapes but no data. The function `needs` of a step adds up the parts of `Estimate`.

Memory is that of the process, without loader processes. With a GPU, the networks, activations and the state of a training are on
it, and the host has what is left, without the libraries of CUDA. The GPU's numbers are those of torch's tensors, derived from
their sizes and not yet measured on a GPU: `python -m benchmarks.gpu` measures them.
"""

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from steps.runtime.amn import of_images, planned_amn
from steps.runtime.concurrency import ON_GPU, available_cores, max_concurrent, max_together
from steps.runtime.context import methods_of
from steps.runtime.memory import SLACK, resident
from steps.runtime.networks import freeze_early, planned_classifier, planned_segmenter
from steps.runtime.schedule import OptimizerName, total_steps
from steps.runtime.store import Layout
from steps.step import Needs, Setup
from wsss.cams.maps import grids
from wsss.cams.method import CamMethod
from wsss.classifiers.classifier import Classifier
from wsss.data.dataset import Dataset
from wsss.networks.amn import AMN
from wsss.networks.irn import IRN
from wsss.refinement.crf import crf_memory
from wsss.refinement.walk import walk_memory
from wsss.segmenters.inference import windows
from wsss.segmenters.segmenter import Segmenter

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
_WORKSPACE = 32 * MIB        # of cuBLAS on a GPU: 8 buffers of 4 MiB (CUBLAS_WORKSPACE_CONFIG=:4096:8)
_CONFUSION = 20              # bytes per pixel of `Confusion.update`
# Bytes on disk, measured on the files of the default run.
_PNG = 850                   # a label of one class: palette and chunks
_MAPS_LINE, LABEL_LINE = 305, 145    # of the index, per image
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

    def resized(self, side: int) -> "Images":
        """The same images, resized to squares."""
        images = copy(self)
        images.sizes = [(side, side)] * len(self.sizes)
        images.pixels = np.full(len(self.sizes), side * side)
        return images

    def total(self, each: np.ndarray) -> float:
        """The sum over the whole list, estimated from the values (n,) of the sample."""
        return self.number * float(each.mean()) if len(each) else 0.0

    def most(self, pixel: float, pixel_and_class: float = 0) -> float:
        """Bytes of the image that needs most."""
        return float((self.pixels * (pixel + pixel_and_class * self.classes)).max(initial=0))

    def cells(self, stride: int, scales: Sequence[float] = (1.0,)) -> np.ndarray:
        """Cells (n,) of the feature grids of all scales."""
        return np.array([sum(h * w for h, w in grids(*size, stride, scales)) for size in self.sizes])


class Estimate:
    """The parts of the cost of a step, in bytes."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.settings, self.config = setup, setup.settings, setup.config
        self.on_gpu = setup.device == "cuda"
        self._trains, self._on_host = False, 0.0   # whether a training was estimated; bytes of `on_host`

    def finish(self, disk: float, held: float = 0, passing: float = 0, files: int = 0) -> Needs:
        """The needs of the step.

        `disk`: bytes of its folder. `held`: bytes of memory that are not freed while it works. `passing`: bytes that are
        allocated and freed; they reuse memory freed by earlier steps. `files`: number of files per image. With a GPU `held` and
        `passing` are there, `passing` once for each image that it works on.
        """
        if self.config.artifacts.layout is Layout.packed and files:
            disk += _PACKED * files * len(self.setup.lists["ids"])
        host = _process() + _LIBRARIES
        if not self.on_gpu:
            return Needs(disk / MIB, (host + held + max(_LEFT_OVER, passing)) / MIB)
        gpu = held + passing * (1 if self._trains else ON_GPU)
        return Needs(disk / MIB, (host + max(_LEFT_OVER, self._on_host)) / MIB, (gpu + _WORKSPACE * (gpu > 0)) / MIB)

    def on_host(self, size: float) -> float:
        """Bytes that are on the host in any case: `size`, to be added to `held` or `passing`; with a GPU 0, and `finish` adds
        them to the host's memory."""
        if not self.on_gpu:
            return size
        self._on_host += size
        return 0.0

    def images(self, purpose: str, original: bool = False) -> Images:
        return Images(self.setup.dataset, self.setup.lists[purpose], original)

    def classifier(self, freeze: bool = False) -> Classifier:
        """The classifier of the configuration; with `freeze` its early layers are not trained."""
        classifier = planned_classifier(self.setup)
        if freeze:
            freeze_early(classifier.backbone)
        return classifier

    def segmenter(self) -> Segmenter:
        """The segmentation network that the step trains or reads."""
        trained_by = self.setup.sources.get("network")
        methods = methods_of(self.config, trained_by[0].step if trained_by else self.setup.name)
        return planned_segmenter(methods, self.setup.dataset)

    def irn(self) -> IRN:
        with torch.device("meta"):
            return IRN(self.setup.methods["backbone"].new())

    def amn(self, freeze: bool = False) -> AMN:
        """AMN that the step trains or reads; with `freeze` the early layers of its backbone are not trained."""
        network = planned_amn(self.setup)
        if freeze:
            freeze_early(network.backbone)
        return network

    def training(self, network: nn.Module, log_line: int, images: int = 1) -> tuple[float, float, float]:
        """`disk`, `held` and `passing` of a training: weights, gradients, optimiser state, and outputs that autograd keeps for a
        batch of samples of `images` images each. `log_line`: bytes of both logs per training step."""
        settings, number, alive = self.settings, len(self.setup.lists["ids"]), WeakSet[_Kept]()

        def keep(tensor: torch.Tensor) -> _Kept:
            alive.add(kept := _Kept(tensor.detach()))   # detached: with its graph it would keep itself alive
            return kept
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            size = images * self.part(number), 3, settings.crop_size, settings.crop_size
            outputs = of_images(network.train())(torch.empty(size, device="meta"))
            own = {tensor.untyped_storage() for tensor in network.state_dict().values()}
            kept = [storage.nbytes() for storage in {kept.tensor.untyped_storage() for kept in alive} - own]
            sum(output.sum() for output in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
        gradients = sum(p.nbytes for p in network.parameters() if p.grad is not None)   # of trained parameters only
        state = weights(network) + gradients * (settings.momentum > 0 if settings.optimizer is OptimizerName.sgd else 2)
        disk = weights(network) + state + 2 * log_line * total_steps(settings, number)   # the state contains the log too
        held = state + self.on_host(2 * state)      # saving makes two copies: the tensors, and the file
        self._trains = True
        if self.on_gpu:   # the sums of gradients of `tree_sum`; outputs and gradients that a layer works on
            return (disk, held + gradients * (1 + math.log2(settings.parts or 1)),
                    self._of_outputs(sum(kept) + _LIVE * max(kept)))
        return disk, held + gradients, _TRAINED * self._of_outputs(sum(kept))

    def part(self, images: int) -> int:
        """The number of images in the largest part of a training batch (of a single process), of a list of `images`."""
        return math.ceil(min(self.settings.batch_size, images) / (self.settings.parts or 1))

    def maps(self, method: CamMethod, network: Classifier, images: Images, scales: Sequence[float]) -> tuple[int, float] | None:
        """The stride of the maps of a method, and its bytes (`passing`); None if it cannot be run without data."""
        if not images.number:
            return network.backbone.feature_stride, 0.0
        rows: list[tuple[int, int]] = []     # of the image and of its maps
        kept = set[torch.UntypedStorage]()   # by autograd; without data they take no memory here

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.add(tensor.untyped_storage())
            return tensor

        def forward(pair: torch.Tensor) -> None:
            with torch.set_grad_enabled(method.gradients), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                rows.append((pair.shape[2], method.maps(network, network.features, pair, [0]).shape[2]))
        try:
            passing = self.forwards(network.requires_grad_(False), forward, images, max(scales))
        except Exception:   # a method may ask for values
            return None
        own = {tensor.untyped_storage() for tensor in network.state_dict().values()}
        return max(1, round(rows[0][0] / rows[0][1])), passing + sum(storage.nbytes() for storage in kept - own)

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
        if self.on_gpu:
            return _LIVE * largest
        return _LIVE * largest + min(_KEPT * len(set(images.sizes)) * min(largest, _KEPT_OUTPUT), SLACK)

    def segmentation(self, network: Segmenter, images: Images, kinds: int) -> float:
        """Bytes of masks by a segmentation network, with the settings of infer_seg, in the image that needs most (`passing`).
        `kinds`: 2 with a CRF, whose masks are kept beside those before it."""
        settings, labels, window = self.settings, len(self.setup.dataset.classes) + 1, copy(images)
        sides = {side: max(end - start for start, end in windows(side, settings.window, settings.overlap))
                 for size in images.sizes for side in size}
        window.sizes = [(sides[height], sides[width]) for height, width in images.sizes]
        window.pixels = np.array([height * width for height, width in window.sizes])
        together = max_together(torch.device(self.setup.device), int(window.pixels.max(initial=1)))
        batch = together * (1 + settings.flip)
        passing = (self.forwards(network, network, window, max(settings.scales), batch)
                   + window.most(4 * labels * (2 * batch + together)))   # resized logits, softmax, their mean
        if settings.crf:
            pixel, each = crf_memory(1)
            passing = max(passing, window.most(pixel + (each + 4 * (2 + together)) * labels))
        # a band has the rows of a window and the columns of the short side; a whole image is its own band
        return passing + 4 * labels * kinds * max([sides[max(size)] * min(size) for size, own in zip(images.sizes, window.sizes)
                                                   if size != own], default=0)

    def crf(self, images: Images, labellings: int = 1) -> float:
        """Bytes of a dense CRF of the largest image with this many labellings at once (`passing`)."""
        return images.most(*crf_memory(labellings))

    def walk(self, images: Images, maps: float) -> float:
        """Bytes of a random walk in the largest image (`passing`), and of `maps` in float64 at stride 4."""
        return images.most(walk_memory(self.settings.radius, self.on_gpu) + 8 / 16 * maps)

    def concurrent(self, images: Images) -> int:
        """The number of images that a step works on at once on the CPU; `finish` counts those on a GPU."""
        if self.on_gpu:
            return 1
        return max_concurrent(_CPU, images.pixels.max(initial=1), self.config.threads or available_cores())

    def _of_outputs(self, in_float32: float) -> float:
        return in_float32 * (_BF16 if self.config.precision.value == "bf16" else 1)


def needs_of_file(path: Path) -> Needs:
    """The needs of a training whose network is imported from a file."""
    size = path.stat().st_size
    return Needs(size / MIB, (_process() + _LEFT_OVER + 3 * size) / MIB, 0.0)


@cache
def _process() -> int:
    """Bytes of this process before any work."""
    return resident() or _PROCESS


def weights(network: nn.Module) -> int:
    """Bytes of the weights of a network."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


def maps_on_disk(images: Images, stride: int, scales: Sequence[float], kinds: int = 1) -> float:
    """Bytes of packed maps on grids of a stride, in float16 with the 128-byte header of a .npy file, and of their index."""
    cells = images.total(images.cells(stride, scales)) / max(1, images.number)
    return images.number * (128 * kinds + _MAPS_LINE) + kinds * 2 * images.shown * cells


def labels_on_disk(images: Images, border: float) -> float:
    """Bytes of label images and of their index. `border`: bytes of the borders, per pixel of a side."""
    return images.total(_PNG + border * np.sqrt(images.pixels) + LABEL_LINE)


def scoring(setup: Setup) -> Needs:
    """The needs of a step that compares the masks of "scored" with the ground truth."""
    estimate = Estimate(setup)
    return estimate.finish(CELL * (len(setup.dataset.classes) + 1) ** 2,
                           passing=estimate.on_host(comparison(estimate.images("scored", original=True))))


def comparison(images: Images) -> float:
    """Bytes for comparing the labels of the largest image (`passing`)."""
    return images.most(_CONFUSION)


def directions(radius: int) -> float:
    """The number of pairs of a pixel with later pixels nearer than `radius`: nearly half a disc (152 at radius 10)."""
    return math.pi / 2 * radius ** 2
