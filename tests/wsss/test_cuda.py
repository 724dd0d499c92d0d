"""What a CUDA device computes is what the CPU computes, within rounding. Without one, at least that everything lies on it: torch's
fake tensors have shapes and devices, no numbers, and refuse an operation on tensors of two devices.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.networks import new_backbone, new_classifier
from wsss.cams.cam import multi_scale_cam, multi_scale_features
from wsss.cams.clustering import kmeans
from wsss.cams.gradients import stage_maps
from wsss.cams.lpcam import lpcam_maps
from wsss.cams.maps import from_stride_4, grids, pack, rebuild
from wsss.metrics.semantic import ThresholdCounts
from wsss.networks.backbones.method import NORMS
from wsss.networks.folding import fold_batch_norm
from wsss.networks.irn import IRN
from wsss.refinement import walk
from wsss.refinement.affinity import affinity_losses, edge_to_affinity, pair_counts
from wsss.refinement.crf import crf_labels
from wsss.refinement.ir_label import ir_label
from wsss.refinement.walk import random_walk
from wsss.resize import resize, resize_matrix

CUDA = torch.device("cuda", 0)
HEIGHT, WIDTH, SCALES = 61, 83, (1.0, 0.5)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def photo() -> np.ndarray:
    """Smooth, with an edge: labels far from ties."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([3 * rows, 2 * columns, np.where(rows + columns > 70, 200, 30)], axis=2).astype(np.uint8)


def seeds() -> torch.Tensor:
    """Two maps (2, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 300) for y, x in ((20, 20), (40, 60))])


def frozen(build: Callable[[], torch.nn.Module], device: torch.device) -> torch.nn.Module:
    with torch.device(device):   # fake weights can be neither moved nor folded
        network = build().eval().requires_grad_(False)
    if isinstance(next(network.parameters()), FakeTensor):
        return network
    network.load_state_dict(build().state_dict())
    return fold_batch_norm(network.to(memory_format=torch.channels_last))


def cams(device):
    classifier = frozen(lambda: new_classifier(new_backbone("resnet18", "frozen_batch"), 5), device)
    return multi_scale_cam(classifier.features, photo(), classifier.classifier.weight[[1, 3]].flatten(1), SCALES, device)


def rebuilt(device):
    sizes = grids(HEIGHT, WIDTH, 16, SCALES)
    cells = values(2, sum(h * w for h, w in sizes)).to(device)
    return [rebuild(cells, HEIGHT, WIDTH, sizes, resolution, pad=16) for resolution in ("full", "strided")]


def packed(device):
    return pack([values(2, 4, 6).to(device), values(2, 2, 3, seed=1).to(device)])


def lpcams(device):
    backbone = frozen(lambda: new_backbone("resnet18", "group"), device)
    vectors = [values(2, 512, seed=seed).to(device) for seed in (1, 2)]
    return [maps for features in multi_scale_features(backbone, photo(), SCALES, device)
            for maps in lpcam_maps(features, *vectors)]


def edges(device):
    irn = frozen(lambda: IRN(new_backbone("resnet18", "frozen_batch")), device)
    return [*irn.edge_and_displacement(values(2, 3, HEIGHT, WIDTH).to(device)),
            from_stride_4(values(2, 16, 21).to(device), (HEIGHT, WIDTH), (HEIGHT, WIDTH))]


def resized(device):
    x = values(2, 3, 16, 21).to(device).requires_grad_()
    enlarged = resize(x, (HEIGHT, WIDTH))
    (enlarged * values(HEIGHT, WIDTH, seed=1).to(device)).sum().backward()
    return [enlarged.detach(), x.grad]


def losses(device):
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 255], (2, 32, 32))).to(device)
    found = affinity_losses(values(2, 1, 32, 32).to(device), values(2, 2, 32, 32).to(device), labels)
    return [found.pos_aff, found.neg_aff, found.dp_fg, found.dp_bg, found.total, pair_counts(labels)]


def gradients(device):
    edge, displacement = (values(2, n, 32, 32).to(device).requires_grad_() for n in (1, 2))
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 255], (2, 32, 32))).to(device)
    affinity_losses(edge, displacement, labels, all_pairs=True).total.backward()
    return [edge.grad, displacement.grad]


def walked_rows(device):
    """The walk but for its look at the range of the edges."""
    edge = values(16, 21).double().to(device) ** 3
    bands, scale = walk._symmetric_steps(edge_to_affinity(edge, 5), edge, 10, 16 * 21)
    return [walk._power_by_rows(values(2, 336).double().to(device) * scale, *walk._as_rows(bands, 336), 256)]


def walked(device):
    return [random_walk(values(2, 16, 21).to(device), values(16, 21, seed=1).to(device) ** 3)]


def clusters(device):
    features = (values(400, 24) ** 6).to(device)
    found = kmeans(features, 5, generator=np.random.default_rng(0))
    return [found.centers, found.assignment]


def labels_of_crf(device):
    image = torch.from_numpy(photo()).to(device)
    return [crf_labels(image, (seeds() > 0.5).any(0).long().to(device), 2),
            ir_label(photo(), seeds().to(device), [2, 7], conf_fg=0.45, conf_bg=0.25)]


def trained(device):
    """The gradients of all weights that each kind of network trains."""
    images, labels = values(2, 3, 64, 80).to(device), torch.zeros(2, 5, device=device)
    found = []
    for norm in NORMS:
        with torch.device(device):
            network = new_classifier(new_backbone("resnet18", norm), 5)
        network.load_state_dict(new_classifier(new_backbone("resnet18", norm), 5).state_dict())
        torch.nn.functional.multilabel_soft_margin_loss(network(images), labels).backward()
        found += [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return found


def counted(device):
    """The maps of a gradient method, and the counts of maps at all thresholds."""
    classifier = new_classifier(new_backbone("resnet18", "frozen_batch"), 5).eval().requires_grad_(False).to(device)
    counts = ThresholdCounts(20)
    counts.update(seeds().to(device), [2, 7], (seeds() > 0.6).any(0).numpy().astype(np.uint8) * 3)
    return [*stage_maps(classifier, values(2, 3, 64, 80).to(device), [1, 3], [-2, -1], lambda a, g: (a * g).sum(1)),
            torch.from_numpy(counts.counts).to(device)]


WITHOUT_NUMBERS = (cams, rebuilt, lpcams, edges, losses, walked_rows)   # nothing in them depends on what the numbers are


@pytest.fixture
def empty_cache():
    """No fake matrices for the other tests, and no real ones for this."""
    resize_matrix.cache_clear()
    yield
    resize_matrix.cache_clear()


@pytest.fixture
def deterministic(monkeypatch):
    """As a run computes on a GPU, but an operation without a deterministic form is an error."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("operation", WITHOUT_NUMBERS)
def test_everything_lies_on_the_device(operation):
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert all(tensor.device == CUDA for tensor in operation(CUDA))


def test_a_tensor_left_behind_is_refused():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        values(2).to(CUDA) + torch.ones(2)


@pytest.mark.cuda
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("operation", [*WITHOUT_NUMBERS, packed, resized, gradients, walked, clusters, labels_of_crf, trained, counted])
def test_the_device_computes_what_the_cpu_computes(operation):
    same = partial(torch.testing.assert_close, rtol=2e-3, atol=2e-4)
    for ours, expected in zip(operation(CUDA), operation(torch.device("cpu")), strict=True):
        assert ours.device == CUDA
        if ours.is_floating_point():
            same(ours.cpu(), expected)
        else:
            assert (ours.cpu() == expected).double().mean() >= 0.999
