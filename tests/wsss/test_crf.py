"""The lattice against a plain one, the dense CRF against sums over all pairs of pixels and, where installed, pydensecrf."""

import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.reference import IDS, REFERENCE
from wsss.errors import ArgumentError, BackendError
from wsss.refinement.crf import DenseCRF, crf_labels, unary_from_labels
from wsss.refinement.permutohedral import PermutohedralLattice


def photo(image_id: str = IDS[0], top: int = 0, left: int = 0, height: int = 9999, width: int = 9999) -> np.ndarray:
    return imageio.imread(REFERENCE / "JPEGImages" / f"{image_id}.jpg")[top : top + height, left : left + width]


def blobs(image: np.ndarray, n_labels: int, seed: int = 0) -> torch.Tensor:
    """A label map of smooth random regions, of the size of the image."""
    coarse = torch.randn(1, n_labels, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, image.shape[:2], mode="bilinear").argmax(1)[0]


def plain_lattice_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Adams et al. 2010 point by point in float64: barycentric weights by solving for them, vertices in a dictionary."""
    d = features.shape[1]
    basis = np.triu(np.ones((d + 1, d)))  # p. 5: column k is (1, .., 1, -k, 0, .., 0), of unit length
    basis[np.arange(1, d + 1), np.arange(d)] = -np.arange(1, d + 1)
    basis *= np.sqrt(2 / 3) * (d + 1) / np.linalg.norm(basis, axis=0)
    corners = []
    lattice = {}
    for point, value in zip(features @ basis.T, values, strict=True):
        origin = np.rint(point / (d + 1)) * (d + 1)
        steps = round(origin.sum() / (d + 1))
        ascending = np.argsort(point - origin)
        origin[ascending[:steps] if steps > 0 else ascending[d + 1 + steps :]] -= np.sign(steps) * (d + 1)
        ascending = np.argsort(point - origin)
        vertices = np.stack([origin + r for r in range(d + 1)])
        for r in range(d + 1):
            vertices[r, ascending[:r]] -= d + 1
        weights = np.linalg.lstsq(np.vstack([vertices.T, np.ones(d + 1)]), np.append(point, 1), rcond=None)[0]
        assert weights.min() > -1e-9 and abs(weights @ vertices - point).max() < 1e-9  # the point is inside
        corners.append([(tuple(vertex), weight) for vertex, weight in zip(vertices.astype(int).tolist(), weights, strict=True)])
        for vertex, weight in corners[-1]:
            lattice[vertex] = lattice.get(vertex, 0) + weight * value
    for j in range(d + 1):
        step = np.full(d + 1, -1)
        step[j] = d
        near = {v: (tuple(np.subtract(v, step).tolist()), tuple(np.add(v, step).tolist())) for v in lattice}
        lattice = {v: lattice[v] + 0.5 * sum(lattice.get(n, 0) for n in near[v]) for v in lattice}
    return np.array([sum(weight * lattice[vertex] for vertex, weight in corner) for corner in corners]) / (1 + 2.0**-d)


@pytest.mark.parametrize("spread", [0.7, 40.0])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_lattice_equals_the_plain_one(d, spread):
    rng = np.random.default_rng(d)
    features = (rng.normal(size=(60, d)) * spread).astype(np.float32)
    values = rng.normal(size=(60, 3)).astype(np.float32)
    values[-1], features[-1] = values[0], features[0]  # two points in one place
    ours = PermutohedralLattice(torch.tensor(features)).filter(torch.tensor(values))
    np.testing.assert_allclose(ours, plain_lattice_filter(features.astype(float), values), atol=2e-4 * np.abs(values).max())


def exact_kernel(features: np.ndarray) -> np.ndarray:
    """n K n with K = exp(-|f_i - f_j|^2 / 2) for all pairs and n = 1 / sqrt(K 1)."""
    kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
    norm = 1 / np.sqrt(kernel.sum(1))
    return norm[:, None] * kernel * norm


def crf_features(image: np.ndarray, gaussian_sxy=3, bilateral_sxy=50, bilateral_srgb=5) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    xy = np.stack([x, y], -1).reshape(-1, 2)
    return xy / gaussian_sxy, np.concatenate([xy / bilateral_sxy, image.reshape(-1, 3) / bilateral_srgb], 1)


def test_error_of_the_lattice_against_the_exact_gaussian():
    """A label's normalised mass around a pixel, 0..1. Measured: spatial 0.0085 on average, 0.049 at most; bilateral 0.024 and
    0.37, for its points lie thinly in five dimensions and the blur does not pass vertices without a point."""
    image = photo(IDS[0], 10, 10, 28, 36)
    onehot = F.one_hot(blobs(image, 3)).reshape(-1, 3).float()
    for features, mean, worst in zip(crf_features(image), (0.01, 0.03), (0.06, 0.4), strict=True):
        lattice = PermutohedralLattice(torch.tensor(features, dtype=torch.float32)).normalized()
        error = np.abs(lattice.filter(onehot).numpy() - exact_kernel(features) @ onehot.numpy())
        assert error.mean() < mean and error.max() < worst


def test_normalized_lattice_is_weighted_and_symmetric():
    features = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    raw, normalized = PermutohedralLattice(features), PermutohedralLattice(features).normalized(7)
    kernel = raw.filter(torch.eye(50))
    norm = kernel.sum(1).rsqrt()
    torch.testing.assert_close(normalized.filter(torch.eye(50)), 7 * norm[:, None] * kernel * norm)
    torch.testing.assert_close(raw.filter(torch.eye(50)), kernel)  # untouched


def plain_mean_field(kernels: list[np.ndarray], unary: torch.Tensor, iterations: int = 10) -> np.ndarray:
    """Q = softmax(-U + sum of Q K) with dense matrices in float64; kernels already hold their Potts weight."""
    energy = unary.double().numpy().reshape(len(unary), -1)
    logits = -energy
    for _ in range(iterations):
        q = np.exp(logits - logits.max(0))
        q /= q.sum(0)
        logits = -energy + sum(q @ kernel.T for kernel in kernels)
    q = np.exp(logits - logits.max(0))
    return (q / q.sum(0)).reshape(unary.shape)


def test_inference_equals_plain_mean_field_over_the_lattice_kernels():
    image = photo(IDS[1], 5, 40, 21, 17)
    settings = dict(gaussian_sxy=2, gaussian_compat=4, bilateral_sxy=30, bilateral_srgb=9, bilateral_compat=6)
    unary = torch.randn(4, 21, 17, generator=torch.Generator().manual_seed(1))
    kernels = []
    for features, weight in zip(crf_features(image, 2, 30, 9), (4, 6), strict=True):
        lattice = PermutohedralLattice(torch.tensor(features, dtype=torch.float32)).normalized(weight)
        kernels.append(lattice.filter(torch.eye(21 * 17)).double().numpy())
    for iterations in (0, 1, 10):
        q = DenseCRF(image, **settings).inference(unary, iterations)
        np.testing.assert_allclose(q, plain_mean_field(kernels, unary, iterations), atol=1e-4)


@pytest.mark.parametrize(("image_id", "top", "left"), [(IDS[0], 10, 10), (IDS[1], 40, 60)])
def test_labels_against_mean_field_over_all_pairs_of_pixels(image_id, top, left):
    """The lattice's own error in labels: measured 5.4 % and 1.2 % of the pixels, where the CRF changes 25 % and 29 %."""
    image = photo(image_id, top, left, 28, 36)
    labels = blobs(image, 3)
    unary = unary_from_labels(labels, 3)
    kernels = [w * exact_kernel(features) for features, w in zip(crf_features(image), (3, 10), strict=True)]
    exact = plain_mean_field(kernels, unary).argmax(0)
    ours = crf_labels(image, labels, 3).numpy()
    assert (ours == exact).mean() > 0.93
    assert (labels.numpy() == exact).mean() < 0.9  # the comparison means something


def test_pydensecrf_gives_the_same_labels():
    pytest.importorskip("pydensecrf.densecrf")
    image = photo()
    labels = torch.stack([blobs(image, 4), blobs(image, 4, seed=1)])
    assert torch.equal(crf_labels(image, labels, 4, backend="pydensecrf"), crf_labels(image, labels, 4))


def test_same_bits_in_every_run_and_a_shared_lattice_equals_separate_ones():
    image = photo()
    labels = torch.stack([blobs(image, 3), blobs(image, 3, seed=1)])
    crf = DenseCRF(image)
    together = crf.inference(unary_from_labels(labels, 3))
    assert torch.equal(together, DenseCRF(image).inference(unary_from_labels(labels, 3)))
    for one, q in zip(labels, together, strict=True):
        torch.testing.assert_close(q, DenseCRF(image).inference(unary_from_labels(one, 3)), atol=1e-5, rtol=0)
        assert torch.equal(crf_labels(image, one, 3, crf=crf), q.argmax(0))
    assert torch.equal(crf_labels(image, labels, 3), together.argmax(1))


def test_tensors_arrays_and_views_are_the_same_image():
    image = np.ascontiguousarray(photo()[:40, :50])
    labels = blobs(image, 2).numpy()
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]  # negative strides
    read_only = image.copy()
    read_only.flags.writeable = False
    expected = crf_labels(torch.tensor(image), torch.tensor(labels), 2)
    assert expected.dtype == torch.int64
    for same in (image, flipped, read_only):
        assert torch.equal(crf_labels(same, labels.astype(np.uint8), 2), expected)


def test_unary_from_labels():
    unary = unary_from_labels(np.array([[0, 2]]), 3, gt_prob=0.7)
    expected = -np.log(np.array([[[0.7, 0.15]], [[0.15, 0.15]], [[0.15, 0.7]]]))
    assert unary.dtype == torch.float32
    np.testing.assert_allclose(unary, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_images(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    q = DenseCRF(image).inference(unary_from_labels(torch.zeros(size, dtype=torch.int64), 2))
    assert q.shape == (2, *size)
    torch.testing.assert_close(q.sum(0), torch.ones(size))
    assert (q[0] > 0.7).all()  # every pixel supports every other
    assert (DenseCRF(image).inference(unary_from_labels(torch.zeros(size, dtype=torch.int64), 1)) == 1).all()   # one label is certain


def test_constant_image():
    image = np.full((40, 40, 3), 128, np.uint8)
    halves = torch.zeros(40, 40, dtype=torch.int64)
    halves[:, 20:] = 1
    noisy = halves.clone()
    noisy[10, 10], noisy[30, 30] = 1, 0
    spatial = DenseCRF(image, bilateral_compat=0)
    assert torch.equal(crf_labels(image, noisy, 2, crf=spatial), halves)
    majority = torch.zeros(40, 40, dtype=torch.int64)
    majority[:, 30:] = 1
    assert (crf_labels(image, majority, 2) == 0).all()  # the bilateral kernel joins everything of one colour


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_large_image_of_noise_stays_below_3_gib():
    """The worst case of the lattice: nearly six vertices a pixel. Measured 2.4 GiB, of which 0.5 are torch."""
    code = (
        "import numpy, resource, torch; from wsss.refinement.crf import crf_labels\n"
        "image = numpy.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=numpy.uint8)\n"
        "crf_labels(image, torch.randint(4, (2, 1000, 1000)), 4, iterations=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REFERENCE.parents[1], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 3 * 2**20


# ---- errors

IMAGE, LABELS = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.int64)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: DenseCRF(IMAGE.astype(np.float32)), r"image has shape \(4, 5, 3\) and is torch.float32; expected \(H, W, 3\)"),
    (lambda: DenseCRF(IMAGE[..., 0]), r"image has shape \(4, 5\)"),
    (lambda: DenseCRF(IMAGE[:0]), r"image has shape \(0, 5, 3\)"),
    (lambda: DenseCRF(IMAGE, bilateral_srgb=0), "bilateral_srgb is 0; expected a positive"),
    (lambda: DenseCRF(IMAGE, gaussian_compat=-1), "gaussian_compat is -1; expected a weight"),
    (lambda: DenseCRF(IMAGE).inference(torch.zeros(2, 5, 4)), r"shape \(2, 5, 4\).*expected \(..., L, 4, 5\)"),
    (lambda: DenseCRF(IMAGE).inference(torch.zeros(2, 4, 5).double()), "is torch.float64"),
    (lambda: DenseCRF(IMAGE).inference(torch.full((2, 4, 5), torch.nan)), "unary holds NaN or infinity"),
    (lambda: DenseCRF(IMAGE).inference(torch.zeros(2, 4, 5), -1), "iterations is -1"),
    (lambda: unary_from_labels(LABELS + 2, 2), r"labels holds values 2..2; expected 0..1 \(n_labels is 2\)"),
    (lambda: unary_from_labels(LABELS - 1, 2), r"labels holds values -1..-1"),
    (lambda: unary_from_labels(LABELS.astype(float), 2), "is torch.float64; expected"),
    (lambda: unary_from_labels(LABELS, 2, gt_prob=1.0), "gt_prob is 1.0; expected a probability"),
    (lambda: crf_labels(IMAGE, LABELS.T, 2), r"labels has shape \(5, 4\), image \(4, 5, 3\)"),
    (lambda: crf_labels(IMAGE, LABELS, 2, backend="cuda"), "backend is 'cuda'; expected one of torch, pydensecrf"),
    (lambda: crf_labels(IMAGE, LABELS, 2, backend="pydensecrf", crf=DenseCRF(IMAGE)), "leave out one"),
    (lambda: PermutohedralLattice(torch.zeros(3)), r"features has shape \(3,\)"),
    (lambda: PermutohedralLattice(torch.full((3, 2), torch.inf)), "without NaN or infinity"),
    (lambda: PermutohedralLattice(torch.rand(9, 5) * 1e6), r"lattice cells; expected fewer than 2\^63"),
    (lambda: PermutohedralLattice(torch.rand(9, 2)).filter(torch.rand(8, 2)), r"expected \(9, C\), torch.float32, on cpu"),
])
def test_errors_name_the_argument_and_what_is_expected(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_missing_pydensecrf_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(BackendError, match=r"pydensecrf cannot be imported.*CYTHON_FORCE_REGEN=1.*pydensecrf==1.0rc3"):
        crf_labels(IMAGE, LABELS, 2, backend="pydensecrf")
