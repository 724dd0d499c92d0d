"""The strong augmentation of transformers: DeiT's training, which MCTformer uses (`datasets.py`, timm's `create_transform`).

RandAugment and random erasing are timm's. These draw from the global generators of Python, NumPy and torch, which get seeds from
the passed generator for the call and are left as they were.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from wsss.data.images import Normalisation
from wsss.errors import ArgumentError
from wsss.seeding import seeded

RATIO = (3 / 4, 4 / 3)   # of width to height of a random area; timm: RandomResizedCrop
_TRIES = 10              # the same
_POLICY = "rand-mstd0.5-inc1"   # of RandAugment, without its magnitude; MCTformer: main.py, --aa
_SHIFT = 0.45            # greatest translation, in sides; timm: transforms_imagenet_train


@dataclass(frozen=True)
class Strong:
    """What `classifier_sample` does besides. Raises ArgumentError for values out of range.

    area: of `random_area`; None: the whole image.
    rand_augment: the magnitude of `rand_augmented`; 0: without.
    erase: the probability of `erased`; 0: without.
    """

    area: tuple[float, float] | None = None
    rand_augment: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ArgumentError(f"area is {self.area}; expected shares with 0 < least <= greatest <= 1, or None")
        if not 0 <= self.rand_augment <= 10 or not 0 <= self.erase <= 1:
            raise ArgumentError(f"rand_augment is {self.rand_augment} and erase is {self.erase}; expected a magnitude in [0, 10] "
                                "and a probability")


def random_area(image: np.ndarray, area: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """A random part (h, w, 3) of an image (H, W, 3): its area, as a share of that of the image, is from `area` (least, greatest),
    its width over its height from `RATIO`. If ten draws of them do not fit into the image, it is the largest part with such a
    ratio in the middle. Draws: area and ratio, up to ten times; top and left."""
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        pixels = height * width * generator.uniform(*area)
        ratio = np.exp(generator.uniform(*np.log(RATIO)))
        h, w = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            top, left = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
            return image[top:top + h, left:left + w]
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    top, left = (height - h) // 2, (width - w) // 2
    return image[top:top + h, left:left + w]


def rand_augmented(image: np.ndarray, magnitude: float, normalisation: Normalisation,
                   generator: np.random.Generator) -> np.ndarray:
    """timm's RandAugment of an image (H, W, 3) uint8: two changes of colours or of shape, each with probability 1/2, of this
    magnitude (10: the greatest) with deviations of 0.5. What comes from outside the image has the mean colour. Draws one seed."""
    change = _policy(magnitude, int(min(image.shape[:2]) * _SHIFT), normalisation.mean)
    with _drawing(generator):
        return np.array(change(Image.fromarray(image)))


def erased(pixels: Tensor, probability: float, generator: np.random.Generator) -> Tensor:
    """timm's random erasing of a normalised image (3, H, W): with this probability a rectangle of 2 to 33 % of its area becomes
    noise of N(0, 1). Draws one seed."""
    from timm.data.random_erasing import RandomErasing

    with _drawing(generator):
        return RandomErasing(probability, mode="pixel", device="cpu")(pixels.clone())


@cache
def _policy(magnitude: float, shift: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    colour = tuple(min(255, round(255 * each)) for each in mean)
    change = rand_augment_transform(_POLICY, {"translate_const": shift, "img_mean": colour,
                                              "interpolation": Image.Resampling.BICUBIC})
    for each in change.ops:
        each.magnitude = magnitude   # in a policy's text only whole numbers
    return change


@contextmanager
def _drawing(generator: np.random.Generator) -> Iterator[None]:
    """Inside the block the global generators have a seed drawn from `generator`; after it they are as before."""
    seed, python, numpy = int(generator.integers(2**32)), random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with seeded(seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
