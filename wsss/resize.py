"""Bilinear resizing that has the same bits in every run, on a GPU too."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

KEPT = 128   # matrices; one for a side of 1000 at stride 4 has 1 MB


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (..., h, w) to (..., H, W), bilinear with align_corners=False; differentiable.

    On the CPU this is `F.interpolate(x, size)`. On a CUDA device its gradient is not deterministic, and torch's deterministic
    mode replaces it by a slow form. So there the same samples are the product of two matrices, computed in float32 or wider, also
    under autocast, and rounded once to the type of `x`.

    Args:
        x: floating point, h and w at least 1; leading dimensions may be 0.
        size: (H, W), at least 1 each.

    Returns:
        (..., H, W); `x` itself if it has that size.
    """
    size = tuple(size)
    if x.shape[-2:] == size:
        return x
    if x.is_cuda:
        return resize_by_matrices(x, size)
    if x.ndim == 4 and x.numel():
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    flat = x.reshape(1, -1, *x.shape[-2:])   # (1, n, h, w)
    if not flat.numel():                     # `F.interpolate` refuses them
        return x.new_zeros(*x.shape[:-2], *size)
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).view(*x.shape[:-2], *size)


def resize_by_matrices(x: Tensor, size: Sequence[int]) -> Tensor:
    """As `resize`, on any device: R' x C, where R (h, H) and C (w, W) are `resize_matrix`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    rows, columns = (resize_matrix(source, target, x.device, dtype) for source, target in zip(x.shape[-2:], size, strict=True))
    with torch.autocast(x.device.type, enabled=False):   # it would round the maps to 8 bits
        return (rows.T @ (x.to(dtype) @ columns)).to(x.dtype)


@lru_cache(KEPT)
def resize_matrix(source: int, target: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """(source, target): a row vector times this matrix is its bilinear resize. It is the resize of the unit vectors.

    Computed on the CPU, so that the weights are the same on all devices, and kept: do not change it in place.
    """
    with torch.inference_mode(False), torch.no_grad():   # autograd could not use a matrix that was made in inference mode
        unit = torch.eye(source, dtype=dtype, device="cpu")
        return F.interpolate(unit[None], size=target, mode="linear", align_corners=False)[0].to(device)
