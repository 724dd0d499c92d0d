"""How well an activation map says what a network looks at, measured by the network itself: no masks, no boxes.

Deletion and insertion (RISE: Petsiuk et al., BMVC 2018), average drop and average increase (Grad-CAM++: Chattopadhay et al.,
WACV 2018) and ROAD (Rong et al., ICML 2022). The functions make the changed images, and values from the probabilities that the
network gives them; images are (3, H, W), normalised for the network, so that 0 is the mean colour.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.errors import ArgumentError
from wsss.resize import resize

# Rong et al.'s code (tleemann/road_evaluation, road/imputations.py): the weight of a neighbour by its offset (y, x)
NEIGHBOURS = {(0, 1): 1 / 6, (0, -1): 1 / 6, (1, 0): 1 / 6, (-1, 0): 1 / 6,
              (1, 1): 1 / 12, (1, -1): 1 / 12, (-1, 1): 1 / 12, (-1, -1): 1 / 12}
GREY = (0.299, 0.587, 0.114)   # ITU-R BT.601


def ranking(saliency: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """The pixels of a map (H, W) from the most to the least salient: (H * W,) indices into the flattened map.

    Pixels of equal value are in random order. Differs from RISE's code, where the last of them comes first, and from
    pytorch-grad-cam, which removes the pixels above a percentile: of a map with many zeros that is another share.
    """
    return np.lexsort((draws.random(saliency.size), -saliency.reshape(-1)))


def replaced(image: Tensor, other: Tensor, order: np.ndarray, shares: Sequence[float]) -> Tensor:
    """An image in which the first pixels of an order are those of another one.

    Deletion: the image, of which more and more is a baseline. Insertion: a baseline, of which more and more is the image
    (RISE, section 4.2, and evaluation.py, CausalMetric).

    Args:
        image, other: (3, H, W).
        order: (H * W,), from `ranking`.
        shares: n shares of the pixels in [0, 1]; the number of pixels is rounded.

    Returns:
        (n, 3, H, W) on the device of `image`.
    """
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    places = torch.from_numpy(place).to(image.device).view(image.shape[1:])
    numbers = torch.tensor([round(share * order.size) for share in shares], device=image.device)
    return torch.where((places < numbers[:, None, None])[:, None], other, image)


def blurred(image: Tensor, size: int, sigma: float) -> Tensor:
    """The image (3, H, W), blurred by a Gaussian cut to `size` pixels (odd), with the mean colour outside.

    As `gkern` in RISE's evaluation.py, which has size 11 and sigma 5 for images of 224 pixels: what is cut off is folded back.
    """
    from scipy.ndimage import gaussian_filter1d

    unit = np.zeros(size)
    unit[size // 2] = 1
    kernel = torch.from_numpy(gaussian_filter1d(unit, sigma).astype(np.float32)).to(image.device)
    rows = F.conv2d(image[:, None], kernel.view(1, 1, -1, 1), padding=(size // 2, 0))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, size // 2))[:, 0]


def area(values: np.ndarray) -> float:
    """The area under a curve of n >= 2 values at equal distances on [0, 1], by the trapezoidal rule, as RISE's `auc`."""
    return float((values.sum() - (values[0] + values[-1]) / 2) / (len(values) - 1))


def confidence_change(full: float, masked: float) -> tuple[float, float]:
    """The drop and the increase of a class's probability when the image is multiplied by its map.

    Their means over the images are average drop and average increase (Grad-CAM++, section 4.1).

    Args:
        full, masked: the probability for the image, and for the image times the map in [0, 1]. As in torchcam and
            pytorch-grad-cam, and unlike the paper's text, the normalised image is multiplied: 0 is the mean colour, not black.

    Returns:
        max(0, full - masked) / full, in [0, 1]; 0 if `full` is 0 (torchcam adds 1e-7 to it; pytorch-grad-cam does not divide).
        And 1.0 if `masked` is greater than `full`, else 0.0.
    """
    return max(0.0, full - masked) / full if full else 0.0, float(masked > full)


def imputed(image: np.ndarray, missing: np.ndarray, noise: float, draws: np.random.Generator) -> np.ndarray:
    """An image whose missing pixels are filled in by noisy linear imputation (ROAD, section 5.2).

    Every missing pixel is the weighted mean of its eight neighbours (`NEIGHBOURS`, without those outside of the image), which may
    be missing too: the solution of a sparse linear system, plus noise. So the shape of what was removed can hardly be seen.

    Args:
        image: (3, H, W), normalised.
        missing: (H, W) bool.
        noise: standard deviation of the noise, in units of `image`. Rong et al.'s code adds it in units of its images, in [0, 1];
            pytorch-grad-cam in those of the normalised image, as here.
        draws: of the noise.

    Returns:
        (3, H, W) float32.

    Raises:
        ArgumentError: every pixel is missing.
    """
    from scipy.sparse.linalg import splu

    if missing.all():
        raise ArgumentError(f"imputed: all {missing.size} pixels of the image are missing, expected at least one that is known; "
                            "remove a share below 1")
    rows, known = np.flatnonzero(missing), np.flatnonzero(~missing)
    values = image.reshape(3, -1).astype(np.float64)
    if len(rows):
        equations = _equations(*missing.shape)[rows]
        # the matrix is symmetric and diagonally dominant, so it needs no pivots; its order keeps the factors sparse
        factors = splu(equations[:, rows].tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
                       options={"SymmetricMode": True})
        values[:, rows] = factors.solve(-(equations[:, known] @ values[:, known].T)).T
        values[:, rows] += noise * draws.standard_normal((3, len(rows)))
    return values.reshape(image.shape).astype(np.float32)


@lru_cache(2)
def _equations(height: int, width: int):  # type: ignore[no-untyped-def]  # scipy has no types
    """A sparse matrix (H * W, H * W): row i times the pixels is 0 if pixel i is the weighted mean of its neighbours."""
    from scipy import sparse

    index = np.arange(height * width).reshape(height, width)
    pairs, weights = [], []
    for (down, right), weight in NEIGHBOURS.items():
        y, x = (slice(max(0, -shift), side - max(0, shift)) for shift, side in ((down, height), (right, width)))
        there = index[max(0, down):height + min(0, down), max(0, right):width + min(0, right)]
        pairs.append(np.stack([index[y, x].ravel(), there.ravel()]))
        weights.append(np.full(there.size, weight))
    near = sparse.csr_matrix((np.concatenate(weights), np.concatenate(pairs, axis=1)), (index.size, index.size))
    return (sparse.diags(np.asarray(near.sum(1)).ravel()) - near).tocsr()


def road_images(image: np.ndarray, order: np.ndarray, shares: Sequence[float], noise: float,
                draws: np.random.Generator) -> Tensor:
    """The image (3, H, W) without the first shares of the pixels of an order, which are imputed: (n, 3, H, W) float32.

    With the order of `ranking` the most relevant pixels are removed first (MoRF), with its reverse the least relevant (LeRF).
    The shares are above 0 and below 1, and at least one pixel stays; `noise` and `draws` are those of `imputed`.

    The measure is the mean probability over the shares. Rong et al. and Quantus count right predictions, which an image of
    several classes does not have; pytorch-grad-cam's ROADCombined is half the difference of LeRF and MoRF.
    """
    found = []
    for share in shares:
        missing = np.zeros(order.size, bool)
        missing[order[:min(round(share * order.size), order.size - 1)]] = True   # of a tiny image rounding could leave none
        found.append(imputed(image, missing.reshape(image.shape[1:]), noise, draws))
    return torch.from_numpy(np.stack(found))


def random_map(size: Sequence[int], cell: int, draws: np.random.Generator) -> np.ndarray:
    """A map (H, W) float32 in [0, 1] that knows nothing: a random number for each `cell` pixels, resized like a map of a network.

    Differs from a random number for each pixel: such noise destroys an image wherever it begins, so its deletion is hard to beat.
    """
    grid = draws.random([-(-side // cell) for side in size], np.float32)
    return resize(torch.from_numpy(grid)[None], size)[0].numpy()


def edge_map(image: np.ndarray) -> np.ndarray:
    """The strength of the edges in an image (H, W, 3) uint8, by the Sobel filter on its grey values: (H, W) float32 in [0, 1].

    It shows the image and knows no network (Adebayo et al., NeurIPS 2018, who compare maps with an edge detector).
    """
    from scipy.ndimage import sobel

    grey = image.astype(np.float32) @ np.array(GREY, np.float32)
    strength = np.hypot(sobel(grey, 0), sobel(grey, 1))
    return strength / (strength.max() or 1)
