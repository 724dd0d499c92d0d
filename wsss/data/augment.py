"""Training samples as in the official IRN and LPCAM loaders (`voc12/dataloader.py`, `misc/imutils.py`).

All random numbers come from the passed generator, in the order of the docstrings.
Padding is 0 *after* normalisation, that is the mean colour of the network's training images, and 255 in labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import pad

from wsss.data.images import IMAGENET, Normalisation, normalise, resize_image, resize_mask, scaled_size
from wsss.data.strong import Strong, erased, rand_augmented, random_area
from wsss.errors import ArgumentError
from wsss.palette import IGNORE

_LABEL_STRIDE = 4  # of the IRN edge map
_TRIES = 10        # mmsegmentation: RandomCrop


def classifier_sample(image: np.ndarray, generator: np.random.Generator, crop_size: int,
                      resize_long: tuple[int, int] = (320, 640), color_jitter: float = 0.0,
                      normalisation: Normalisation = IMAGENET, hue_jitter: float = 0.0,
                      strong: Strong = Strong()) -> torch.Tensor:  # noqa: B008  (frozen)
    """`image` (H, W, 3) uint8 -> (3, crop_size, crop_size) float32, normalised, for training the classifier.

    Draws: long side from `resize_long` (both ends included; bicubic), or with `strong.area` a part of the image, which is resized
    to the crop; with `color_jitter` j > 0 factors of brightness, contrast and saturation from 1 - j..1 + j (official: j = 0, no
    draw); with `hue_jitter` j > 0 a turn of the hue of -j..j, in turns; a flip with probability 1/2; the crop (`random_window`);
    `strong.rand_augment` and `strong.erase`, each if above 0.
    Raises ArgumentError for values out of range.
    """
    low, high = resize_long
    if not 1 <= low <= high:
        raise ArgumentError(f"resize_long is {resize_long}; expected 1 <= shortest <= longest, in pixels")
    if not 0 <= color_jitter < 1:
        raise ArgumentError(f"color_jitter is {color_jitter}; expected 0 <= color_jitter < 1")
    if not 0 <= hue_jitter <= 0.5:
        raise ArgumentError(f"hue_jitter is {hue_jitter}; expected 0 <= hue_jitter <= 0.5, in turns")
    if strong.area is not None:
        image = resize_image(random_area(image, strong.area, generator), (crop_size, crop_size))
    else:
        target = int(generator.integers(low, high + 1))
        image = resize_image(image, scaled_size(image.shape[:2], target / max(image.shape[:2])))
    if color_jitter:
        image = _jitter(image, generator.uniform(1 - color_jitter, 1 + color_jitter, size=3))
    if hue_jitter:
        image = _turn_hue(image, int(generator.uniform(-hue_jitter, hue_jitter) * 255))   # 255: as torchvision's adjust_hue
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, h, w)
    if generator.random() < 0.5:
        pixels = pixels.flip(-1)
    top, left = random_window(image.shape[:2], crop_size, generator)
    changed = partial(rand_augmented, magnitude=strong.rand_augment, normalisation=normalisation, generator=generator)
    sample = _crop_image(pixels, top, left, crop_size, normalisation, changed if strong.rand_augment else None)
    return erased(sample, strong.erase, generator) if strong.erase else sample


@dataclass(frozen=True)
class Augmentation:
    """The random changes of a sample for a segmentation network.

    scale: lowest and highest factor of the size. scale_step: only the lowest factor plus multiples of the step; None: any factor.
    resize: (longer, shorter) side: the image first gets the largest size within (mmsegmentation's `Resize`); None: it is kept.
    max_class_share: a crop is drawn again, at most ten times in all, until at least two labels are in it and none has this share
    of its labelled pixels (mmsegmentation's `cat_max_ratio`); None: the first is taken.
    color_jitter: as in `classifier_sample`. distortion: `photometric_distortion`.

    Raises ArgumentError for values out of range.
    """

    scale: tuple[float, float] = (0.5, 1.5)
    scale_step: float | None = None
    resize: tuple[int, int] | None = None
    max_class_share: float | None = None
    color_jitter: float = 0.0
    distortion: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ArgumentError(f"scale is {self.scale}; expected 0 < smallest <= largest")

    def draw_scale(self, generator: np.random.Generator, size: tuple[int, int]) -> float:
        """The factor of an image of `size` (H, W), with that of `resize`; one draw."""
        low, high = self.scale
        if self.scale_step is None:
            factor = generator.uniform(low, high)
        else:   # 1e-9: (1.5 - 0.5) / 0.1 must count as 10
            factor = low + self.scale_step * int(generator.integers(0, int((high - low) / self.scale_step + 1e-9) + 1))
        if self.resize is not None:
            factor *= min(self.resize[0] / max(size), self.resize[1] / min(size))
        return factor


def segmenter_sample(image: np.ndarray, label: np.ndarray, generator: np.random.Generator, crop_size: int,
                     augmentation: Augmentation = Augmentation(),  # noqa: B008  (it is frozen)
                     normalisation: Normalisation = IMAGENET) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (H, W, 3) and label (H, W), both uint8 -> (3, S, S) float32, normalised, and (S, S) uint8, with S = `crop_size`.

    Draws: one scale for both (image bicubic, label nearest); the factors of `color_jitter`; a flip with probability 1/2; one crop
    for both, or with `max_class_share` up to ten; the colours of `distortion`, for the crop only. The label is 255 outside the
    image. Raises ArgumentError for invalid sizes.
    """
    if label.shape != image.shape[:2]:
        raise ArgumentError(f"label is {label.shape} but its image is {image.shape[:2]}; expected the same (H, W)")
    size = scaled_size(label.shape, augmentation.draw_scale(generator, label.shape))
    image = resize_image(image, size)
    if jitter := augmentation.color_jitter:
        image = _jitter(image, generator.uniform(1 - jitter, 1 + jitter, size=3))
    pixels = torch.from_numpy(image).permute(2, 0, 1)  # (3, h, w)
    classes = torch.from_numpy(resize_mask(label, size))[None]  # (1, h, w)
    if generator.random() < 0.5:
        pixels, classes = pixels.flip(-1), classes.flip(-1)
    for _ in range(_TRIES if augmentation.max_class_share else 1):
        top, left = random_window(size, crop_size, generator)
        cut = _cut(classes, top, left, crop_size)
        if not augmentation.max_class_share or _largest_share(cut) < augmentation.max_class_share:
            break
    distorted = partial(photometric_distortion, generator=generator) if augmentation.distortion else None
    return _crop_image(pixels, top, left, crop_size, normalisation, distorted), _pad(cut, top, left, crop_size, fill=IGNORE)[0]


def photometric_distortion(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """mmsegmentation's `PhotoMetricDistortion` (v1.2.2) of an image (H, W, 3) uint8.

    Draws, each change with probability 1/2: a number of -32..32 that is added; whether the contrast is changed before or after
    the colours; a factor of 0.5..1.5 of the contrast (about 0) and one of the saturation; a turn of the hue by -36..36 degrees.
    Hue and saturation are those of Pillow, with 256 hues instead of OpenCV's 180.
    """
    def changed() -> bool:
        return bool(generator.random() < 0.5)

    def linear(image: np.ndarray, factor: float = 1, addend: float = 0) -> np.ndarray:
        return np.clip(image.astype(np.float32) * factor + addend, 0, 255).astype(np.uint8)
    if changed():
        image = linear(image, addend=generator.uniform(-32, 32))
    contrast_first = changed()
    if contrast_first and changed():
        image = linear(image, generator.uniform(0.5, 1.5))
    saturation, hue = generator.uniform(0.5, 1.5) if changed() else 1.0, int(generator.integers(-26, 27)) if changed() else 0
    if (saturation, hue) != (1.0, 0):
        hsv = np.array(Image.fromarray(image).convert("HSV"))
        hsv[..., 0] += np.uint8(hue % 256)   # wraps around
        hsv[..., 1] = linear(hsv[..., 1], saturation)
        image = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    if not contrast_first and changed():
        image = linear(image, generator.uniform(0.5, 1.5))
    return image


def _largest_share(label: torch.Tensor) -> float:
    """The share of the most frequent label in the labelled pixels; 1 if there is only one, or none."""
    counts = torch.bincount(label[label != IGNORE].flatten())
    return float(counts.max() / counts.sum()) if len(counts) else 1.0


def irn_sample(image: np.ndarray, label: np.ndarray, generator: np.random.Generator, crop_size: int,
               scale: tuple[float, float] = (0.5, 1.5),
               normalisation: Normalisation = IMAGENET) -> tuple[torch.Tensor, torch.Tensor]:
    """As `segmenter_sample` without jitter, but the label is (S/4, S/4): it is cropped at full resolution, then resized to stride
    4 by nearest neighbour. Raises ArgumentError also if S is no multiple of 4."""
    if crop_size % _LABEL_STRIDE:
        raise ArgumentError(f"crop_size is {crop_size}; expected a multiple of {_LABEL_STRIDE}, the stride of the edge map")
    pixels, classes = segmenter_sample(image, label, generator, crop_size, Augmentation(scale), normalisation)
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


def _crop_image(pixels: torch.Tensor, top: int, left: int, crop_size: int, normalisation: Normalisation,
                change: Callable[[np.ndarray], np.ndarray] | None = None) -> torch.Tensor:
    """Change and normalise the visible part only, then pad with 0: the same numbers as normalising everything first."""
    shown = _cut(pixels, top, left, crop_size).permute(1, 2, 0).numpy()
    if change is not None:
        shown = change(shown)
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


def _turn_hue(image: np.ndarray, steps: int) -> np.ndarray:
    """Turn the hue by `steps` of 256 (torchvision's `ColorJitter`, for Pillow images)."""
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(steps % 256)   # wraps around
    return np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
