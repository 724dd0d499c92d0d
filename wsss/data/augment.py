"""Training samples as in the official IRN and LPCAM loaders (`voc12/dataloader.py`, `misc/imutils.py`).

All random numbers come from the passed generator, in the order of the docstrings.
Padding is 0 *after* normalisation, that is the mean colour of the network's training images, and 255 in labels.
"""

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import pad

from wsss.data.images import IMAGENET, Normalisation, normalise, resize_image, resize_mask, scaled_size
from wsss.errors import ArgumentError
from wsss.palette import IGNORE

_LABEL_STRIDE = 4  # of the IRN edge map


def classifier_sample(image: np.ndarray, generator: np.random.Generator, crop_size: int,
                      resize_long: tuple[int, int] = (320, 640), color_jitter: float = 0.0,
                      normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """`image` (H, W, 3) uint8 -> (3, crop_size, crop_size) float32, normalised, for training the classifier.

    Draws: long side from `resize_long` (both ends included; bicubic); with `color_jitter` j > 0 factors of brightness, contrast
    and saturation from 1 - j..1 + j (official: j = 0, no draw); a flip with probability 1/2; the crop (`random_window`).
    Raises ArgumentError for values out of range.
    """
    low, high = resize_long
    if not 1 <= low <= high:
        raise ArgumentError(f"resize_long is {resize_long}; expected 1 <= shortest <= longest, in pixels")
    if not 0 <= color_jitter < 1:
        raise ArgumentError(f"color_jitter is {color_jitter}; expected 0 <= color_jitter < 1")
    target = int(generator.integers(low, high + 1))
    image = resize_image(image, scaled_size(image.shape[:2], target / max(image.shape[:2])))
    if color_jitter:
        image = _jitter(image, generator.uniform(1 - color_jitter, 1 + color_jitter, size=3))
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, h, w)
    if generator.random() < 0.5:
        pixels = pixels.flip(-1)
    top, left = random_window(image.shape[:2], crop_size, generator)
    return _crop_image(pixels, top, left, crop_size, normalisation)


def segmenter_sample(image: np.ndarray, label: np.ndarray, generator: np.random.Generator, crop_size: int,
                     scale: tuple[float, float] = (0.5, 1.5), color_jitter: float = 0.0,
                     normalisation: Normalisation = IMAGENET) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (H, W, 3) and label (H, W), both uint8 -> (3, S, S) float32, normalised, and (S, S) uint8, with S = `crop_size`.

    Draws: one scale for both (image bicubic, label nearest); with `color_jitter` as in `classifier_sample`; a flip with
    probability 1/2; one crop for both. The label is 255 outside the image. Raises ArgumentError for invalid sizes or values out
    of range.
    """
    if label.shape != image.shape[:2]:
        raise ArgumentError(f"label is {label.shape} but its image is {image.shape[:2]}; expected the same (H, W)")
    if not 0 < scale[0] <= scale[1]:
        raise ArgumentError(f"scale is {scale}; expected 0 < smallest <= largest")
    size = scaled_size(label.shape, generator.uniform(*scale))
    image = resize_image(image, size)
    if color_jitter:
        image = _jitter(image, generator.uniform(1 - color_jitter, 1 + color_jitter, size=3))
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, h, w)
    classes = torch.from_numpy(resize_mask(label, size))[None]  # (1, h, w)
    if generator.random() < 0.5:
        pixels, classes = pixels.flip(-1), classes.flip(-1)
    top, left = random_window(size, crop_size, generator)
    classes = _pad(_cut(classes, top, left, crop_size), top, left, crop_size, fill=IGNORE)
    return _crop_image(pixels, top, left, crop_size, normalisation), classes[0]


def irn_sample(image: np.ndarray, label: np.ndarray, generator: np.random.Generator, crop_size: int,
               scale: tuple[float, float] = (0.5, 1.5),
               normalisation: Normalisation = IMAGENET) -> tuple[torch.Tensor, torch.Tensor]:
    """As `segmenter_sample` without jitter, but the label is (S/4, S/4): it is cropped at full resolution, then resized to stride
    4 by nearest neighbour. Raises ArgumentError also if S is no multiple of 4."""
    if crop_size % _LABEL_STRIDE:
        raise ArgumentError(f"crop_size is {crop_size}; expected a multiple of {_LABEL_STRIDE}, the stride of the edge map")
    pixels, classes = segmenter_sample(image, label, generator, crop_size, scale, normalisation=normalisation)
    reduced = resize_mask(classes.numpy(), (crop_size // _LABEL_STRIDE,) * 2)
    return pixels, torch.from_numpy(reduced)


def top_left_crop(image: np.ndarray, crop_size: int, normalisation: Normalisation = IMAGENET) -> torch.Tensor:
    """`image` (H, W, 3) uint8 -> its top-left (3, crop_size, crop_size) float32, normalised, 0 outside the image (validation)."""
    return _crop_image(torch.from_numpy(image).permute(2, 0, 1), 0, 0, crop_size, normalisation)


def random_window(size: tuple[int, int], crop_size: int, generator: np.random.Generator) -> tuple[int, int]:
    """(top, left) of a random crop in the frame of an image of `size` (H, W), uniform over the crops without needless padding.

    A number is negative where the image is smaller than the crop: it is the offset of the image inside the crop.
    Draws: horizontal, then vertical (official `get_random_crop_box`).
    """
    if crop_size < 1:
        raise ArgumentError(f"crop_size is {crop_size}; expected at least 1 pixel")
    spaces = size[1] - crop_size, size[0] - crop_size
    left, top = (int(np.sign(space) * generator.integers(0, abs(space) + 1)) for space in spaces)
    return top, left


def _crop_image(pixels: torch.Tensor, top: int, left: int, crop_size: int, normalisation: Normalisation) -> torch.Tensor:
    """Normalise the visible part only, then pad with 0: the same numbers as normalising everything first."""
    shown = _cut(pixels, top, left, crop_size).permute(1, 2, 0).numpy()
    return _pad(normalise(shown, normalisation=normalisation), top, left, crop_size, fill=0)


def _cut(tensor: torch.Tensor, top: int, left: int, crop_size: int) -> torch.Tensor:
    """The part of `tensor` (..., h, w) inside the window."""
    return tensor[..., max(top, 0):top + crop_size, max(left, 0):left + crop_size]


def _pad(tensor: torch.Tensor, top: int, left: int, crop_size: int, fill: int) -> torch.Tensor:
    """Pad the output of `_cut` to the full window."""
    height, width = tensor.shape[-2:]
    above, before = max(-top, 0), max(-left, 0)
    return pad(tensor, (before, crop_size - width - before, above, crop_size - height - above), value=fill)


def _jitter(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Scale brightness, contrast and saturation, in this order, by `factors` (torchvision's `ColorJitter` without hue)."""
    picture = Image.fromarray(image)
    for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors):
        picture = enhance(picture).enhance(float(factor))
    return np.array(picture)
