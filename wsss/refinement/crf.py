"""Dense CRF: mean field inference in a random field that connects every pixel of an image with every other.

Kraehenbuehl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials" (NIPS 2011), with the
parameters of the official IRN code (`misc/imutils.py`, `crf_inference_label`). The optional back end pydensecrf computes the
same labels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.errors import ArgumentError, BackendError
from wsss.refinement.permutohedral import PermutohedralLattice

GAUSSIAN_SXY, GAUSSIAN_COMPAT = 3, 3  # official parameters, shared by both back ends
BILATERAL_SXY, BILATERAL_SRGB, BILATERAL_COMPAT = 50, 5, 10
BACKENDS = ("torch", "pydensecrf")
INSTALL_PYDENSECRF = (
    "echo 'cython<3' > build-constraints.txt && CYTHON_FORCE_REGEN=1 PIP_BUILD_CONSTRAINT=$PWD/build-constraints.txt "
    "pip install pydensecrf==1.0rc3"
)


class DenseCRF:
    """The pairwise terms of one image: a spatial and a bilateral Gaussian kernel, symmetrically normalised, Potts compatibility.

    Building it costs about as much as ten mean field iterations, so reuse it for all labellings of the image.

    Args:
        image: (H, W, 3) uint8 RGB. The CRF is on the device of a tensor, on the CPU for an array.
        gaussian_sxy: standard deviation of the spatial kernel, in pixels.
        gaussian_compat: weight of the spatial kernel.
        bilateral_sxy, bilateral_srgb: standard deviations of the bilateral kernel, in pixels and in intensities 0..255.
        bilateral_compat: weight of the bilateral kernel.

    Raises:
        ArgumentError: `image` is not (H, W, 3) uint8, a standard deviation is not positive or a weight is negative.
    """

    def __init__(
        self,
        image: np.ndarray | Tensor,
        *,
        gaussian_sxy: float = GAUSSIAN_SXY,
        gaussian_compat: float = GAUSSIAN_COMPAT,
        bilateral_sxy: float = BILATERAL_SXY,
        bilateral_srgb: float = BILATERAL_SRGB,
        bilateral_compat: float = BILATERAL_COMPAT,
    ):
        _check_kernels(
            dict(gaussian_sxy=gaussian_sxy, bilateral_sxy=bilateral_sxy, bilateral_srgb=bilateral_srgb),
            dict(gaussian_compat=gaussian_compat, bilateral_compat=bilateral_compat),
        )
        image = _image(image)
        self.height, self.width = image.shape[:2]
        self.device = image.device
        pixel = torch.arange(self.height * self.width, device=image.device)
        xy = torch.stack([pixel % self.width, pixel // self.width]).float()  # (2, N)
        rgb = image.reshape(-1, 3).T.float()  # (3, N)
        bilateral = torch.cat([xy / bilateral_sxy, rgb / bilateral_srgb])  # (5, N)
        self._gaussian = PermutohedralLattice((xy / gaussian_sxy).T).normalized(gaussian_compat)
        self._bilateral = PermutohedralLattice(bilateral.T).normalized(bilateral_compat)

    @torch.no_grad()
    def inference(self, unary: Tensor, iterations: int = 10) -> Tensor:
        """Label probabilities after mean field iterations that start from softmax(-unary).

        Args:
            unary: (..., L, H, W) float32 energies, finite. Leading dimensions are several labellings of the image, filtered
                together as channels: two take little longer than one.
            iterations: 0 or more.

        Returns:
            (..., L, H, W) float32, positive, summing to 1 over L. The same bits in every run with the same number of threads.

        Raises:
            ArgumentError: `unary` has another shape, dtype or device, or is not finite; `iterations` is negative.
        """
        self._check_unary(unary)
        if iterations < 0:
            raise ArgumentError(f"DenseCRF.inference: iterations is {iterations}; expected 0 or more")
        pixels = self.height * self.width
        energy = unary.reshape(-1, unary.shape[-3], pixels)  # (labellings, L, N)
        logits = -energy
        for _ in range(iterations):
            q = torch.softmax(logits, 1).view(-1, pixels).T.contiguous()  # (N, labellings * L)
            message = self._gaussian.filter(q).add_(self._bilateral.filter(q))
            torch.sub(message.T.view_as(energy), energy, out=logits)
        return torch.softmax(logits, 1).view(unary.shape)

    def _check_unary(self, unary: Tensor) -> None:
        fits = unary.ndim >= 3 and unary.shape[-2:] == (self.height, self.width) and unary.numel() > 0
        if not fits or unary.dtype != torch.float32 or unary.device != self.device:
            raise ArgumentError(
                f"DenseCRF.inference: unary has shape {tuple(unary.shape)}, is {unary.dtype} and on {unary.device}; "
                f"expected (..., L, {self.height}, {self.width}), torch.float32, on {self.device} like the image"
            )
        if not unary.isfinite().all():
            raise ArgumentError("DenseCRF.inference: unary holds NaN or infinity; expected finite energies")


def crf_memory(labellings: int) -> tuple[float, float]:
    """Bytes of memory per pixel, and per pixel and class, of a dense CRF of an image with this many labellings at once.

    Measured on images of 2 to 13 labels: within 25 %; noise doubles it.
    """
    return 500 + 100 * labellings, 100 * labellings


def unary_from_labels(labels: np.ndarray | Tensor, n_labels: int, gt_prob: float = 0.7) -> Tensor:
    """Unary energies of a label map: -log(gt_prob) for the label; the other labels share the remaining probability.

    `pydensecrf.utils.unary_from_labels` with zero_unsure=False.

    Args:
        labels: (..., H, W) integers in 0..n_labels-1.
        n_labels: 1 or more.
        gt_prob: probability that a label is right, between 0 and 1, both excluded.

    Returns:
        (..., n_labels, H, W) float32, on the device of `labels`.

    Raises:
        ArgumentError: a label is outside 0..n_labels-1, or an argument outside its range.
    """
    labels = as_tensor(labels)
    if labels.ndim < 2 or labels.is_floating_point() or labels.dtype == torch.bool or labels.numel() == 0:
        raise ArgumentError(f"labels has shape {tuple(labels.shape)} and is {labels.dtype}; expected (..., H, W) integers")
    low, high = (int(bound) for bound in torch.aminmax(labels))
    if low < 0 or high >= n_labels:
        raise ArgumentError(f"labels holds values {low}..{high}; expected 0..{n_labels - 1} (n_labels is {n_labels})")
    if not 0 < gt_prob < 1:
        raise ArgumentError(f"gt_prob is {gt_prob}; expected a probability between 0 and 1, both excluded")
    other = -math.log((1 - gt_prob) / max(n_labels - 1, 1))
    shape = (*labels.shape[:-2], n_labels, *labels.shape[-2:])
    unary = torch.full(shape, other, dtype=torch.float32, device=labels.device)
    return unary.scatter_(-3, labels.long().unsqueeze(-3), -math.log(gt_prob))


def unary_from_scores(scores: Tensor, sharpness: float) -> Tensor:
    """Unary energies of label scores, such as a background threshold and activation maps: -log softmax(sharpness * scores).

    Args:
        scores: (..., L, H, W) float, finite; in [0, 1] for maps.
        sharpness: positive; the larger, the more confident the greatest score. At 8, a map of 1 against a background of 0.5 has
            the odds exp(4).

    Returns:
        (..., L, H, W) float32.

    Raises:
        ArgumentError: `sharpness` is not positive.
    """
    if not 0 < sharpness < math.inf:
        raise ArgumentError(f"unary_from_scores: sharpness is {sharpness}; expected a positive number")
    return torch.log_softmax(scores.float() * sharpness, dim=-3).neg_().contiguous()


def crf_labels(
    image: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    n_labels: int,
    *,
    iterations: int = 10,
    gt_prob: float = 0.7,
    crf: DenseCRF | None = None,
    backend: str = "torch",
) -> Tensor:
    """Refine a label map by the dense CRF; `crf_inference_label` of the official `misc/imutils.py`.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers in 0..n_labels-1, or (T, H, W) for several maps, which share the lattice and the filters.
        n_labels: number of labels, background included.
        iterations, gt_prob: as in `DenseCRF.inference` and `unary_from_labels`.
        crf: a `DenseCRF` of the same image, to reuse it or to use other kernels.
        backend: "torch", or "pydensecrf" (CPU, official kernels).

    Returns:
        int64 of the shape of `labels`, on the device of the image or of `crf`.

    Raises:
        ArgumentError: an argument outside its range, or sizes that do not fit.
        BackendError: pydensecrf is requested and not installed.
    """
    if backend not in BACKENDS:
        raise ArgumentError(f"crf_labels: backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "pydensecrf" and crf is not None:
        raise ArgumentError("crf_labels: crf is passed together with backend='pydensecrf', which cannot use it; leave out one")
    image = _image(image)
    labels = as_tensor(labels, image.device if crf is None else crf.device)
    if labels.shape[-2:] != image.shape[:2]:
        raise ArgumentError(f"crf_labels: labels has shape {tuple(labels.shape)}, image {tuple(image.shape)}; expected the same "
                            "H and W: resize the labels to the image")
    unary = unary_from_labels(labels, n_labels, gt_prob)
    if backend == "pydensecrf":
        return _pydensecrf_labels(image, unary, iterations)
    return (crf or DenseCRF(image)).inference(unary, iterations).max(-3).indices   # argmax takes fifteen times as long


def _pydensecrf_labels(image: Tensor, unary: Tensor, iterations: int) -> Tensor:
    """`crf_labels` by the C++ extension; unary (..., L, H, W)."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise BackendError(
            f"back end pydensecrf cannot be imported ({error}). backend='torch' gives the same labels without it; to install it "
            f"(needs a C++ compiler and pip 25.3 or later): {INSTALL_PYDENSECRF}"
        ) from error
    n_labels, height, width = unary.shape[-3:]
    rgb = image.cpu().contiguous().numpy()
    result = []
    for energy in unary.cpu().reshape(-1, n_labels, height * width):
        crf = DenseCRF2D(width, height, n_labels)
        crf.setUnaryEnergy(energy.numpy())
        crf.addPairwiseGaussian(sxy=GAUSSIAN_SXY, compat=GAUSSIAN_COMPAT)
        crf.addPairwiseBilateral(sxy=BILATERAL_SXY, srgb=BILATERAL_SRGB, rgbim=rgb, compat=BILATERAL_COMPAT)
        result.append(torch.tensor(np.asarray(crf.inference(iterations))).argmax(0))
    return torch.stack(result).view(*unary.shape[:-3], height, width).to(image.device)


def as_tensor(values: np.ndarray | Tensor | Sequence, device: torch.device | str | None = None) -> Tensor:
    """A tensor on `device` (default: its own); arrays are copied, so they may be read-only or flipped views."""
    return values.to(device) if isinstance(values, Tensor) else torch.tensor(np.ascontiguousarray(values), device=device)


def _image(image: np.ndarray | Tensor) -> Tensor:
    image = as_tensor(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or image.numel() == 0:
        raise ArgumentError(f"image has shape {tuple(image.shape)} and is {image.dtype}; expected (H, W, 3), torch.uint8, RGB")
    return image


def _check_kernels(deviations: dict[str, float], weights: dict[str, float]) -> None:
    for name, value in deviations.items():
        if not 0 < value < math.inf:
            raise ArgumentError(f"DenseCRF: {name} is {value}; expected a positive standard deviation")
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise ArgumentError(f"DenseCRF: {name} is {value}; expected a weight of 0 or more")
