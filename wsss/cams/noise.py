"""The noise of the methods that look at noisy copies of an image."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wsss.seeding import generator

if TYPE_CHECKING:
    from torch import Tensor


def noises(pair: Tensor, count: int, std: float, user: str, channels: int = 3) -> Iterator[Tensor]:
    """Gaussian noise for the copies of an image and its mirror image, (2, channels, H, W) for each of `count` copies.

    It depends on the image at its scale and on `user` alone, not on the order of images or the seed of a run; that of the mirror
    image is mirrored. `pair`: as of `CamMethod.maps`. std: of the values.
    """
    import torch

    # Rounded, so that the image has the same noise on every device: adjacent values of a colour differ by about 1 / 60
    seed = 0 if pair.is_meta else zlib.crc32((pair[0] * 64).round().to("cpu", torch.int16).numpy().tobytes())
    draws = generator(seed, user)
    for _ in range(count):
        noise = torch.from_numpy(std * draws.standard_normal((channels, *pair.shape[2:]))).to(pair)
        yield torch.stack([noise, noise.flip(-1)][:len(pair)])   # an image without its mirror image is possible
